// From logits to tokens: the likeliest, or one drawn by inverse transform among those that top_k,
// top_p and min_p leave; and log-probabilities of tokens.
//
// What the filters leave of a row is always "all tokens at least this likely". So nothing is sorted:
// the threshold is found by bisecting the bits of a float, which for positive floats are in the order
// of their values, and each look is one pass over probabilities that lie in the second-level cache.
// All sums have one fixed order per row, so a row's token does not depend on the others.

#include <cfloat>
#include <cmath>
#include <limits>

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

struct Sampling {
  Logits logits;
  const float* temperature;  // [count] each; 0: the likeliest token
  const int64_t* top_k;      // 0: all
  const float* top_p;
  const float* min_p;
  const double* point;  // in [0, 1)
  int64_t* tokens;      // out; -1: the row has no finite largest logit
};

struct Logprobs {
  Logits logits;
  const int64_t* tokens;  // [count]
  float* logprobs;        // out [count]
  int64_t* ranks;         // out [count]
  int64_t width;          // alternatives
  float* top_logprobs;    // out [count, width], descending
  int64_t* top_ids;       // out [count, width]
};

constexpr int64_t BLOCK = 512;      // values whose float32 sum is exact enough
constexpr int64_t SORT_FROM = 256;  // candidates that are sorted rather than bisected further

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

Above at_least(const Weights& w, float threshold) {
  Above found = {0.0, 0};
  for (int64_t block = 0; block < w.width; block += BLOCK) {
    found.sum += block_sum(w, block, splat(threshold));
    found.count += block_count(w, block, splat(threshold));
  }
  return found;
}

inline uint32_t bits_of(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  return bits;
}

inline float float_of(uint32_t bits) {
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

struct Threshold {
  float value;
  double mass;  // of as many of the largest weights as were enough
};

// Those in [low, high), descending.
std::vector<float> weights_between(const Weights& w, float low, float high) {
  std::vector<float> found;
  for (int64_t c = 0; c < w.width; ++c)
    if (w.data[c] >= low && w.data[c] < high) found.push_back(w.data[c]);
  std::sort(found.begin(), found.end(), std::greater<float>());
  return found;
}

// The largest weight such that those at least as large are `enough` (monotone in both members).
template <class Enough>
Threshold largest_threshold(const Weights& w, const Enough& enough) {
  uint32_t low = 0, high = bits_of(1.0f) + 1;
  Above at_low = at_least(w, 0.0f), at_high = {0.0, 0};
  while (high - low > 1 && at_low.count - at_high.count > SORT_FROM) {
    const uint32_t middle = low + (high - low) / 2;
    const Above at_middle = at_least(w, float_of(middle));
    if (enough(at_middle))
      low = middle, at_low = at_middle;
    else
      high = middle, at_high = at_middle;
  }
  const int64_t left = at_low.count - at_high.count;
  const std::vector<float> between = high - low == 1
                                         ? std::vector<float>(left, float_of(low))
                                         : weights_between(w, float_of(low), float_of(high));
  for (float weight : between) {
    at_high = {at_high.sum + weight, at_high.count + 1};
    if (enough(at_high)) return {weight, at_high.sum};
  }
  return {float_of(low), at_high.sum};
}

// Tokens less likely than this, relative to the likeliest, are left out.
float cutoff(const Weights& w, int64_t top_k, float top_p, float min_p) {
  Threshold kept = {0.0f, -1.0};
  if (top_k > 0 && top_k < w.width)
    kept = largest_threshold(w, [&](const Above& a) { return a.count >= top_k; });
  if (top_p < 1.0f) {
    const double mass = kept.mass < 0.0 ? at_least(w, 0.0f).sum : kept.mass;
    const auto enough = [&](const Above& a) { return a.count > 0 && a.sum >= top_p * mass; };
    kept.value = std::max(kept.value, largest_threshold(w, enough).value);
  }
  return std::max(kept.value, min_p);
}

// In the order of the vocabulary, the token at which the running sum of what is kept exceeds
// `point` of the whole; never one of weight 0.
int64_t draw(const Weights& w, float threshold, double point) {
  const Floats from = splat(threshold);
  const double total = at_least(w, threshold).sum;
  double target = std::min(point * total, total * (1 - 0x1p-32));
  int64_t block = 0;
  for (; block + BLOCK < w.width; block += BLOCK) {
    const double here = block_sum(w, block, from);
    if (here > target) break;
    target -= here;
  }
  // Rounding may leave a rest at a block's end: then it is the next token that is kept, or the last.
  int64_t token = -1;
  for (int64_t c = block; c < w.width && target >= 0.0; ++c)
    if (w.data[c] > 0.0f && w.data[c] >= threshold) token = c, target -= w.data[c];
  return token;
}

template <Dtype DTYPE>
int64_t sample_row(const Sampling& s, int64_t i) {
  const Row<DTYPE> row(s.logits, i);
  const Likeliest top = likeliest(row);
  if (!top.usable()) return -1;
  if (s.temperature[i] == 0.0f) return top.token;
  const Weights w = weights_of(row, top.value, s.temperature[i]);
  return draw(w, cutoff(w, s.top_k[i], s.top_p[i], s.min_p[i]), s.point[i]);
}

// The `count` largest logits seen so far, descending; equal ones in the order of the vocabulary.
struct Best {
  float* values;
  int64_t* tokens;
  int64_t count;

  float worst() const { return values[count - 1]; }
  void take(float value, int64_t token) {
    int64_t at = count - 1;
    for (; at > 0 && values[at - 1] < value; --at)
      values[at] = values[at - 1], tokens[at] = tokens[at - 1];
    values[at] = value, tokens[at] = token;
  }
};

template <Dtype DTYPE>
void find_best(const Row<DTYPE>& row, Best best) {
  std::fill(best.values, best.values + best.count, -std::numeric_limits<float>::infinity());
  std::fill(best.tokens, best.tokens + best.count, int64_t(0));
  for (int64_t block = 0; block < row.width; block += BLOCK) {
    const int64_t stop = std::min(row.width, block + BLOCK);
    Floats top = splat(best.worst());
    int64_t c = block;
    for (; c + LANES <= stop; c += LANES) top = max(top, row.vector(c));
    if (c == stop && largest(top) <= best.worst()) continue;
    for (c = block; c < stop; ++c)
      if (row.value(c) > best.worst()) best.take(row.value(c), c);
  }
}

// How many logits are larger, plus one.
template <Dtype DTYPE>
int64_t rank_of(const Row<DTYPE>& row, float value) {
  int64_t rank = 1, c = 0;
  // at least as large as the next float is larger
  const Floats above = splat(std::nextafter(value, std::numeric_limits<float>::infinity()));
  while (c + LANES <= row.width) {
    Floats ones = zeros();
    const int64_t stop = std::min(row.width - LANES + 1, c + BLOCK);
    for (; c < stop; c += LANES) ones = ones + where_at_least(row.vector(c), above, splat(1.0f));
    rank += int64_t(sum(ones));
  }
  for (; c < row.width; ++c) rank += row.value(c) > value;
  return rank;
}

template <Dtype DTYPE>
void logprobs_row(const Logprobs& l, int64_t i) {
  const Row<DTYPE> row(l.logits, i);
  const float top = likeliest(row).value;
  const double norm = top + std::log(at_least(weights_of(row, top, 1.0f), 0.0f).sum);
  const float chosen = row.value(l.tokens[i]);
  l.logprobs[i] = float(chosen - norm);
  l.ranks[i] = rank_of(row, chosen);
  if (l.width == 0) return;
  const Best best = {l.top_logprobs + i * l.width, l.top_ids + i * l.width, l.width};
  find_best(row, best);
  for (int64_t j = 0; j < l.width; ++j) best.values[j] = float(best.values[j] - norm);
}

// `passes` over all rows together: about how often a logit is looked at.
template <class Body>
void for_each_row(const Logits& l, int64_t passes, const Body& body) {
  parallel_for(l.count, l.threads, passes * l.width / LANES >= 4 * FORK_FROM, body);
}

int64_t passes_of(const Sampling& s) {
  int64_t passes = 0;
  for (int64_t i = 0; i < s.logits.count; ++i) passes += s.temperature[i] == 0.0f ? 1 : 10;
  return passes;
}

}  // namespace tsugiki

using namespace tsugiki;

extern "C" void tsugiki_sample(const Sampling* sampling) {
  const Sampling& s = *sampling;
  for_each_row(s.logits, passes_of(s), [&](int64_t i) {
    if (s.logits.dtype == BFLOAT16)
      s.tokens[i] = sample_row<BFLOAT16>(s, i);
    else if (s.logits.dtype == FLOAT16)
      s.tokens[i] = sample_row<FLOAT16>(s, i);
    else
      s.tokens[i] = sample_row<FLOAT32>(s, i);
  });
}

extern "C" void tsugiki_logprobs(const Logprobs* logprobs) {
  const Logprobs& l = *logprobs;
  for_each_row(l.logits, 5 * l.logits.count, [&](int64_t i) {
    if (l.logits.dtype == BFLOAT16)
      logprobs_row<BFLOAT16>(l, i);
    else if (l.logits.dtype == FLOAT16)
      logprobs_row<FLOAT16>(l, i);
    else
      logprobs_row<FLOAT32>(l, i);
  });
}
