// A packed matrix times up to eight rows of a step: D[16 TILES outputs, 8 rows], in one warp.
//
// Lane 4 g + t keeps the outputs 2 TILES g .. 2 TILES (g + 1) - 1 of rows 2 t and 2 t + 1, so that
// one or two lanes' outputs of a row are 16 neighbouring bytes. The matrix is packed in the order in
// which the lanes consume it (cuda/fragments.py): of each 16 x 16 tile a lane loads its eight values
// at once. Rows are columns of the b operand: the bits of a row depend on that row alone, whether it
// comes alone or with seven others.
#pragma once

#include "tile_mma.cuh"

constexpr int32_t ROWS_AT_ONCE = 8;

// Up to eight rows of a step. Rows beyond `rows` and columns beyond `width` read as zeros.
template <class T>
struct RowTile {
  const T* first;
  int64_t stride;
  int32_t rows, width;

  // Eight columns of the row that is the lane's column of b.
  DEVICE Eight<T> load(int32_t column) const {
    const int32_t row = threadIdx.x % WARP / 4;
    if (row >= rows || column >= width) return zero_eight<T>();
    return load_up_to(first + row * stride + column, width - column);
  }
};

template <class T, int32_t TILES>
struct TileProduct {
  float sums[TILES][4];  // output 0 of rows 2 t, 2 t + 1, then output 1

  DEVICE void clear() {
#pragma unroll
    for (int32_t tile = 0; tile < TILES; ++tile)
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) sums[tile][i] = 0.0f;
  }

  DEVICE void multiply(const Eight<T> (&matrix)[TILES], const Four<T>& x) {
#pragma unroll
    for (int32_t tile = 0; tile < TILES; ++tile) multiply_tile(sums[tile], matrix[tile], x);
  }

  // Where the lane's four floats begin in [8, stride], from `column` on.
  DEVICE static int32_t floats_place(int32_t stride, int32_t column) {
    return threadIdx.x % WARP / 4 * stride + column;
  }

  // Against floats in shared memory, [8, stride]: the lane's slots are four from `column`. A float is
  // taken as the sum of two T, which costs no precision that counts.
  DEVICE void multiply_floats(const Eight<T> (&matrix)[TILES], const float* floats, int32_t stride,
                              int32_t column) {
    const float4 value = *reinterpret_cast<const float4*>(floats + floats_place(stride, column));
    float values[4] = {value.x, value.y, value.z, value.w};
    const Four<T> rounded = pack_four<T>(values);
    if constexpr (sizeof(T) == 2) {
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) values[i] -= value_at(rounded, i);
      multiply(matrix, pack_four<T>(values));
    }
    multiply(matrix, rounded);
  }

  // The lane's outputs of row 2 t + side.
  DEVICE void outputs(int32_t side, float (&values)[2 * TILES]) const {
#pragma unroll
    for (int32_t tile = 0; tile < TILES; ++tile) {
      values[2 * tile] = side == 0 ? sums[tile][0] : sums[tile][1];
      values[2 * tile + 1] = side == 0 ? sums[tile][2] : sums[tile][3];
    }
  }
};
