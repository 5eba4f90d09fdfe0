// Keys and values of new tokens into the paged cache, as attention.cuh says it lies.

#include "eight.cuh"

constexpr int32_t THREADS = 128;

// Grid: rows. A thread takes eight dimensions of a head; values are scattered over the block.
template <class T>
DEVICE void write_kv(const T* k, int64_t k_head, const T* v, int64_t v_head, T* cache, int64_t side,
                     int64_t slot, int32_t kv_heads, int32_t block_size, int32_t dim) {
  const int32_t pieces = dim / 8, place = slot % block_size;
  for (int32_t i = threadIdx.x; i < kv_heads * pieces; i += THREADS) {
    const int32_t head = i / pieces, d = i % pieces * 8;
    T* block = cache + (slot / block_size * kv_heads + head) * block_size * dim;
    store_aligned(block + int64_t{place} * dim + d, load_aligned(k + head * k_head + d));
    const Eight<T> value = load_aligned(v + head * v_head + d);
#pragma unroll
    for (int32_t j = 0; j < 8; ++j)
      block[side + int64_t{d + j} * block_size + place] = from_float<T>(value_at(value, j));
  }
}

#define WRITE(NAME, T)                                                                          \
  extern "C" __global__ void __launch_bounds__(THREADS) tsugiki_write_kv_##NAME(                \
      const T* __restrict__ k, int64_t k_row, int64_t k_head, const T* __restrict__ v,          \
      int64_t v_row, int64_t v_head, T* __restrict__ cache, int64_t side,                       \
      const int64_t* __restrict__ slots, int32_t kv_heads, int32_t block_size, int32_t dim) {   \
    const int64_t row = blockIdx.x;                                                             \
    write_kv(k + row * k_row, k_head, v + row * v_row, v_head, cache, side, slots[row],         \
             kv_heads, block_size, dim);                                                        \
  }

WRITE(f16, f16)
WRITE(bf16, bf16)
WRITE(f32, float)
