// Where the threads of sign.cu store and load in shared memory, for test_product_banks.py.

#include "sign.cu"

// [side, turn, lane]: four sums of one of the lane's rows. Block: a warp.
extern "C" __global__ void probe_sign_stored(int32_t* out) {
  for (int32_t i = 0; i < 4; ++i) out[i * WARP + threadIdx.x] = stored_place(i / 2, i % 2);
}

// [warp, turn, thread]: four sums of each warp. Block: two warps.
extern "C" __global__ void probe_sign_loaded(int32_t* out) {
  for (int32_t i = 0; i < 2 * SIGN_WARPS; ++i)
    out[i * SIGN_ROWS + threadIdx.x] = loaded_place(i / 2, i % 2);
}
