// The rotation of one row in shared memory, by a whole block (tsugiki_kernels/hadamard.py): blocks of
// order * power values are multiplied with H_order (x) H_2 (x) ... (x) H_2, without the division by
// the root of the block's width. Doublings come first, eight values of a thread at a time. A row's
// order of sums is that of its width.
#pragma once

#include "eight.cuh"

constexpr int32_t ROTATION_WARPS = 8;
constexpr int32_t ROTATION_THREADS = ROTATION_WARPS * WARP;
constexpr int32_t NEIGHBOURS = 8;  // columns that a thread has at a time; a width is a multiple

struct Rotation {
  const float* matrix;  // [order][order] of +1 and -1; not read when order is 1
  int32_t width;
  int32_t order;
  int32_t power;
};

// Where a column lies: eight columns are left out after 64, so that lanes which are eight blocks of
// eight apart do not meet in one bank. Mirrored by cuda/kernels.py: _rotated_bytes.
DEVICE constexpr int32_t rotated_place(int32_t column) { return column + column / 64 * 8; }

DEVICE void store_neighbours(float* values, int32_t column, const float (&own)[NEIGHBOURS]) {
  float* to = values + rotated_place(column);
  *reinterpret_cast<float4*>(to) = make_float4(own[0], own[1], own[2], own[3]);
  *reinterpret_cast<float4*>(to + 4) = make_float4(own[4], own[5], own[6], own[7]);
}

DEVICE void load_neighbours(const float* values, int32_t column, float (&own)[NEIGHBOURS]) {
  const float* from = values + rotated_place(column);
  const float4 low = *reinterpret_cast<const float4*>(from);
  const float4 high = *reinterpret_cast<const float4*>(from + 4);
  own[0] = low.x, own[1] = low.y, own[2] = low.z, own[3] = low.w;
  own[4] = high.x, own[5] = high.y, own[6] = high.z, own[7] = high.w;
}

// The doublings of COUNT values in registers, as far as `power` goes.
template <int32_t COUNT>
DEVICE void butterflies(float (&own)[COUNT], int32_t power) {
#pragma unroll
  for (int32_t step = 1; step < COUNT; step *= 2) {
    if (step >= power) continue;
#pragma unroll
    for (int32_t i = 0; i < COUNT; ++i) {
      if (i / step % 2 != 0) continue;
      const float first = own[i], second = own[i + step];
      own[i] = first + second;
      own[i + step] = first - second;
    }
  }
}

// The doublings of steps `step`, 2 step, ... below COUNT step.
template <int32_t COUNT>
DEVICE void double_together(float* values, int32_t width, int32_t step) {
  for (int32_t i = threadIdx.x; i < width / COUNT; i += ROTATION_THREADS) {
    const int32_t low = i & (step - 1), first = (i - low) * COUNT + low;
    float own[COUNT];
#pragma unroll
    for (int32_t j = 0; j < COUNT; ++j) own[j] = values[rotated_place(first + j * step)];
    butterflies(own, COUNT);
#pragma unroll
    for (int32_t j = 0; j < COUNT; ++j) values[rotated_place(first + j * step)] = own[j];
  }
  __syncthreads();
}

// values[k, p] becomes the sum over m of values[m, p] matrix[m, k]. Threads take neighbours of some
// columns p and all k at a time: nobody else reads those.
DEVICE void multiply_order(float* values, const Rotation& rotation) {
  const int32_t order = rotation.order, power = rotation.power;
  const int32_t count = min(NEIGHBOURS, power), runs = power / count;
  const int32_t at_once = ROTATION_THREADS / order;
  const int32_t k = threadIdx.x % order, own_run = threadIdx.x / order;
  for (int32_t first = 0; first < runs; first += at_once) {
    const int32_t run = first + own_run;
    const bool works = own_run < at_once && run < runs;
    float sums[NEIGHBOURS] = {};
    for (int32_t m = 0; works && m < order; ++m) {
      const float entry = rotation.matrix[m * order + k];
#pragma unroll
      for (int32_t i = 0; i < NEIGHBOURS; ++i)
        if (i < count)
          sums[i] = fmaf(entry, values[rotated_place(m * power + run * count + i)], sums[i]);
    }
    __syncthreads();
#pragma unroll
    for (int32_t i = 0; i < NEIGHBOURS; ++i)
      if (works && i < count) values[rotated_place(k * power + run * count + i)] = sums[i];
    __syncthreads();
  }
}

// The rest of a row's rotation once all threads have stored their neighbours after `butterflies`.
DEVICE void finish_rotation(float* values, const Rotation& rotation) {
  __syncthreads();
  const int32_t width = rotation.width, power = rotation.power;
  for (int32_t step = NEIGHBOURS; step < power; step *= NEIGHBOURS) {
    if (step * 4 < power)
      double_together<8>(values, width, step);
    else if (step * 2 < power)
      double_together<4>(values, width, step);
    else
      double_together<2>(values, width, step);
  }
  if (rotation.order > 1) multiply_order(values, rotation);
}
