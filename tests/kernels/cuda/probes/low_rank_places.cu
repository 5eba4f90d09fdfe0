// Where the threads of low_rank.cu store and load in shared memory, for test_product_banks.py.

#include "low_rank.cu"

// [side, thread]: two ranks of the lane's row. Block: four warps.
extern "C" __global__ void probe_low_rank_stored(int32_t* out) {
  for (int32_t side = 0; side < 2; ++side) out[side * THREADS + threadIdx.x] = stored_place(side);
}

// [warp, thread]: one rank of the thread's row in the sums of each warp.
extern "C" __global__ void probe_low_rank_loaded(int32_t* out) {
  for (int32_t warp = 0; warp < LOW_RANK_WARPS; ++warp)
    out[warp * THREADS + threadIdx.x] = loaded_place(warp);
}

// [8 row, count / 4]: where four ranks of t are stored.
extern "C" __global__ void probe_low_rank_t_stored(int32_t count, int32_t* out) {
  const int32_t quads = count / 4;
  for (int32_t i = threadIdx.x; i < ROWS_AT_ONCE * quads; i += THREADS)
    out[i] = t_place(i / quads, i % quads * 4);
}

// [lane]: where the four ranks that a lane multiplies are loaded. Block: a warp.
extern "C" __global__ void probe_low_rank_t_loaded(int32_t rank, int32_t* out) {
  out[threadIdx.x] =
      TileProduct<bf16, OUTPUT_TILES>::floats_place(T_STRIDE, rank + threadIdx.x % 4 * 4);
}
