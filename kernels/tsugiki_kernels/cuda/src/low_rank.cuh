// A low-rank part as it lies in a variant's extent. Mirrored by cuda/low_rank.py.
#pragma once

#include "bias.cuh"
#include "tile_product.cuh"

constexpr int32_t LOW_RANK_WARPS = 4;
constexpr int32_t RANK_TILE = 16;     // ranks that one item of the first pass computes
constexpr int32_t OUTPUT_TILES = 4;   // tiles of 16 outputs that a warp of the second pass takes
constexpr int32_t OUTPUT_ROWS = 16 * OUTPUT_TILES;
constexpr int32_t COLUMNS_AT_ONCE = 32;

// y[offset + o] += scale * sum_k B[o, k] (x A^T)[k] + bias[o].
struct LowRankPart {
  const void* a;  // fragments: [ranks / 16][inputs / 32][2][lane][8]
  const void* b;  // fragments: [outputs / 64][ranks / 16][4][lane][8]
  Bias bias;
  int32_t offset, outputs, inputs;
  int32_t ranks;          // a multiple of 16; those beyond the rank are zeros
  int32_t slices;         // of the inputs; each is summed on its own, then all in order
  int32_t slice_columns;  // a multiple of 32
  float scale;
  int32_t unused;
};

template <class T>
DEVICE Eight<T> load_fragment(const void* fragments, int64_t index) {
  const T* first = static_cast<const T*>(fragments);
  return load_aligned(first + (index * WARP + threadIdx.x % WARP) * 8);
}

// TILES fragments that lie side by side.
template <class T, int32_t TILES>
DEVICE void load_fragments(const void* fragments, int64_t index, Eight<T> (&loaded)[TILES]) {
#pragma unroll
  for (int32_t tile = 0; tile < TILES; ++tile)
    loaded[tile] = load_fragment<T>(fragments, index + tile);
}
