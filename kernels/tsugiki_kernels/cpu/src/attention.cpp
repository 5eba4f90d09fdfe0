// Paged causal attention with an online softmax (Milakov & Gimelshein 2018; FlashAttention's loop).
//
// Keys are taken in units of 64 positions counted from position 0, never from where a chunk or a
// window begins, and a unit that a row does not see leaves its state untouched. So the arithmetic
// of a row depends on its position and its own context only: decode and prefill agree bit by bit.
//
// A task is some KV heads and up to 16 rows of one sequence, with all query heads of these KV heads.
// While a unit is computed the next one is on its way from memory: contexts are long and lie in
// blocks, which no hardware foresees.
// The cache holds the keys of a block transposed (attention.h), so that 16 scores are one vector and
// a score is a plain chain over the head dimension; bfloat16 keys are pairs of dimensions in 32-bit
// lanes, which fits vdpbf16ps. Values become float32 as they lie.

#include "attention_unit.h"

namespace tsugiki {

constexpr int64_t ROWS_PER_TASK = 16;

// Positions that the row sees: [first, position].
inline int64_t first_seen(const Attention& a, int64_t position) {
  return a.window > 0 ? std::max<int64_t>(0, position - a.window + 1) : 0;
}

inline int64_t position_of(const Attention& a, int64_t sequence, int64_t row) {
  return a.context[sequence] - (a.query_start[sequence + 1] - row);
}

void load_queries(const Attention& a, const QueryTile& task, Workspace& w) {
  const int64_t heads = a.heads / a.kv_heads;
  for (int64_t row = task.first_row; row < task.last_row; ++row)
    for (int64_t h = 0; h < heads; ++h) {
      float* to = w.queries + ((row - task.first_row) * heads + h) * w.width;
      const int64_t from =
          row * a.q_row_stride + (task.kv_head * heads + h) * a.q_head_stride;
      for (int64_t step = 0; step < w.steps; step += LANES)
        store(to + step, w.steps_at(Dtype(a.dtype), a.q, from, step));
    }
}

void store_rows(const Attention& a, const QueryTile& task, const Workspace& w) {
  const int64_t heads = a.heads / a.kv_heads;
  for (int64_t row = task.first_row; row < task.last_row; ++row)
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t index = (row - task.first_row) * heads + h;
      const Floats inverse = splat(1.0f / sum(load(w.lanes + index * LANES)));
      const int64_t to =
          row * a.out_row_stride + (task.kv_head * heads + h) * a.out_head_stride;
      for (int64_t d = 0; d < a.dim; d += LANES)
        store_up_to(Dtype(a.dtype), a.out, to + d, load(w.sums + index * w.width + d) * inverse,
                    a.dim - d);
    }
}

// The first unit that a task meets.
NextUnit first_unit(const Attention& a, const QueryTile& task) {
  const int64_t oldest = first_seen(a, position_of(a, task.sequence, task.first_row));
  const int64_t newest = position_of(a, task.sequence, task.last_row - 1);
  return NextUnit(a, task.sequence, task.kv_head, oldest / UNIT * UNIT, newest + 1);
}

// The rows of one KV head of the task; `then`: what the same thread takes up after it.
void attend_head(const Attention& a, const QueryTile& task, NextUnit then) {
  Workspace w(Dtype(a.dtype), a.dim, task.last_row - task.first_row, a.heads / a.kv_heads);
  load_queries(a, task, w);
  const int64_t newest = position_of(a, task.sequence, task.last_row - 1);
  const int64_t oldest = first_seen(a, position_of(a, task.sequence, task.first_row));
  for (int64_t unit = oldest / UNIT * UNIT; unit <= newest; unit += UNIT) {
    NextUnit next = then;
    if (unit + UNIT <= newest)
      next = NextUnit(a, task.sequence, task.kv_head, unit + UNIT, newest + 1);
    int64_t places[UNIT];
    find_places(a, task, unit, oldest, newest + 1, places);
    const UnitKeys keys = load_unit(a, unit, places, w);
    for (int64_t row = task.first_row; row < task.last_row; ++row) {
      const int64_t position = position_of(a, task.sequence, row);
      const int64_t from = std::max<int64_t>(0, first_seen(a, position) - unit);
      const int64_t to = std::min(UNIT, position + 1 - unit);
      if (from < to)
        meet_unit_all_heads(a, w, keys, places, row - task.first_row, from, to, next);
    }
  }
  store_rows(a, task, w);
}

void attend(const Attention& a, QueryTile task, const QueryTile* after) {
  while (task.kv_head < task.last_kv_head) {
    QueryTile head = task;
    ++task.kv_head;
    const bool last = task.kv_head == task.last_kv_head;
    attend_head(a, head, !last ? first_unit(a, task) : after != nullptr ? first_unit(a, *after)
                                                                        : NextUnit());
  }
}

// Whether every block that the sequence uses lies in the cache.
inline bool within_cache(const Attention& a, int64_t sequence) {
  const int64_t blocks = a.side / (a.kv_heads * a.block_size * a.dim);
  const int64_t used = (a.context[sequence] + a.block_size - 1) / a.block_size;
  const int64_t rows = a.query_start[sequence + 1] - a.query_start[sequence];
  if (rows < 0 || rows > a.context[sequence] || used > a.table_stride) return false;
  for (int64_t i = 0; i < used; ++i) {
    const int32_t block = a.block_tables[sequence * a.table_stride + i];
    if (block < 0 || block >= blocks) return false;
  }
  return true;
}

// Multiply-adds in vectors, roughly: what a task costs.
inline int64_t cost_of(const Attention& a, const QueryTile& task) {
  const int64_t newest = position_of(a, task.sequence, task.last_row - 1) + 1;
  const int64_t seen = a.window > 0 ? std::min(newest, a.window + UNIT) : newest;
  const int64_t rows_heads = (task.last_row - task.first_row) * (a.heads / a.kv_heads);
  const int64_t kv_heads = task.last_kv_head - task.kv_head;
  return kv_heads * seen * (rows_heads + 4) * 2 * (padded(a.dim) / LANES);
}

}  // namespace tsugiki

using namespace tsugiki;

// Returns 0, or 1 when a block table, a context or a row count points outside the cache.
extern "C" int32_t tsugiki_paged_attention(const Attention* attention) {
  const Attention& a = *attention;
  for (int64_t s = 0; s < a.sequences; ++s)
    if (!within_cache(a, s)) return 1;
  std::vector<QueryTile> tasks;
  const int64_t at_once = a.sequences >= 4 * a.threads ? a.kv_heads : 1;
  int64_t cost = 0;
  for (int64_t s = 0; s < a.sequences; ++s)
    for (int64_t row = a.query_start[s]; row < a.query_start[s + 1]; row += ROWS_PER_TASK)
      for (int64_t h = 0; h < a.kv_heads; h += at_once) {
        const int64_t last = std::min<int64_t>(row + ROWS_PER_TASK, a.query_start[s + 1]);
        tasks.push_back({s, h, h + at_once, row, last});
        cost += cost_of(a, tasks.back());
      }
  const int64_t count = int64_t(tasks.size());
  parallel_for(count, a.threads, cost >= FORK_FROM, [&](int64_t i) {
    attend(a, tasks[i], i + a.threads < count ? &tasks[i + a.threads] : nullptr);
  });
  return 0;
}

// Returns 0, or 1 when a slot lies outside the cache; then nothing is written.
extern "C" int32_t tsugiki_write_kv(const KeyValueRows* rows) {
  const KeyValueRows& r = *rows;
  const int64_t places = r.side / (r.kv_heads * r.dim);
  for (int64_t i = 0; i < r.rows; ++i)
    if (r.slots[i] < 0 || r.slots[i] >= places) return 1;
  const int64_t size = dtype_size(Dtype(r.dtype)), bytes = r.dim * size;
  const int64_t per_step = dims_per_step(Dtype(r.dtype), r.dim);
  for (int64_t i = 0; i < r.rows; ++i) {
    const int64_t block = r.slots[i] / r.block_size, place = r.slots[i] % r.block_size;
    for (int64_t h = 0; h < r.kv_heads; ++h) {
      const int64_t first = (block * r.kv_heads + h) * r.block_size * r.dim;
      const char* k = (const char*)r.k + (i * r.k_row_stride + h * r.k_head_stride) * size;
      const char* v = (const char*)r.v + (i * r.v_row_stride + h * r.v_head_stride) * size;
      for (int64_t d = 0; d < r.dim; d += per_step)
        std::memcpy((char*)r.cache + (first + d * r.block_size + place * per_step) * size,
                    k + d * size, per_step * size);
      std::memcpy((char*)r.cache + (r.side + first + place * r.dim) * size, v, bytes);
    }
  }
  return 0;
}
