// Log-probabilities of given tokens and of the likeliest, with ranks.

#include "logits.cuh"

// Grid: rows. top_logprobs, top_ids: [rows, count]; each is found in one pass over the vocabulary.
template <class T>
DEVICE void logprobs(const LogitRow<T>& row, int32_t chosen, int32_t count, float* logprob,
                     int64_t* rank, float* top_logprobs, int64_t* top_ids) {
  SHARED_ARRAY(uint64_t, of_warps, LOGIT_WARPS);
  uint64_t key = largest_key(row, ~uint64_t{0}, of_warps);
  const float top = logit_of(key), own = row.at(chosen);
  uint64_t sum = 0, likelier = 0;
#pragma unroll 1
  for (int32_t token = threadIdx.x; token < row.width; token += LOGIT_THREADS) {
    const float x = row.at(token);
    sum += fixed_of(expf(x - top));
    likelier += x > own;
  }
  const uint64_t total = block_sum(sum, of_warps), before = block_sum(likelier, of_warps);
  const float norm = logf(static_cast<float>(total) * 0x1p-45f);
  if (threadIdx.x == 0) {
    *logprob = (own - top) - norm;
    *rank = static_cast<int64_t>(before) + 1;
  }
#pragma unroll 1
  for (int32_t i = 0; i < count; ++i) {
    if (threadIdx.x == 0) {
      top_logprobs[i] = (logit_of(key) - top) - norm;
      top_ids[i] = token_of(key);
    }
    if (i + 1 < count) key = largest_key(row, key, of_warps);
  }
}

#define LOGPROBS(NAME, T)                                                                      \
  extern "C" __global__ void __launch_bounds__(LOGIT_THREADS) tsugiki_logprobs_##NAME(         \
      const T* __restrict__ logits, int64_t stride, int32_t width,                             \
      const int64_t* __restrict__ rows, const int64_t* __restrict__ token_ids, int32_t count,  \
      float* __restrict__ logprob, int64_t* __restrict__ ranks,                                \
      float* __restrict__ top_logprobs, int64_t* __restrict__ top_ids) {                       \
    const int64_t i = blockIdx.x;                                                              \
    logprobs(LogitRow<T>{logits + rows[i] * stride, width},                                    \
             static_cast<int32_t>(token_ids[i]), count, logprob + i, ranks + i,                \
             top_logprobs + i * count, top_ids + i * count);                                   \
  }

LOGPROBS(f16, f16)
LOGPROBS(bf16, bf16)
LOGPROBS(f32, float)
