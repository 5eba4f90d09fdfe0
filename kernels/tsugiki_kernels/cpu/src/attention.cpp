// Paged causal attention with an online softmax (Milakov & Gimelshein 2018; FlashAttention's loop).
//
// Keys are taken in units of 64 positions counted from position 0, never from where a chunk or a
// window begins, and a unit that a row does not see leaves its state untouched. So the arithmetic
// of a row depends on its position and its own context only: decode and prefill agree bit by bit.
//
// A task is one KV head and up to 16 rows of one sequence, with all query heads of that KV head.
// It turns each unit of keys and values into float32 once: keys transposed, so that 16 scores are
// one vector and a score is a plain chain over the head dimension; values as they are.

#include "attention.h"

#include <limits>

namespace tsugiki {

constexpr int64_t UNIT = 64;           // keys per softmax step
constexpr int64_t GROUPS = UNIT / LANES;
constexpr int64_t ROWS_PER_TASK = 16;
constexpr int64_t HEADS_AT_ONCE = 4;
constexpr float MINUS_INFINITY = -std::numeric_limits<float>::infinity();

struct Task16 {
  int64_t sequence, kv_head, first_row, last_row;  // rows of the step, last exclusive
};

// e^x for x <= 0: Cody-Waite reduction, degree-6 polynomial, about 1 ulp; below -87 it stays at
// e^-87. exp(0) is exactly 1, which a rescale by an unchanged maximum relies on.
inline Floats exp_of(Floats x) {
  x = max(x, splat(-87.0f));
  const Floats n = round_to_whole(x * splat(1.44269504f));
  Floats r = fma(n, splat(-0.693359375f), x);
  r = fma(n, splat(2.12194440e-4f), r);
  Floats p = splat(1.9875691500e-4f);
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f,
                  5.0000001201e-1f})
    p = fma(p, r, splat(c));
  p = fma(p * r, r, r) + splat(1.0f);
  return p * power_of_two(n);
}

// float32 working memory of one task.
struct Workspace {
  int64_t width;      // dim, padded to whole vectors
  float* keys;        // [width, UNIT], transposed
  float* values;      // [UNIT, width]
  float* queries;     // [rows, heads of the group, width]
  float* sums;        // like queries: the unnormalised output
  float* lanes;       // [rows, heads, LANES]: the softmax denominators, by lane
  float* maxima;      // [rows, heads]

  Workspace(int64_t dim, int64_t rows_heads) : width(padded(dim)) {
    const int64_t floats = 2 * width * UNIT + rows_heads * (2 * width + LANES + 1);
    keys = scratch(ROWS, floats);
    values = keys + width * UNIT;
    queries = values + width * UNIT;
    sums = queries + rows_heads * width;
    lanes = sums + rows_heads * width;
    maxima = lanes + rows_heads * LANES;
    std::fill(sums, lanes + rows_heads * LANES, 0.0f);
    std::fill(maxima, maxima + rows_heads, MINUS_INFINITY);
  }
};

// Element index of position p of a sequence in the key side of the cache.
inline int64_t place_of(const Attention& a, int64_t sequence, int64_t kv_head, int64_t p) {
  const int64_t block = a.block_tables[sequence * a.table_stride + p / a.block_size];
  return ((block * a.kv_heads + kv_head) * a.block_size + p % a.block_size) * a.dim;
}

// Sixteen positions x 16 dimensions, transposed into keys[d][position]. Null rows are zero.
inline void transpose_keys(const Attention& a, const int64_t* places, int64_t d, float* keys) {
  const Dtype dtype = Dtype(a.dtype);
  Half16 block[2][2][8];  // position half, dimension half
  for (int i = 0; i < LANES; ++i) {
    const Floats row =
        places[i] < 0 ? zeros() : load_up_to(dtype, a.cache, places[i] + d, a.dim - d);
    block[i / 8][0][i % 8] = low(row), block[i / 8][1][i % 8] = high(row);
  }
  for (int half = 0; half < 2; ++half) {
    transpose8(block[half][0]), transpose8(block[half][1]);
    for (int i = 0; i < LANES; ++i)
      std::memcpy(keys + (d + i) * UNIT + half * 8, &block[half][i / 8][i % 8], sizeof(Half16));
  }
}

// Positions [from, to) of the unit beginning at `unit`; the rest of the unit becomes zero keys.
void load_unit(const Attention& a, const Task16& task, int64_t unit, int64_t from, int64_t to,
               Workspace& w) {
  int64_t places[UNIT];
  for (int64_t i = 0; i < UNIT; ++i) {
    const int64_t p = unit + i;
    places[i] = p < from || p >= to ? -1 : place_of(a, task.sequence, task.kv_head, p);
    for (int64_t d = 0; d < w.width && places[i] >= 0; d += LANES)
      store(w.values + i * w.width + d,
            load_up_to(Dtype(a.dtype), a.cache, a.side + places[i] + d, a.dim - d));
  }
  for (int64_t g = 0; g < GROUPS; ++g)
    for (int64_t d = 0; d < w.width; d += LANES)
      transpose_keys(a, places + g * LANES, d, w.keys + g * LANES);
}

template <int HEADS>
inline void score(const Attention& a, const Workspace& w, const float* q, float* scores) {
  Floats total[HEADS][GROUPS];
  for (int h = 0; h < HEADS; ++h)
    for (int g = 0; g < GROUPS; ++g) total[h][g] = zeros();
  for (int64_t d = 0; d < a.dim; ++d)
    for (int g = 0; g < GROUPS; ++g) {
      const Floats key = load(w.keys + d * UNIT + g * LANES);
      for (int h = 0; h < HEADS; ++h)
        total[h][g] = fma(splat(q[h * w.width + d]), key, total[h][g]);
    }
  for (int h = 0; h < HEADS; ++h)
    for (int g = 0; g < GROUPS; ++g)
      store(scores + h * UNIT + g * LANES, total[h][g] * splat(a.scale));
}

inline void set_outside(float* unit, int64_t from, int64_t to, float value) {
  std::fill(unit, unit + from, value);
  std::fill(unit + to, unit + UNIT, value);
}

// Turns the scores of places [from, to) into weights, in place; returns what the state so far must
// be multiplied by.
inline float soften(float* scores, int64_t from, int64_t to, float& maximum, float* lanes) {
  set_outside(scores, from, to, MINUS_INFINITY);
  Floats top = load(scores);
  for (int64_t g = 1; g < GROUPS; ++g) top = max(top, load(scores + g * LANES));
  const float before = maximum;
  maximum = std::max(before, largest(top));
  for (int64_t g = 0; g < GROUPS; ++g)
    store(scores + g * LANES, exp_of(load(scores + g * LANES) - splat(maximum)));
  set_outside(scores, from, to, 0.0f);
  float rescale[LANES];
  store(rescale, exp_of(splat(before - maximum)));
  Floats total = load(lanes) * splat(rescale[0]);
  for (int64_t g = 0; g < GROUPS; ++g) total = total + load(scores + g * LANES);
  store(lanes, total);
  return rescale[0];
}

template <int HEADS, int VECTORS>
inline void weigh(const Workspace& w, const float* weights, const float* rescale, int64_t from,
                  int64_t to, int64_t d, float* sums) {
  Floats total[HEADS][VECTORS];
  for (int h = 0; h < HEADS; ++h)
    for (int i = 0; i < VECTORS; ++i)
      total[h][i] = load(sums + h * w.width + d + i * LANES) * splat(rescale[h]);
  for (int64_t k = from; k < to; ++k)
    for (int i = 0; i < VECTORS; ++i) {
      const Floats value = load(w.values + k * w.width + d + i * LANES);
      for (int h = 0; h < HEADS; ++h)
        total[h][i] = fma(splat(weights[h * UNIT + k]), value, total[h][i]);
    }
  for (int h = 0; h < HEADS; ++h)
    for (int i = 0; i < VECTORS; ++i) store(sums + h * w.width + d + i * LANES, total[h][i]);
}

// One unit for some heads of one row; `index` is the first of them in the workspace.
template <int HEADS>
void meet_unit(const Attention& a, const Workspace& w, int64_t index, int64_t from, int64_t to) {
  float weights[HEADS * UNIT], rescale[HEADS];
  score<HEADS>(a, w, w.queries + index * w.width, weights);
  for (int h = 0; h < HEADS; ++h)
    rescale[h] = soften(weights + h * UNIT, from, to, w.maxima[index + h],
                        w.lanes + (index + h) * LANES);
  float* sums = w.sums + index * w.width;
  int64_t d = 0;
  for (; d + 4 * LANES <= w.width; d += 4 * LANES)
    weigh<HEADS, 4>(w, weights, rescale, from, to, d, sums);
  for (; d < w.width; d += LANES) weigh<HEADS, 1>(w, weights, rescale, from, to, d, sums);
}

void meet_unit_all_heads(const Attention& a, const Workspace& w, int64_t row_index, int64_t from,
                         int64_t to) {
  const int64_t heads = a.heads / a.kv_heads;
  int64_t h = 0;
  for (; h + HEADS_AT_ONCE <= heads; h += HEADS_AT_ONCE)
    meet_unit<4>(a, w, row_index * heads + h, from, to);
  const int64_t index = row_index * heads + h;
  switch (heads - h) {
    case 3: return meet_unit<3>(a, w, index, from, to);
    case 2: return meet_unit<2>(a, w, index, from, to);
    case 1: return meet_unit<1>(a, w, index, from, to);
  }
}

// Positions that the row sees: [first, position].
inline int64_t first_seen(const Attention& a, int64_t position) {
  return a.window > 0 ? std::max<int64_t>(0, position - a.window + 1) : 0;
}

inline int64_t position_of(const Attention& a, int64_t sequence, int64_t row) {
  return a.context[sequence] - (a.query_start[sequence + 1] - row);
}

void load_queries(const Attention& a, const Task16& task, Workspace& w) {
  const int64_t heads = a.heads / a.kv_heads;
  for (int64_t row = task.first_row; row < task.last_row; ++row)
    for (int64_t h = 0; h < heads; ++h) {
      float* to = w.queries + ((row - task.first_row) * heads + h) * w.width;
      const int64_t from =
          row * a.q_row_stride + (task.kv_head * heads + h) * a.q_head_stride;
      for (int64_t d = 0; d < a.dim; d += LANES)
        store(to + d, load_up_to(Dtype(a.dtype), a.q, from + d, a.dim - d));
    }
}

void store_rows(const Attention& a, const Task16& task, const Workspace& w) {
  const int64_t heads = a.heads / a.kv_heads;
  for (int64_t row = task.first_row; row < task.last_row; ++row)
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t index = (row - task.first_row) * heads + h;
      const Floats inverse = splat(1.0f / sum(load(w.lanes + index * LANES)));
      const int64_t to = (row * a.heads + task.kv_head * heads + h) * a.dim;
      for (int64_t d = 0; d < a.dim; d += LANES)
        store_up_to(Dtype(a.dtype), a.out, to + d, load(w.sums + index * w.width + d) * inverse,
                    a.dim - d);
    }
}

void attend(const Attention& a, const Task16& task) {
  Workspace w(a.dim, (task.last_row - task.first_row) * (a.heads / a.kv_heads));
  load_queries(a, task, w);
  const int64_t newest = position_of(a, task.sequence, task.last_row - 1);
  const int64_t oldest = first_seen(a, position_of(a, task.sequence, task.first_row));
  for (int64_t unit = oldest / UNIT * UNIT; unit <= newest; unit += UNIT) {
    load_unit(a, task, unit, oldest, newest + 1, w);
    for (int64_t row = task.first_row; row < task.last_row; ++row) {
      const int64_t position = position_of(a, task.sequence, row);
      const int64_t from = std::max<int64_t>(0, first_seen(a, position) - unit);
      const int64_t to = std::min(UNIT, position + 1 - unit);
      if (from < to) meet_unit_all_heads(a, w, row - task.first_row, from, to);
    }
  }
  store_rows(a, task, w);
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
inline int64_t cost_of(const Attention& a, const Task16& task) {
  const int64_t newest = position_of(a, task.sequence, task.last_row - 1) + 1;
  const int64_t seen = a.window > 0 ? std::min(newest, a.window + UNIT) : newest;
  const int64_t rows_heads = (task.last_row - task.first_row) * (a.heads / a.kv_heads);
  return seen * (rows_heads + 4) * 2 * (padded(a.dim) / LANES);
}

}  // namespace tsugiki

using namespace tsugiki;

// Returns 0, or 1 when a block table, a context or a row count points outside the cache.
extern "C" int32_t tsugiki_paged_attention(const Attention* attention) {
  const Attention& a = *attention;
  for (int64_t s = 0; s < a.sequences; ++s)
    if (!within_cache(a, s)) return 1;
  std::vector<Task16> tasks;
  int64_t cost = 0;
  for (int64_t s = 0; s < a.sequences; ++s)
    for (int64_t row = a.query_start[s]; row < a.query_start[s + 1]; row += ROWS_PER_TASK)
      for (int64_t h = 0; h < a.kv_heads; ++h) {
        const int64_t last = std::min<int64_t>(row + ROWS_PER_TASK, a.query_start[s + 1]);
        tasks.push_back({s, h, row, last});
        cost += cost_of(a, tasks.back());
      }
  parallel_for(int64_t(tasks.size()), a.threads, cost >= FORK_FROM,
               [&](int64_t i) { attend(a, tasks[i]); });
  return 0;
}

// Returns 0, or 1 when a slot lies outside the cache; then nothing is written.
extern "C" int32_t tsugiki_write_kv(const KeyValueRows* rows) {
  const KeyValueRows& r = *rows;
  const int64_t places = r.side / (r.kv_heads * r.dim);
  for (int64_t i = 0; i < r.rows; ++i)
    if (r.slots[i] < 0 || r.slots[i] >= places) return 1;
  const int64_t size = dtype_size(Dtype(r.dtype)), bytes = r.dim * size;
  for (int64_t i = 0; i < r.rows; ++i) {
    const int64_t block = r.slots[i] / r.block_size, place = r.slots[i] % r.block_size;
    for (int64_t h = 0; h < r.kv_heads; ++h) {
      const int64_t to = ((block * r.kv_heads + h) * r.block_size + place) * r.dim;
      const int64_t k = i * r.k_row_stride + h * r.k_head_stride;
      const int64_t v = i * r.v_row_stride + h * r.v_head_stride;
      std::memcpy((char*)r.cache + to * size, (const char*)r.k + k * size, bytes);
      std::memcpy((char*)r.cache + (r.side + to) * size, (const char*)r.v + v * size, bytes);
    }
  }
  return 0;
}
