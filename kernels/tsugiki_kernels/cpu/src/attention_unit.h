// One unit of 64 keys against the query heads of one row: scores, online softmax, weighted values.
#pragma once

#include <limits>

#include "attention.h"
#include "exponential.h"

namespace tsugiki {

constexpr int64_t UNIT = 64;           // keys per softmax step
constexpr int64_t GROUPS = UNIT / LANES;
constexpr int64_t HEADS_AT_ONCE = 4;
constexpr float MINUS_INFINITY = -std::numeric_limits<float>::infinity();

struct QueryTile {
  int64_t sequence, kv_head, first_row, last_row;  // rows of the step, last exclusive
};

// Working memory of one task, in floats; a "step" of the head dimension is one float, or one pair of
// bfloat16 dimensions.
struct Workspace {
  int64_t width;   // dim, padded to whole vectors
  bool pairs;      // keys and queries hold bfloat16 pairs
  int64_t steps;   // of the head dimension
  bool values_in_cache;  // not worth rearranging
  float* keys;     // [padded steps, UNIT], transposed
  float* values;   // [UNIT, width]
  float* queries;  // [rows, heads of the group, width]; the first `steps` of each are used
  float* sums;     // [rows, heads of the group, width]: the unnormalised output
  float* lanes;    // [rows, heads, LANES]: the softmax denominators, by lane
  float* maxima;   // [rows, heads]

  Workspace(Dtype dtype, int64_t dim, int64_t rows, int64_t heads)
      : width(padded(dim)),
        pairs(dtype == BFLOAT16 && dim % 2 == 0),
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

// Element index, in the key side of the cache, of the positions [from, to) of the unit beginning at
// `unit`; -1 for its other positions.
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

// Sixteen positions x 16 steps, transposed into keys[step][position]; places of -1 become zero.
inline void transpose_keys(const Attention& a, const Workspace& w, const int64_t* places,
                           int64_t step, float* keys) {
  Half16 block[2][2][8];  // position half, step half
  for (int i = 0; i < LANES; ++i) {
    const Floats row =
        places[i] < 0 ? zeros() : w.steps_at(Dtype(a.dtype), a.cache, places[i], step);
    block[i / 8][0][i % 8] = low(row), block[i / 8][1][i % 8] = high(row);
  }
  for (int half = 0; half < 2; ++half) {
    transpose8(block[half][0]), transpose8(block[half][1]);
    for (int i = 0; i < LANES; ++i)
      std::memcpy(keys + (step + i) * UNIT + half * 8, &block[half][i / 8][i % 8], sizeof(Half16));
  }
}

void load_unit(const Attention& a, const int64_t (&places)[UNIT], Workspace& w) {
  for (int64_t i = 0; i < UNIT && !w.values_in_cache; ++i)
    for (int64_t d = 0; d < w.width && places[i] >= 0; d += LANES)
      store(w.values + i * w.width + d,
            load_up_to(Dtype(a.dtype), a.cache, a.side + places[i] + d, a.dim - d));
  for (int64_t g = 0; g < GROUPS; ++g)
    for (int64_t step = 0; step < w.steps; step += LANES)
      transpose_keys(a, w, places + g * LANES, step, w.keys + g * LANES);
}

template <int HEADS, bool PAIRS>
inline void score(const Attention& a, const Workspace& w, const float* q, float* scores) {
  Floats total[HEADS][GROUPS];
  for (int h = 0; h < HEADS; ++h)
    for (int g = 0; g < GROUPS; ++g) total[h][g] = zeros();
  for (int64_t step = 0; step < w.steps; ++step)
    for (int g = 0; g < GROUPS; ++g) {
      const Floats key = load(w.keys + step * UNIT + g * LANES);
      for (int h = 0; h < HEADS; ++h) {
        const Floats query = splat(q[h * w.width + step]);
        total[h][g] = PAIRS ? fma_pairs(query, key, total[h][g]) : fma(query, key, total[h][g]);
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
                  const float* rescale, int64_t from, int64_t to, int64_t d, float* sums) {
  Floats total[HEADS][VECTORS];
  for (int h = 0; h < HEADS; ++h)
    for (int i = 0; i < VECTORS; ++i)
      total[h][i] = load(sums + h * w.width + d + i * LANES) * splat(rescale[h]);
  for (int64_t k = from; k < to; ++k)
    for (int i = 0; i < VECTORS; ++i) {
      const Floats value = values(k, d + i * LANES);
      for (int h = 0; h < HEADS; ++h)
        total[h][i] = fma(splat(weights[h * UNIT + k]), value, total[h][i]);
    }
  for (int h = 0; h < HEADS; ++h)
    for (int i = 0; i < VECTORS; ++i) store(sums + h * w.width + d + i * LANES, total[h][i]);
}

template <int HEADS, class Values>
inline void weigh_all(const Workspace& w, const Values& values, const float* weights,
                      const float* rescale, int64_t from, int64_t to, float* sums) {
  int64_t d = 0;
  for (; d + 4 * LANES <= w.width; d += 4 * LANES)
    weigh<HEADS, 4>(w, values, weights, rescale, from, to, d, sums);
  for (; d < w.width; d += LANES)
    weigh<HEADS, 1>(w, values, weights, rescale, from, to, d, sums);
}

// One unit for some heads of one row; `index` is the first of them in the workspace.
template <int HEADS>
void meet_unit(const Attention& a, const Workspace& w, const int64_t* places, int64_t index,
               int64_t from, int64_t to) {
  float weights[HEADS * UNIT], rescale[HEADS];
  const float* queries = w.queries + index * w.width;
  if (w.pairs)
    score<HEADS, true>(a, w, queries, weights);
  else
    score<HEADS, false>(a, w, queries, weights);
  for (int h = 0; h < HEADS; ++h)
    rescale[h] = soften(weights + h * UNIT, from, to, w.maxima[index + h],
                        w.lanes + (index + h) * LANES);
  float* sums = w.sums + index * w.width;
  if (w.values_in_cache) {
    const ValuesInCache values{(const uint16_t*)a.cache + a.side, places};
    weigh_all<HEADS>(w, values, weights, rescale, from, to, sums);
  } else {
    const RearrangedValues values{w.values, w.width};
    weigh_all<HEADS>(w, values, weights, rescale, from, to, sums);
  }
}

void meet_unit_all_heads(const Attention& a, const Workspace& w, const int64_t* places,
                         int64_t row_index, int64_t from, int64_t to) {
  const int64_t heads = a.heads / a.kv_heads;
  int64_t h = 0;
  for (; h + HEADS_AT_ONCE <= heads; h += HEADS_AT_ONCE)
    meet_unit<4>(a, w, places, row_index * heads + h, from, to);
  const int64_t index = row_index * heads + h;
  switch (heads - h) {
    case 3: return meet_unit<3>(a, w, places, index, from, to);
    case 2: return meet_unit<2>(a, w, places, index, from, to);
    case 1: return meet_unit<1>(a, w, places, index, from, to);
  }
}

}  // namespace tsugiki
