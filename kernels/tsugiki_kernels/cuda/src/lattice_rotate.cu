// Rows of x rotated, as two f16 for each value: (x * signs) H norm = scale * (high + low).
//
// A block takes a row. Its scale is a power of two that brings the largest value near 2^14, so that
// high and low keep 22 bits of it, whatever the range of x. They are written in the order in which
// the warps of lattice.cu load them: 32 lanes by eight columns at a time (rotated.cuh).

#include "hadamard.cuh"
#include "rotated.cuh"

// The largest of the block, for all threads.
DEVICE float block_max(float value) {
  SHARED_ARRAY(float, largest, ROTATION_WARPS);
  value = warp_max(value);
  if (threadIdx.x % WARP == 0) largest[threadIdx.x / WARP] = value;
  __syncthreads();
  for (int32_t i = 0; i < ROTATION_WARPS; ++i) value = fmaxf(value, largest[i]);
  return value;
}

// The exponent of `largest` as a float has it, raised to where 2^13 over that power of two and its
// inverse are normal floats.
DEVICE uint32_t kept_exponent(float largest) {
  constexpr uint32_t LEAST = 14;
  const uint32_t found = __float_as_uint(largest) >> 23 & 0xffu;
  return found < LEAST ? LEAST : found;
}

DEVICE void split(float value, uint16_t& high, uint16_t& low) {
  high = f16_of_float(value);
  low = f16_of_float(value - float_of_f16(high));
}

// Eight neighbours, times factor, to their places.
DEVICE void write_rotated(const float (&values)[NEIGHBOURS], float factor, uint4* to) {
  uint32_t high[4], low[4];
#pragma unroll
  for (int32_t i = 0; i < 4; ++i) {
    uint16_t h[2], l[2];
#pragma unroll
    for (int32_t side = 0; side < 2; ++side) split(values[2 * i + side] * factor, h[side], l[side]);
    high[i] = h[0] | uint32_t{h[1]} << 16;
    low[i] = l[0] | uint32_t{l[1]} << 16;
  }
  to[0] = make_uint4(high[0], high[1], high[2], high[3]);
  to[WARP] = make_uint4(low[0], low[1], low[2], low[3]);
}

template <class T>
DEVICE void rotate(const T* x, const float* signs, const Rotation& rotation, float norm,
                   uint4* rotated, float* scales) {
  DYN_SHARED(float, values);
  constexpr int32_t STEP = ROTATION_THREADS * NEIGHBOURS;
  float own[NEIGHBOURS];
  for (int32_t column = threadIdx.x * NEIGHBOURS; column < rotation.width; column += STEP) {
    const Eight<T> eight = load_up_to(x + column, NEIGHBOURS);
#pragma unroll
    for (int32_t i = 0; i < NEIGHBOURS; ++i) own[i] = value_at(eight, i) * signs[column + i];
    butterflies(own, rotation.power);
    store_neighbours(values, column, own);
  }
  finish_rotation(values, rotation);

  float largest = 0.0f;
  for (int32_t column = threadIdx.x * NEIGHBOURS; column < rotation.width; column += STEP) {
    load_neighbours(values, column, own);
#pragma unroll
    for (int32_t i = 0; i < NEIGHBOURS; ++i) largest = fmaxf(largest, fabsf(own[i]));
  }
  const uint32_t exponent = kept_exponent(block_max(largest));
  const float factor = __uint_as_float((267u - exponent) << 23);
  const int32_t padded = chunks_of(rotation.width) * CHUNK_COLUMNS;
  for (int32_t column = threadIdx.x * NEIGHBOURS; column < padded; column += STEP) {
#pragma unroll
    for (int32_t i = 0; i < NEIGHBOURS; ++i) own[i] = 0.0f;
    if (column < rotation.width) load_neighbours(values, column, own);
    write_rotated(own, factor, rotated + rotated_index(blockIdx.x, column, rotation.width));
  }
  if (threadIdx.x == 0) scales[blockIdx.x] = norm * __uint_as_float((exponent - 13u) << 23);
}

#define ROTATE(NAME, T)                                                                          \
  extern "C" __global__ void __launch_bounds__(ROTATION_THREADS, 1) tsugiki_lattice_rotate_##NAME( \
      const T* __restrict__ x, int64_t x_stride, const float* __restrict__ signs,                \
      const float* __restrict__ matrix, uint4* __restrict__ rotated, float* __restrict__ scales, \
      int32_t width, int32_t order, int32_t power, float norm) {                                 \
    rotate(x + blockIdx.x * x_stride, signs, Rotation{matrix, width, order, power}, norm,        \
           rotated, scales);                                                                     \
  }

ROTATE(f16, f16)
ROTATE(bf16, bf16)
ROTATE(f32, float)
