// A packed matrix times up to eight rows of a step: D[16 TILES outputs, 8 rows], in one warp.
//
// Lane 4 g + t keeps the outputs 2 TILES g .. 2 TILES (g + 1) - 1 of rows 2 t and 2 t + 1, so that
// one or two lanes' outputs of a row are 16 neighbouring bytes. The matrix is packed in the order in
// which the lanes consume it (cuda/fragments.py): of each 16 x 16 tile a lane loads its eight values
// at once and they are the A operand of mma.m16n8k16, whose columns may stand in any order as long
// as the other operand's do too. Rows are the columns of the B operand, so the bits of a row depend
// on that row alone, whether it comes alone or with seven others.
#pragma once

#include "eight.cuh"

constexpr int32_t ROWS_AT_ONCE = 8;

// Up to eight rows of a step. Rows beyond `rows` and columns beyond `width` read as zeros.
template <class T>
struct RowTile {
  const T* first;
  int64_t stride;
  int32_t rows, width;

  DEVICE Eight<T> load(int32_t row, int32_t column) const {
    if (row >= rows || column >= width) return zero_eight<T>();
    return load_up_to(first + row * stride + column, width - column);
  }
};

// A lane's eight values of a 16 x 16 tile: outputs (0, 1) by columns (0, 1), then (2, 3), each pair
// of columns for output 0 before output 1.
DEVICE constexpr int32_t fragment_place(int32_t output, int32_t column) {
  return (column / 2) * 4 + output * 2 + column % 2;
}

// On tensor cores.
template <class T, int32_t TILES>
struct TensorProduct {
  static constexpr bool ON_TENSOR_CORES = true;
  float sums[TILES][4];  // output 0 of rows 2 t, 2 t + 1, then output 1

  DEVICE void clear() {
#pragma unroll
    for (int32_t tile = 0; tile < TILES; ++tile)
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) sums[tile][i] = 0.0f;
  }

  DEVICE void multiply(int32_t tile, const Eight<T>& matrix, uint32_t low, uint32_t high) {
    const uint32_t pair[2] = {low, high};
    mma_m16n8k16<T>(sums[tile], matrix.words, pair);
  }

  // Two steps of 16 columns: the lane's are column .. column + 7, four to a step.
  DEVICE void multiply_rows(const Eight<T> (&first)[TILES], const Eight<T> (&second)[TILES],
                            const RowTile<T>& rows, int32_t column) {
    const Eight<T> x = rows.load(threadIdx.x % WARP / 4, column);
#pragma unroll
    for (int32_t tile = 0; tile < TILES; ++tile) {
      multiply(tile, first[tile], x.words[0], x.words[1]);
      multiply(tile, second[tile], x.words[2], x.words[3]);
    }
  }

  // One step against floats in shared memory, [8, stride]: the lane's columns are four from
  // `column`. A float is taken as the sum of two T, which costs no precision that counts.
  DEVICE void multiply_floats(const Eight<T> (&matrix)[TILES], const float* floats, int32_t stride,
                              int32_t column) {
    const float4 value = *reinterpret_cast<const float4*>(
        floats + threadIdx.x % WARP / 4 * stride + column);
    const uint32_t low = pack_floats<T>(value.x, value.y), high = pack_floats<T>(value.z, value.w);
    const uint32_t low_rest =
        pack_floats<T>(value.x - low_float<T>(low), value.y - high_float<T>(low));
    const uint32_t high_rest =
        pack_floats<T>(value.z - low_float<T>(high), value.w - high_float<T>(high));
#pragma unroll
    for (int32_t tile = 0; tile < TILES; ++tile) {
      multiply(tile, matrix[tile], low_rest, high_rest);
      multiply(tile, matrix[tile], low, high);
    }
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

// The same with the ordinary units, for float and for what has no tensor cores. A lane adds up its
// own columns for all eight rows; `outputs` sums over the four lanes that share outputs.
template <class T, int32_t TILES>
struct ScalarProduct {
  static constexpr bool ON_TENSOR_CORES = false;
  float sums[2 * TILES][ROWS_AT_ONCE];

  DEVICE void clear() {
#pragma unroll
    for (int32_t i = 0; i < 2 * TILES; ++i)
#pragma unroll
      for (int32_t row = 0; row < ROWS_AT_ONCE; ++row) sums[i][row] = 0.0f;
  }

  DEVICE void multiply(const Eight<T> (&matrix)[TILES], int32_t row, const float (&x)[4]) {
#pragma unroll
    for (int32_t i = 0; i < 2 * TILES; ++i)
#pragma unroll
      for (int32_t c = 0; c < 4; ++c)
        sums[i][row] =
            fmaf(value_at(matrix[i / 2], fragment_place(i % 2, c)), x[c], sums[i][row]);
  }

  DEVICE void multiply_rows(const Eight<T> (&first)[TILES], const Eight<T> (&second)[TILES],
                            const RowTile<T>& rows, int32_t column) {
#pragma unroll
    for (int32_t row = 0; row < ROWS_AT_ONCE; ++row) {
      if (row >= rows.rows) continue;
      const Eight<T> x = rows.load(row, column);
      const float low[4] = {value_at(x, 0), value_at(x, 1), value_at(x, 2), value_at(x, 3)};
      const float high[4] = {value_at(x, 4), value_at(x, 5), value_at(x, 6), value_at(x, 7)};
      multiply(first, row, low);
      multiply(second, row, high);
    }
  }

  DEVICE void multiply_floats(const Eight<T> (&matrix)[TILES], const float* floats, int32_t stride,
                              int32_t column) {
#pragma unroll
    for (int32_t row = 0; row < ROWS_AT_ONCE; ++row) {
      const float4 value = *reinterpret_cast<const float4*>(floats + row * stride + column);
      const float x[4] = {value.x, value.y, value.z, value.w};
      multiply(matrix, row, x);
    }
  }

  DEVICE void outputs(int32_t side, float (&values)[2 * TILES]) const {
    const int32_t wanted = 2 * (threadIdx.x % 4) + side;
#pragma unroll
    for (int32_t i = 0; i < 2 * TILES; ++i)
#pragma unroll
      for (int32_t row = 0; row < ROWS_AT_ONCE; ++row) {
        float sum = sums[i][row];
        sum += __shfl_xor_sync(FULL_WARP, sum, 1);
        sum += __shfl_xor_sync(FULL_WARP, sum, 2);
        if (row == wanted) values[i] = sum;
      }
  }
};

// What a dtype multiplies with on this architecture.
template <class T, int32_t TILES>
struct ProductOf {
  using type = ScalarProduct<T, TILES>;
};
template <int32_t TILES>
struct ProductOf<f16, TILES> {
  using type = TensorProduct<f16, TILES>;
};
template <bool TENSOR, int32_t TILES>
struct Bfloat16Product {
  using type = ScalarProduct<bf16, TILES>;
};
template <int32_t TILES>
struct Bfloat16Product<true, TILES> {
  using type = TensorProduct<bf16, TILES>;
};
template <int32_t TILES>
struct ProductOf<bf16, TILES> : Bfloat16Product<HAS_BF16_MMA, TILES> {};
template <class T, int32_t TILES>
using Product = typename ProductOf<T, TILES>::type;
