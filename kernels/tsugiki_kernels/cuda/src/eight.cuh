// Eight neighbouring values of a row: one 16-byte load of 16-bit values, two of float.
//
// Owns: guarded and aligned access to rows of any width, stride and alignment.
#pragma once

#include "prelude.cuh"

template <class T>
struct Eight {
  static constexpr int32_t WORDS = 2 * sizeof(T);
  uint32_t words[WORDS];
};

// Value i, which must be known at compile time for the words to stay in registers.
template <class T>
DEVICE float value_at(const Eight<T>& eight, int32_t i) {
  const uint32_t pair = eight.words[i / 2];
  return i % 2 == 0 ? low_float<T>(pair) : high_float<T>(pair);
}
template <>
DEVICE float value_at<float>(const Eight<float>& eight, int32_t i) {
  return __uint_as_float(eight.words[i]);
}

template <class T>
DEVICE Eight<T> pack_eight(const float (&values)[8]) {
  Eight<T> eight;
#pragma unroll
  for (int32_t i = 0; i < 4; ++i) eight.words[i] = pack_floats<T>(values[2 * i], values[2 * i + 1]);
  return eight;
}
template <>
DEVICE Eight<float> pack_eight<float>(const float (&values)[8]) {
  Eight<float> eight;
#pragma unroll
  for (int32_t i = 0; i < 8; ++i) eight.words[i] = __float_as_uint(values[i]);
  return eight;
}

DEVICE bool is_aligned(const void* address) {
  return (reinterpret_cast<uint64_t>(address) & 15u) == 0;
}

template <class T>
DEVICE Eight<T> zero_eight() {
  Eight<T> eight;
#pragma unroll
  for (int32_t i = 0; i < Eight<T>::WORDS; ++i) eight.words[i] = 0;
  return eight;
}

template <class T>
DEVICE Eight<T> load_aligned(const T* from) {
  Eight<T> eight;
#pragma unroll
  for (int32_t i = 0; i < Eight<T>::WORDS; i += 4) {
    const uint4 part = *reinterpret_cast<const uint4*>(reinterpret_cast<const uint32_t*>(from) + i);
    eight.words[i] = part.x;
    eight.words[i + 1] = part.y;
    eight.words[i + 2] = part.z;
    eight.words[i + 3] = part.w;
  }
  return eight;
}

template <class T>
DEVICE void store_aligned(T* to, const Eight<T>& eight) {
#pragma unroll
  for (int32_t i = 0; i < Eight<T>::WORDS; i += 4)
    *reinterpret_cast<uint4*>(reinterpret_cast<uint32_t*>(to) + i) = make_uint4(
        eight.words[i], eight.words[i + 1], eight.words[i + 2], eight.words[i + 3]);
}

// The first `count` values at `from`, zeros after them.
template <class T>
DEVICE Eight<T> load_up_to(const T* from, int32_t count) {
  if (count >= 8 && is_aligned(from)) return load_aligned(from);
  float values[8];
#pragma unroll
  for (int32_t i = 0; i < 8; ++i) values[i] = i < count ? to_float(from[i]) : 0.0f;
  return pack_eight<T>(values);
}

template <class T>
DEVICE void store_up_to(T* to, int32_t count, const float (&values)[8]) {
  if (count >= 8 && is_aligned(to)) {
    store_aligned(to, pack_eight<T>(values));
    return;
  }
#pragma unroll
  for (int32_t i = 0; i < 8; ++i)
    if (i < count) to[i] = from_float<T>(values[i]);
}

// to[i] += values[i], rounded once.
template <class T>
DEVICE void add_up_to(T* to, int32_t count, const float (&values)[8]) {
  const Eight<T> before = load_up_to(to, count);
  float sums[8];
#pragma unroll
  for (int32_t i = 0; i < 8; ++i) sums[i] = value_at(before, i) + values[i];
  store_up_to(to, count, sums);
}
