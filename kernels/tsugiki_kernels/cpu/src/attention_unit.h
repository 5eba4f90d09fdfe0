// One unit of 64 keys against the query heads of one row: scores, online softmax, weighted values.
#pragma once

#include <limits>

#include "attention.h"
#include "exponential.h"

namespace tsugiki {

constexpr int64_t UNIT = 64;           // keys per softmax step
constexpr int64_t GROUPS = UNIT / LANES;
constexpr int64_t HEADS_AT_ONCE = 4;
constexpr int LINES_A_STEP = 3;  // of the next unit, for a step of the head dimension or a value
constexpr float MINUS_INFINITY = -std::numeric_limits<float>::infinity();

struct QueryTile {
  int64_t sequence, kv_head, last_kv_head, first_row, last_row;  // "last" is exclusive
};

// Working memory of one task, in floats; a "step" of the head dimension is one float, or one pair of
// bfloat16 dimensions.
struct Workspace {
  int64_t width;   // dim, padded to whole vectors
  bool pairs;      // keys and queries hold bfloat16 pairs
  int64_t steps;   // of the head dimension
  bool values_in_cache;  // not worth rearranging
  float* keys;     // [padded steps, UNIT], when they cannot be read where they lie
  float* values;   // [UNIT, width]
  float* queries;  // [rows, heads of the group, width]; the first `steps` of each are used
  float* sums;     // [rows, heads of the group, width]: the unnormalised output
  float* lanes;    // [rows, heads, LANES]: the softmax denominators, by lane
  float* maxima;   // [rows, heads]

  Workspace(Dtype dtype, int64_t dim, int64_t rows, int64_t heads)
      : width(padded(dim)),
        pairs(dims_per_step(dtype, dim) == 2),
        steps(pairs ? dim / 2 : dim),
        values_in_cache(dtype == BFLOAT16 && dim % LANES == 0 && rows == 1) {
    const int64_t rows_heads = rows * heads;
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

  // Sixteen steps of a key or query of the cache's dtype, from `step` on.
  Floats steps_at(Dtype dtype, const void* from, int64_t index, int64_t step) const {
    if (!pairs) return load_up_to(dtype, from, index + step, steps - step);
    return load_up_to(FLOAT32, (const uint16_t*)from + index, step, steps - step);
  }
};

// Element index, in the value side of the cache, of the positions [from, to) of the unit beginning
// at `unit`; -1 for its other positions.
void find_places(const Attention& a, const QueryTile& task, int64_t unit, int64_t from, int64_t to,
                 int64_t (&places)[UNIT]) {
  std::fill(places, places + UNIT, int64_t(-1));
  const int64_t last = std::min(to, unit + UNIT);
  for (int64_t p = std::max(from, unit); p < last;) {
    const int64_t row = p % a.block_size;
    const int64_t block = a.block_tables[task.sequence * a.table_stride + p / a.block_size];
    const int64_t first = (block * a.kv_heads + task.kv_head) * a.block_size;
    const int64_t stop = std::min(last, p + a.block_size - row);
    for (int64_t i = row; p < stop; ++i, ++p) places[p - unit] = (first + i) * a.dim;
  }
}

// The keys and values of a unit that will be met next, asked for line by line while another one is
// computed: memory answers so many requests at a time, and a load behind a burst of them would wait.
// Into the second-level cache: the first is full of the unit that is computed.
class NextUnit {
 public:
  NextUnit() = default;

  NextUnit(const Attention& a, int64_t sequence, int64_t kv_head, int64_t unit, int64_t stop) {
    const int64_t size = dtype_size(Dtype(a.dtype));
    bytes_ = a.block_size * a.dim * size;
    for (int64_t p = unit; p < std::min(stop, unit + UNIT); p += a.block_size) {
      if (count_ + 2 > PIECES) return;
      const int64_t block = a.block_tables[sequence * a.table_stride + p / a.block_size];
      const char* keys = (const char*)a.cache + (block * a.kv_heads + kv_head) * bytes_;
      pieces_[count_++] = keys;
      pieces_[count_++] = keys + a.side * size;
    }
  }

  void ask_for(int lines) {
    for (; lines > 0 && piece_ < count_; --lines) {
      __builtin_prefetch(pieces_[piece_] + at_, 0, 2);
      if ((at_ += 64) >= bytes_) at_ = 0, ++piece_;
    }
  }

 private:
  static constexpr int PIECES = 2 * UNIT / LANES;
  const char* pieces_[PIECES];
  int count_ = 0, piece_ = 0;
  int64_t bytes_ = 0, at_ = 0;
};

// The keys of a unit, four vectors of 16 positions for each step of the head dimension.
struct UnitKeys {
  const char* groups[GROUPS];
  int64_t stride;  // bytes from one step to the next

  Floats operator()(int64_t group, int64_t step) const {
    return load((const float*)(groups[group] + step * stride));
  }
};

// Keys where they lie: 16 positions of one block are neighbours. Positions that nobody has written
// yet read as anything, a group without a known position as the keys of another one.
UnitKeys keys_in_cache(const Attention& a, const Workspace& w, int64_t unit,
                       const int64_t (&places)[UNIT]) {
  UnitKeys keys;
  const int64_t bytes = w.pairs ? 2 : 4, per_step = w.pairs ? 2 : 1;
  keys.stride = a.block_size * per_step * bytes;
  const char* any = nullptr;
  for (int64_t g = 0; g < GROUPS; ++g) {
    const int64_t* known = std::find_if(places + g * LANES, places + (g + 1) * LANES,
                                        [](int64_t place) { return place >= 0; });
    keys.groups[g] = nullptr;
    if (known == places + (g + 1) * LANES) continue;
    const int64_t block = *known - (unit + (known - places)) % a.block_size * a.dim;
    const int64_t first = block + (unit + g * LANES) % a.block_size * per_step;
    any = keys.groups[g] = (const char*)a.cache + first * bytes;
  }
  for (const char*& group : keys.groups)
    if (group == nullptr) group = any;
  return keys;
}

inline float first_of(Floats a) {
  float lanes[LANES];
  store(lanes, a);
  return lanes[0];
}

// Keys one by one into lanes, for blocks that do not hold whole vectors and for other dtypes.
UnitKeys gathered_keys(const Attention& a, const Workspace& w, int64_t unit,
                       const int64_t (&places)[UNIT]) {
  const Dtype dtype = Dtype(a.dtype);
  for (int64_t i = 0; i < UNIT; ++i) {
    const int64_t place = (unit + i) % a.block_size, block = places[i] - place * a.dim;
    for (int64_t step = 0; step < w.steps; ++step) {
      float* to = w.keys + step * UNIT + i;
      if (places[i] < 0)
        *to = 0.0f;
      else if (w.pairs)
        std::memcpy(to, (const uint16_t*)a.cache + block + (step * a.block_size + place) * 2, 4);
      else
        *to = first_of(load_up_to(dtype, a.cache, block + step * a.block_size + place, 1));
    }
  }
  UnitKeys keys;
  for (int64_t g = 0; g < GROUPS; ++g) keys.groups[g] = (const char*)(w.keys + g * LANES);
  keys.stride = UNIT * sizeof(float);
  return keys;
}

UnitKeys load_unit(const Attention& a, int64_t unit, const int64_t (&places)[UNIT], Workspace& w) {
  for (int64_t i = 0; i < UNIT && !w.values_in_cache; ++i)
    for (int64_t d = 0; d < w.width && places[i] >= 0; d += LANES)
      store(w.values + i * w.width + d,
            load_up_to(Dtype(a.dtype), a.cache, a.side + places[i] + d, a.dim - d));
  const bool whole = a.block_size % LANES == 0 && (w.pairs || a.dtype == FLOAT32);
  return whole ? keys_in_cache(a, w, unit, places) : gathered_keys(a, w, unit, places);
}

template <int HEADS, bool PAIRS>
inline void score(const Attention& a, const Workspace& w, const UnitKeys& keys, const float* q,
                  NextUnit& next, float* scores) {
  Floats total[HEADS][GROUPS];
  for (int h = 0; h < HEADS; ++h)
    for (int g = 0; g < GROUPS; ++g) total[h][g] = zeros();
  for (int64_t step = 0; step < w.steps; ++step) {
    next.ask_for(LINES_A_STEP);
    for (int g = 0; g < GROUPS; ++g) {
      const Floats key = keys(g, step);
      for (int h = 0; h < HEADS; ++h) {
        const Floats query = splat(q[h * w.width + step]);
        total[h][g] = PAIRS ? fma_pairs(query, key, total[h][g]) : fma(query, key, total[h][g]);
      }
    }
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

// The values of a unit: rearranged, or, when only one row reads them, bfloat16 where they lie.
struct RearrangedValues {
  const float* values;
  int64_t width;
  Floats operator()(int64_t k, int64_t d) const { return load(values + k * width + d); }
};
struct ValuesInCache {
  const uint16_t* side;
  const int64_t* places;
  Floats operator()(int64_t k, int64_t d) const { return load_bf16(side + places[k] + d); }
};

template <int HEADS, int VECTORS, class Values>
inline void weigh(const Workspace& w, const Values& values, const float* weights,
                  const float* rescale, int64_t from, int64_t to, int64_t d, NextUnit& next,
                  float* sums) {
  Floats total[HEADS][VECTORS];
  for (int h = 0; h < HEADS; ++h)
    for (int i = 0; i < VECTORS; ++i)
      total[h][i] = load(sums + h * w.width + d + i * LANES) * splat(rescale[h]);
  for (int64_t k = from; k < to; ++k) {
    next.ask_for(LINES_A_STEP);
    for (int i = 0; i < VECTORS; ++i) {
      const Floats value = values(k, d + i * LANES);
      for (int h = 0; h < HEADS; ++h)
        total[h][i] = fma(splat(weights[h * UNIT + k]), value, total[h][i]);
    }
  }
  for (int h = 0; h < HEADS; ++h)
    for (int i = 0; i < VECTORS; ++i) store(sums + h * w.width + d + i * LANES, total[h][i]);
}

template <int HEADS, class Values>
inline void weigh_all(const Workspace& w, const Values& values, const float* weights,
                      const float* rescale, int64_t from, int64_t to, NextUnit& next,
                      float* sums) {
  int64_t d = 0;
  for (; d + 4 * LANES <= w.width; d += 4 * LANES)
    weigh<HEADS, 4>(w, values, weights, rescale, from, to, d, next, sums);
  for (; d < w.width; d += LANES)
    weigh<HEADS, 1>(w, values, weights, rescale, from, to, d, next, sums);
}

// One unit for some heads of one row; `index` is the first of them in the workspace.
template <int HEADS>
void meet_unit(const Attention& a, const Workspace& w, const UnitKeys& keys,
               const int64_t* places, int64_t index, int64_t from, int64_t to, NextUnit& next) {
  float weights[HEADS * UNIT], rescale[HEADS];
  const float* queries = w.queries + index * w.width;
  if (w.pairs)
    score<HEADS, true>(a, w, keys, queries, next, weights);
  else
    score<HEADS, false>(a, w, keys, queries, next, weights);
  for (int h = 0; h < HEADS; ++h)
    rescale[h] = soften(weights + h * UNIT, from, to, w.maxima[index + h],
                        w.lanes + (index + h) * LANES);
  float* sums = w.sums + index * w.width;
  if (w.values_in_cache) {
    const ValuesInCache values{(const uint16_t*)a.cache + a.side, places};
    weigh_all<HEADS>(w, values, weights, rescale, from, to, next, sums);
  } else {
    const RearrangedValues values{w.values, w.width};
    weigh_all<HEADS>(w, values, weights, rescale, from, to, next, sums);
  }
}

void meet_unit_all_heads(const Attention& a, const Workspace& w, const UnitKeys& keys,
                         const int64_t* places, int64_t row_index, int64_t from, int64_t to,
                         NextUnit& next) {
  const int64_t heads = a.heads / a.kv_heads;
  int64_t h = 0;
  for (; h + HEADS_AT_ONCE <= heads; h += HEADS_AT_ONCE)
    meet_unit<4>(a, w, keys, places, row_index * heads + h, from, to, next);
  const int64_t index = row_index * heads + h;
  switch (heads - h) {
    case 3: return meet_unit<3>(a, w, keys, places, index, from, to, next);
    case 2: return meet_unit<2>(a, w, keys, places, index, from, to, next);
    case 1: return meet_unit<1>(a, w, keys, places, index, from, to, next);
  }
}

}  // namespace tsugiki
