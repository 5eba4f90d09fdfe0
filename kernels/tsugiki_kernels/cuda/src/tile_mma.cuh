// d (16 x 8) += a (16 x 16) b (16 x 8) in one warp, for every activation dtype.
//
// Lane 4 g + t holds eight values of a: outputs g and g + 8 by its four slots of the sum, ordered as
// fragment_place says; four values of b: column g by its four slots; and d as mma.m16n8k16 has it.
// Where there are no tensor cores for T the lanes pass the values round.
#pragma once

#include "tile_product.cuh"

// Four neighbouring values: half of eight.
template <class T>
struct Four {
  static constexpr int32_t WORDS = sizeof(T);
  uint32_t words[WORDS];
};

template <class T>
DEVICE Four<T> half_of(const Eight<T>& eight, int32_t half) {
  Four<T> four;
#pragma unroll
  for (int32_t i = 0; i < Four<T>::WORDS; ++i)
    four.words[i] = half == 0 ? eight.words[i] : eight.words[Four<T>::WORDS + i];
  return four;
}

// The a operand whose outputs g and g + 8 are these rows' values.
template <class T>
DEVICE Eight<T> tile_of(const Four<T>& upper, const Four<T>& lower) {
  constexpr int32_t PAIR = Four<T>::WORDS / 2;  // words of two values
  Eight<T> tile;
#pragma unroll
  for (int32_t pair = 0; pair < 2; ++pair)
#pragma unroll
    for (int32_t i = 0; i < PAIR; ++i) {
      tile.words[(2 * pair) * PAIR + i] = upper.words[pair * PAIR + i];
      tile.words[(2 * pair + 1) * PAIR + i] = lower.words[pair * PAIR + i];
    }
  return tile;
}

template <class T>
DEVICE float value_at(const Four<T>& four, int32_t i) {
  const uint32_t pair = four.words[i / 2];
  return i % 2 == 0 ? low_float<T>(pair) : high_float<T>(pair);
}
template <>
DEVICE float value_at<float>(const Four<float>& four, int32_t i) {
  return __uint_as_float(four.words[i]);
}

template <class T>
DEVICE void multiply_tile(float (&d)[4], const Eight<T>& a, const Four<T>& b) {
  if constexpr (Product<T, 1>::ON_TENSOR_CORES) {
    mma_m16n8k16<T>(d, a.words, b.words);
  } else {
    const int32_t lane = threadIdx.x % WARP, group = lane / 4 * 4, column = lane % 4 * 8;
#pragma unroll 1
    for (int32_t owner = 0; owner < 4; ++owner)
#pragma unroll
      for (int32_t slot = 0; slot < 4; ++slot) {
        const float first = __shfl_sync(FULL_WARP, value_at(b, slot), column + owner);
        const float second = __shfl_sync(FULL_WARP, value_at(b, slot), column + 4 + owner);
        const float upper =
            __shfl_sync(FULL_WARP, value_at(a, fragment_place(0, slot)), group + owner);
        const float lower =
            __shfl_sync(FULL_WARP, value_at(a, fragment_place(1, slot)), group + owner);
        d[0] = fmaf(upper, first, d[0]);
        d[1] = fmaf(upper, second, d[1]);
        d[2] = fmaf(lower, first, d[2]);
        d[3] = fmaf(lower, second, d[3]);
      }
  }
}
