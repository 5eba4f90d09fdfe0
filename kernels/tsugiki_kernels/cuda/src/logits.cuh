// Rows of logits, one to a block: reductions over the vocabulary that sampling and log-probabilities
// share.
//
// Weights e^(x - largest) are summed as integers of 2^-45: no order of addition changes a bit, and a
// vocabulary below 2^18 tokens stays below 2^63. What weighs less than 2^-45 of the likeliest counts
// as nothing.
#pragma once

#include "prelude.cuh"

constexpr int32_t LOGIT_WARPS = 16;
constexpr int32_t LOGIT_THREADS = LOGIT_WARPS * WARP;

DEVICE uint64_t fixed_of(float weight) { return static_cast<uint64_t>(weight * 0x1p45f); }

template <class T>
struct LogitRow {
  const T* first;
  int32_t width;

  DEVICE float at(int32_t token) const { return to_float(first[token]); }

  // Larger for larger logits, for the first of equals, and largest for NaN.
  DEVICE uint64_t key(int32_t token) const {
    const float x = at(token) + 0.0f;  // one zero
    const uint32_t bits = x != x ? 0x7fffffffu : __float_as_uint(x);
    const uint32_t ordered = bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
    return uint64_t{ordered} << 32 | (0xffffffffu - static_cast<uint32_t>(token));
  }
};

DEVICE int32_t token_of(uint64_t key) {
  return static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(key));
}

DEVICE float logit_of(uint64_t key) {
  const uint32_t ordered = static_cast<uint32_t>(key >> 32);
  return __uint_as_float(ordered ^ (ordered >> 31 ? 0x80000000u : 0xffffffffu));
}

// Every thread gets the merged values of all. `of_warps`: LOGIT_WARPS of them in shared memory. All
// threads of the block must call.
template <class Merge>
DEVICE uint64_t block_merged(uint64_t value, uint64_t* of_warps, const Merge& merge) {
#pragma unroll
  for (int32_t step = WARP / 2; step > 0; step /= 2)
    value = merge(value, __shfl_xor_sync(FULL_WARP, value, step));
  __syncthreads();  // what was there is read
  if (threadIdx.x % WARP == 0) of_warps[threadIdx.x / WARP] = value;
  __syncthreads();
  uint64_t all = of_warps[0];
#pragma unroll 1
  for (int32_t warp = 1; warp < LOGIT_WARPS; ++warp) all = merge(all, of_warps[warp]);
  return all;
}

DEVICE uint64_t block_sum(uint64_t value, uint64_t* of_warps) {
  return block_merged(value, of_warps, [](uint64_t a, uint64_t b) { return a + b; });
}

DEVICE uint64_t block_max(uint64_t value, uint64_t* of_warps) {
  return block_merged(value, of_warps, [](uint64_t a, uint64_t b) { return a > b ? a : b; });
}

// The largest key below a limit; 0 where there is none.
template <class T>
DEVICE uint64_t largest_key(const LogitRow<T>& row, uint64_t limit, uint64_t* of_warps) {
  uint64_t best = 0;
#pragma unroll 1
  for (int32_t token = threadIdx.x; token < row.width; token += LOGIT_THREADS) {
    const uint64_t key = row.key(token);
    if (key > best && key < limit) best = key;
  }
  return block_max(best, of_warps);
}
