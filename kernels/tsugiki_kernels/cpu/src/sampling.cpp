// From logits to tokens: the likeliest, or one drawn by inverse transform among those that top_k,
// top_p and min_p leave.
//
// What the filters leave of a row is always "all tokens at least this likely". So nothing is sorted:
// the threshold is found by bisecting the bits of a float, which for positive floats are in the order
// of their values, and each look is one pass over probabilities that lie in the second-level cache.
// All sums have one fixed order per row, so a row's token does not depend on the others.

#include <functional>

#include "logits.h"

namespace tsugiki {

struct Sampling {
  Logits logits;
  const float* temperature;  // [count] each; 0: the likeliest token
  const int64_t* top_k;      // 0: all
  const float* top_p;
  const float* min_p;
  const double* point;  // in [0, 1)
  int64_t* tokens;      // out; -1: the row has no finite largest logit
};

constexpr int64_t SORT_FROM = 256;  // candidates that are sorted rather than bisected further

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

int64_t passes_of(const Sampling& s) {
  int64_t passes = 0;
  for (int64_t i = 0; i < s.logits.count; ++i) passes += s.temperature[i] == 0.0f ? 1 : 10;
  return passes;
}

}  // namespace tsugiki

using namespace tsugiki;

extern "C" void tsugiki_sample(const Sampling* sampling) {
  const Sampling& s = *sampling;
  for_each_logit_row(s.logits, passes_of(s), [&](int64_t i) {
    if (s.logits.dtype == BFLOAT16)
      s.tokens[i] = sample_row<BFLOAT16>(s, i);
    else if (s.logits.dtype == FLOAT16)
      s.tokens[i] = sample_row<FLOAT16>(s, i);
    else
      s.tokens[i] = sample_row<FLOAT32>(s, i);
  });
}
