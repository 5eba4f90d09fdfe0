// One bug of every class that the harness exists to find, beside a kernel without any.
//
// Each kernel turns the numbers of a block round and sums a warp's, or does so wrongly: y[i] =
// x[127 - i] + the sum of its warp. Launched with one block of 128 threads unless said otherwise.
#include "prelude.cuh"

constexpr int32_t THREADS = 128;

DEVICE void turn_and_sum(const float* turned, float* y) {
  const float value = turned[THREADS - 1 - threadIdx.x];
  y[threadIdx.x] = value + warp_sum(value);
}

extern "C" __global__ void __launch_bounds__(THREADS) seeded_no_bug(const float* x, float* y) {
  SHARED_ARRAY(float, turned, THREADS);
  turned[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  turn_and_sum(turned, y);
}

extern "C" __global__ void seeded_copied_without_bug(const float* x, float* y) {
  SHARED_ARRAY(float, turned, THREADS);
  if (threadIdx.x < THREADS / 4) copy_async(turned + 4 * threadIdx.x, x + 4 * threadIdx.x);
  copy_async_commit();
  copy_async_wait<0>();
  __syncthreads();
  turn_and_sum(turned, y);
}

extern "C" __global__ void seeded_missing_barrier(const float* x, float* y) {
  SHARED_ARRAY(float, turned, THREADS);
  turned[threadIdx.x] = x[threadIdx.x];
  turn_and_sum(turned, y);
}

extern "C" __global__ void seeded_wait_too_early(const float* x, float* y) {
  SHARED_ARRAY(float, turned, THREADS);
  if (threadIdx.x < THREADS / 4) copy_async(turned + 4 * threadIdx.x, x + 4 * threadIdx.x);
  copy_async_commit();
  copy_async_wait<1>();  // the one group may still be under way
  __syncthreads();
  turn_and_sum(turned, y);
  copy_async_wait<0>();
}

extern "C" __global__ void seeded_uninitialised_tail(const float* x, float* y) {
  SHARED_ARRAY(float, turned, THREADS);
  if (threadIdx.x < THREADS - 1) turned[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  turn_and_sum(turned, y);
}

extern "C" __global__ void seeded_shared_overflow(const float* x, float* y) {
  SHARED_ARRAY(float, turned, THREADS);
  turned[threadIdx.x + 1] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = turned[threadIdx.x + 1];
}

extern "C" __global__ void seeded_global_overflow(const float* x, float* y) {
  y[threadIdx.x] = x[threadIdx.x + 1];
}

extern "C" __global__ void seeded_misaligned_load(const float* x, float* y) {
  const uint4 four = *reinterpret_cast<const uint4*>(x + 1);
  y[threadIdx.x] = __uint_as_float(four.x ^ four.y ^ four.z ^ four.w);
}

extern "C" __global__ void seeded_divergent_shuffle(const float* x, float* y) {
  float value = x[threadIdx.x];
  if (threadIdx.x % WARP < 16) value += __shfl_down_sync(FULL_WARP, value, 8);
  y[threadIdx.x] = value;
}

extern "C" __global__ void seeded_wrong_mask(const float* x, float* y) {
  y[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, x[threadIdx.x], 1);
}

extern "C" __global__ void seeded_early_return(const float* x, float* y) {
  SHARED_ARRAY(float, turned, THREADS);
  if (threadIdx.x == 5) return;
  turned[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = turned[threadIdx.x];
}

extern "C" __global__ void seeded_divergent_barrier(const float* x, float* y) {
  SHARED_ARRAY(float, turned, THREADS);
  turned[threadIdx.x] = x[threadIdx.x];
  if (threadIdx.x < WARP) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  turn_and_sum(turned, y);
}

extern "C" __global__ void seeded_warps_write_one_element(const float* x, float* y) {
  if (threadIdx.x % WARP == 0) y[0] = x[0];
}

// Two blocks.
extern "C" __global__ void seeded_blocks_write_one_element(const float* x, float* y) {
  if (threadIdx.x == 0) y[0] = x[0];
}

extern "C" __global__ void seeded_copy_left_behind(const float* x, float* y) {
  SHARED_ARRAY(float, turned, THREADS);
  copy_async(turned, x);
  y[threadIdx.x] = x[THREADS - 1 - threadIdx.x];
}

extern "C" __global__ void seeded_too_much_shared(const float* x, float* y) {
  SHARED_ARRAY(float, turned, 50000);
  turned[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  turn_and_sum(turned, y);
}
