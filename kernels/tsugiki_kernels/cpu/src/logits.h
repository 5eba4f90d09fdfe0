// Rows of logits: their largest value, and their weights e^(x - largest), which sampling and
// log-probabilities share. -infinity has weight 0; what is not finite otherwise spoils its row.
#pragma once

#include <cfloat>
#include <cmath>

#include "exponential.h"
#include "step.h"

namespace tsugiki {

struct Logits {
  const void* data;
  int64_t stride;  // elements between rows
  int64_t width;
  int32_t dtype;
  int32_t threads;
  const int64_t* rows;  // [count]: which rows
  int64_t count;
};

constexpr int64_t BLOCK = 512;  // values whose float32 sum is exact enough

template <Dtype DTYPE>
struct Row {
  const void* data;
  int64_t first, width;

  Row(const Logits& l, int64_t i) : data(l.data), first(l.rows[i] * l.stride), width(l.width) {}
  Floats vector(int64_t c) const { return load_as(DTYPE, data, first + c); }
  float value(int64_t c) const {
    if (DTYPE == BFLOAT16) return bf16_to_float(((const uint16_t*)data)[first + c]);
    if (DTYPE == FLOAT16) return f16_to_float(((const uint16_t*)data)[first + c]);
    return ((const float*)data)[first + c];
  }
};

// `value` where x >= threshold, else 0.
inline Floats where_at_least(Floats x, Floats threshold, Floats value) {
#if defined(TSUGIKI_AVX512)
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, threshold.v, _CMP_GE_OQ), value.v)};
#else
  return {(Half16)((Uint8x)value.lo & (Uint8x)(x.lo >= threshold.lo)),
          (Half16)((Uint8x)value.hi & (Uint8x)(x.hi >= threshold.hi))};
#endif
}

struct Likeliest {
  float value;    // NaN when a logit is NaN or +infinity, -FLT_MAX when all are -infinity
  int64_t token;  // the first that has it

  bool usable() const { return value > -FLT_MAX; }
};

// -infinity counts as -FLT_MAX; 0 * x then is NaN for NaN and +infinity alone.
template <Dtype DTYPE>
Likeliest likeliest(const Row<DTYPE>& row) {
  const Floats lowest = splat(-FLT_MAX);
  Floats spoilt = zeros();
  float best = -FLT_MAX;
  int64_t where = 0;
  for (int64_t block = 0; block < row.width; block += BLOCK) {
    const int64_t stop = std::min(row.width, block + BLOCK);
    Floats top = lowest;
    int64_t c = block;
    for (; c + LANES <= stop; c += LANES) {
      const Floats x = max(lowest, row.vector(c));
      spoilt = fma(x, zeros(), spoilt);
      top = max(top, x);
    }
    float in_block = largest(top);
    for (; c < stop; ++c) {
      const float x = row.value(c);
      if (!(x <= FLT_MAX)) return {NAN, 0};
      in_block = std::max(in_block, x);
    }
    if (in_block > best) best = in_block, where = block;
  }
  if (sum(spoilt) != 0.0f) return {NAN, 0};
  if (best == -FLT_MAX) return {best, 0};
  while (row.value(where) != best) ++where;
  return {best, where};
}

// Probabilities of one row, relative to the likeliest; zeros up to a whole block.
struct Weights {
  const float* data;
  int64_t width;  // whole blocks
};

// e^((x - top) / temperature); 0 where that is below e^-87, -infinity above all.
template <Dtype DTYPE>
Weights weights_of(const Row<DTYPE>& row, float top, float temperature) {
  const int64_t width = (row.width + BLOCK - 1) / BLOCK * BLOCK;
  float* to = scratch(ROWS, width);
  const Floats shift = splat(top), scale = splat(1.0f / temperature);
  const Floats smallest = exp_of(splat(-87.0f));
  int64_t c = 0;
  for (; c + LANES <= row.width; c += LANES)
    store(to + c, exp_of((row.vector(c) - shift) * scale) - smallest);
  std::fill(to + c, to + width, 0.0f);
  for (float lanes[LANES]; c < row.width; ++c) {
    store(lanes, exp_of((splat(row.value(c)) - shift) * scale) - smallest);
    to[c] = lanes[0];
  }
  return {to, width};
}

// The weights that are at least as large as a threshold.
struct Above {
  double sum;
  int64_t count;
};

inline double block_sum(const Weights& w, int64_t block, Floats threshold) {
  Floats total[4] = {zeros(), zeros(), zeros(), zeros()};
  for (int64_t c = block; c < block + BLOCK; c += 4 * LANES)
    for (int i = 0; i < 4; ++i) {
      const Floats x = load(w.data + c + i * LANES);
      total[i] = total[i] + where_at_least(x, threshold, x);
    }
  return sum((total[0] + total[1]) + (total[2] + total[3]));
}

inline int64_t block_count(const Weights& w, int64_t block, Floats threshold) {
  Floats total[2] = {zeros(), zeros()};
  for (int64_t c = block; c < block + BLOCK; c += 2 * LANES)
    for (int i = 0; i < 2; ++i)
      total[i] = total[i] + where_at_least(load(w.data + c + i * LANES), threshold, splat(1.0f));
  return int64_t(sum(total[0] + total[1]));
}

inline Above at_least(const Weights& w, float threshold) {
  Above found = {0.0, 0};
  for (int64_t block = 0; block < w.width; block += BLOCK) {
    found.sum += block_sum(w, block, splat(threshold));
    found.count += block_count(w, block, splat(threshold));
  }
  return found;
}

// `passes` over all rows together: about how often a logit is looked at.
template <class Body>
void for_each_logit_row(const Logits& l, int64_t passes, const Body& body) {
  parallel_for(l.count, l.threads, passes * l.width / LANES >= 4 * FORK_FROM, body);
}

}  // namespace tsugiki
