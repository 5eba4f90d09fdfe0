// Log-probabilities of given tokens and of the likeliest, with ranks.

#include <limits>

#include "logits.h"

namespace tsugiki {

struct Logprobs {
  Logits logits;
  const int64_t* tokens;  // [count]
  float* logprobs;        // out [count]
  int64_t* ranks;         // out [count]
  int64_t width;          // alternatives
  float* top_logprobs;    // out [count, width], descending
  int64_t* top_ids;       // out [count, width]
};

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

}  // namespace tsugiki

using namespace tsugiki;

extern "C" void tsugiki_logprobs(const Logprobs* logprobs) {
  const Logprobs& l = *logprobs;
  for_each_logit_row(l.logits, 5 * l.logits.count, [&](int64_t i) {
    if (l.logits.dtype == BFLOAT16)
      logprobs_row<BFLOAT16>(l, i);
    else if (l.logits.dtype == FLOAT16)
      logprobs_row<FLOAT16>(l, i);
    else
      logprobs_row<FLOAT32>(l, i);
  });
}
