// What every kernel source includes first, and the only way to anything that is not plain C++.
//
// Owns: integer names, the 16-bit storage types and their conversions, shared memory, reductions of
// a warp. Needs no header of NVIDIA's: NVRTC compiles it on a machine with nothing but a driver.
// Inline assembly lives in instructions.cuh. With HOST_SHIM defined the same kernel is C++ for the
// CPU (tests/kernels/cuda/shim), where one fiber plays each thread.
//
// Rules for kernels: fmaf where a product is added (CPU and GPU then round alike), no atomics on
// floats, no printf, lengths int32_t, offsets int64_t, no sizeof of a shared array.
#pragma once

#ifdef HOST_SHIM
#include "host_shim.h"
#else
#ifdef __CUDACC_RTC__  // NVRTC has neither <cstdint> nor <cmath>
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long int64_t;
typedef unsigned long uint64_t;
#define INFINITY __int_as_float(0x7f800000)
#else
#include <cmath>
#include <cstdint>
#endif
#define DEVICE __device__ __forceinline__
#endif

constexpr uint32_t FULL_WARP = 0xffffffffu;
constexpr int32_t WARP = 32;

// Storage of activations and weights; arithmetic is float.
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

#ifndef HOST_SHIM
#include "instructions.cuh"

// T name[count] in shared memory, aligned to 16 bytes. At function scope; uninitialised.
#define SHARED_ARRAY(T, name, count)                  \
  __shared__ __align__(16) T name##_storage[(count)]; \
  T* const name = name##_storage

extern __shared__ __align__(16) unsigned char tsugiki_dynamic_shared[];
// T* name: the shared memory whose size the launch gives (shared_bytes), aligned to 16 bytes.
#define DYN_SHARED(T, name) T* const name = reinterpret_cast<T*>(tsugiki_dynamic_shared)
#endif

DEVICE float to_float(float value) { return value; }
DEVICE float to_float(bf16 value) { return __uint_as_float(uint32_t{value.bits} << 16); }
DEVICE float to_float(f16 value) { return float_of_f16(value.bits); }

// Rounds to nearest, ties to even. from_float<bf16>(x), from_float<f16>(x), from_float<float>(x).
template <class T>
DEVICE T from_float(float value);
template <>
DEVICE float from_float<float>(float value) {
  return value;
}
template <>
DEVICE bf16 from_float<bf16>(float value) {
  return bf16{bf16_of_float(value)};
}
template <>
DEVICE f16 from_float<f16>(float value) {
  return f16{f16_of_float(value)};
}

// Two neighbours in one word; `low` is the first in memory.
template <class T>
DEVICE float low_float(uint32_t pair) {
  return to_float(T{static_cast<uint16_t>(pair)});
}
template <class T>
DEVICE float high_float(uint32_t pair) {
  return to_float(T{static_cast<uint16_t>(pair >> 16)});
}
template <>
DEVICE float high_float<bf16>(uint32_t pair) {
  return __uint_as_float(pair & 0xffff0000u);
}
template <class T>
DEVICE uint32_t pack_floats(float low, float high);
template <>
DEVICE uint32_t pack_floats<bf16>(float low, float high) {
  return bf16_pair_of_floats(low, high);
}
template <>
DEVICE uint32_t pack_floats<f16>(float low, float high) {
  return f16_pair_of_floats(low, high);
}

// Every lane gets the sum over the warp, always added in the same order. All lanes must call.
DEVICE float warp_sum(float value) {
#pragma unroll
  for (int32_t step = WARP / 2; step > 0; step >>= 1)
    value += __shfl_xor_sync(FULL_WARP, value, step);
  return value;
}

DEVICE float warp_max(float value) {
#pragma unroll
  for (int32_t step = WARP / 2; step > 0; step >>= 1)
    value = fmaxf(value, __shfl_xor_sync(FULL_WARP, value, step));
  return value;
}
