// d (16 x 8) += a (16 x 16) b (16 x 8) in one warp, for every activation dtype.
//
// Lane 4 g + t holds eight values of a: two rows by its four slots of the sum; four values of b: column
// g by its four slots; and d as mma.m16n8k16 has it: columns 2 t, 2 t + 1 of its first row, then of
// its second. Which rows of a matrix the two are, and which of its columns a slot is, is the caller's
// choice. Columns of b do not meet: the bits of one do not depend on the others.
#pragma once

#include "eight.cuh"

template <class T>
constexpr bool ON_TENSOR_CORES = false;
template <>
constexpr bool ON_TENSOR_CORES<f16> = true;
template <>
constexpr bool ON_TENSOR_CORES<bf16> = HAS_BF16_MMA;

// Where a lane's eight values of a stand: slots 0 and 1 of both rows, then slots 2 and 3.
DEVICE constexpr int32_t fragment_place(int32_t row, int32_t slot) {
  return slot / 2 * 4 + row * 2 + slot % 2;
}

// A lane's values of b, or half of eight neighbours.
template <class T>
struct Four {
  static constexpr int32_t WORDS = sizeof(T);
  uint32_t words[WORDS];
};

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
DEVICE Four<T> pack_four(const float (&values)[4]) {
  return Four<T>{pack_floats<T>(values[0], values[1]), pack_floats<T>(values[2], values[3])};
}
template <>
DEVICE Four<float> pack_four<float>(const float (&values)[4]) {
  return Four<float>{__float_as_uint(values[0]), __float_as_uint(values[1]),
                     __float_as_uint(values[2]), __float_as_uint(values[3])};
}

template <class T>
DEVICE Four<T> half_of(const Eight<T>& eight, int32_t half) {
  Four<T> four;
#pragma unroll
  for (int32_t i = 0; i < Four<T>::WORDS; ++i)
    four.words[i] = half == 0 ? eight.words[i] : eight.words[Four<T>::WORDS + i];
  return four;
}

// Values 2 pair and 2 pair + 1 of x, each followed by the same one of y.
template <class T>
DEVICE Four<T> interleaved(const Eight<T>& x, const Eight<T>& y, int32_t pair) {
  return Four<T>{__byte_perm(x.words[pair], y.words[pair], 0x5410),
                 __byte_perm(x.words[pair], y.words[pair], 0x7632)};
}
template <>
DEVICE Four<float> interleaved<float>(const Eight<float>& x, const Eight<float>& y, int32_t pair) {
  return Four<float>{x.words[2 * pair], y.words[2 * pair], x.words[2 * pair + 1],
                     y.words[2 * pair + 1]};
}

// The values of a whose rows are these.
template <class T>
DEVICE Eight<T> tile_of(const Four<T>& upper, const Four<T>& lower) {
  constexpr int32_t PAIR = Four<T>::WORDS / 2;  // words of two values
  Eight<T> tile;
#pragma unroll
  for (int32_t pair = 0; pair < 2; ++pair)
#pragma unroll
    for (int32_t i = 0; i < PAIR; ++i) {
      tile.words[2 * pair * PAIR + i] = upper.words[pair * PAIR + i];
      tile.words[(2 * pair + 1) * PAIR + i] = lower.words[pair * PAIR + i];
    }
  return tile;
}

// Without tensor cores for T the lanes pass their values round.
template <class T>
DEVICE void multiply_by_shuffles(float (&d)[4], const Eight<T>& a, const Four<T>& b) {
  const int32_t lane = threadIdx.x % WARP, rows = lane / 4 * 4, columns = lane % 4 * 8;
#pragma unroll 1
  for (int32_t owner = 0; owner < 4; ++owner)
#pragma unroll
    for (int32_t slot = 0; slot < 4; ++slot) {
      const float first = __shfl_sync(FULL_WARP, value_at(b, slot), columns + owner);
      const float second = __shfl_sync(FULL_WARP, value_at(b, slot), columns + 4 + owner);
      const float upper = __shfl_sync(FULL_WARP, value_at(a, fragment_place(0, slot)), rows + owner);
      const float lower = __shfl_sync(FULL_WARP, value_at(a, fragment_place(1, slot)), rows + owner);
      d[0] = fmaf(upper, first, d[0]);
      d[1] = fmaf(upper, second, d[1]);
      d[2] = fmaf(lower, first, d[2]);
      d[3] = fmaf(lower, second, d[3]);
    }
}

// All lanes of the warp must call.
template <class T>
DEVICE void multiply_tile(float (&d)[4], const Eight<T>& a, const Four<T>& b) {
  if constexpr (ON_TENSOR_CORES<T>)
    mma_m16n8k16<T>(d, a.words, b.words);
  else
    multiply_by_shuffles(d, a, b);
}
