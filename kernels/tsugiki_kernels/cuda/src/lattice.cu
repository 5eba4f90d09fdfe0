// A linear on the E8P lattice, for rows that lattice_rotate.cu rotated:
//
//     out[row, o] = scale_o * sum over c of w[o, c] (x U)[row, c] + bias_o
//
// A block takes 32 outputs and eight or 32 rows; its warps share the inputs, and their sums are added
// in their order. A lane decodes eight codes of a row of weights, one after the other, straight into
// the operands of tensor cores: weights are small multiples of 1/4, which f16 holds exactly; the
// rotated rows are sums of two f16. Columns of a product do not meet, so a row's bits depend on the
// row and the weight alone.

#include "lattice.cuh"
#include "rotated.cuh"

constexpr int32_t WARPS = 8;
constexpr int32_t THREADS = WARPS * WARP;
constexpr int32_t OUTPUT_TILES = 2;  // of 16
constexpr int32_t OUTPUTS = 16 * OUTPUT_TILES;
constexpr int32_t SUM_STRIDE = OUTPUTS + 4;  // of rows of sums: lanes store to 32 banks

struct Lattice {
  const uint16_t* codes;
  const void* residual;
  int32_t outputs, groups, bits;
};

struct Rows {
  const uint4* rotated;  // of the first tile of eight
  int32_t count, width;
};

template <int32_t ROW_TILES>
using Sums = float[ROW_TILES][OUTPUT_TILES][4];

template <bool WIDE>
DEVICE Codes codes_of(const Lattice& lattice, const void* stage, int32_t output, int32_t first) {
  const int64_t row = int64_t{min(output, lattice.outputs - 1)} * lattice.groups;
  if constexpr (WIDE)
    return wide_codes(static_cast<const uint16_t*>(stage) + row, first, lattice.groups);
  else
    return narrow_codes(static_cast<const uint8_t*>(stage) + row, first, lattice.groups);
}

// Both operands of two products that cover 32 columns: a lane's eight of two outputs.
template <bool WIDE>
DEVICE void weights_of(const uint32_t* tables, const Codes& upper, const Codes& lower, int32_t step,
                       uint32_t (&first)[4], uint32_t (&second)[4]) {
  const uint32_t center = WIDE ? f16_pair_of_floats(-64.0f - WIDE_CENTER, -64.0f - WIDE_CENTER)
                               : f16_pair_of_floats(-64.0f - NARROW_CENTER, -64.0f - NARROW_CENTER);
  uint32_t up[4], low[4];
  f16_weights(WIDE ? wide_nibbles(tables, upper, step) : narrow_nibbles(tables, upper, step), center,
              up);
  f16_weights(WIDE ? wide_nibbles(tables, lower, step) : narrow_nibbles(tables, lower, step), center,
              low);
  first[0] = up[0], first[1] = low[0], first[2] = up[1], first[3] = low[1];
  second[0] = up[2], second[1] = low[2], second[2] = up[3], second[3] = low[3];
}

DEVICE void add_products(float (&sums)[4], const uint32_t (&first)[4], const uint32_t (&second)[4],
                         const uint4& x) {
  mma_m16n8k16<f16>(sums, first, {x.x, x.y});
  mma_m16n8k16<f16>(sums, second, {x.z, x.w});
}

// One chunk of 256 columns.
template <bool WIDE, int32_t ROW_TILES>
DEVICE void meet_chunk(const uint32_t* tables, const Lattice& lattice, const void* stage,
                       int32_t first_output, const Rows& rows, int32_t chunk,
                       Sums<ROW_TILES>& sums) {
  const int32_t lane = threadIdx.x % WARP, row = lane / 4;
  const int32_t first = (chunk * CHUNK_COLUMNS + lane % 4 * LANE_COLUMNS) / GROUP;
  Codes codes[OUTPUT_TILES][2];
#pragma unroll
  for (int32_t tile = 0; tile < OUTPUT_TILES; ++tile)
#pragma unroll
    for (int32_t side = 0; side < 2; ++side)
      codes[tile][side] =
          codes_of<WIDE>(lattice, stage, first_output + tile * 16 + side * 8 + row, first);
#pragma unroll
  for (int32_t step = 0; step < STEPS; ++step) {
    uint32_t weights[OUTPUT_TILES][2][4];
#pragma unroll
    for (int32_t tile = 0; tile < OUTPUT_TILES; ++tile)
      weights_of<WIDE>(tables, codes[tile][0], codes[tile][1], step, weights[tile][0],
                       weights[tile][1]);
#pragma unroll
    for (int32_t row_tile = 0; row_tile < ROW_TILES; ++row_tile) {
      if (row_tile * TILE_ROWS >= rows.count) continue;
      const uint4* from = rows.rotated + step_index(row_tile, chunk, step, rows.width) + lane;
      const bool there = row_tile * TILE_ROWS + row < rows.count;
#pragma unroll
      for (int32_t plane = 0; plane < PLANES; ++plane) {
        const uint4 x = there ? from[plane * WARP] : make_uint4(0, 0, 0, 0);
#pragma unroll
        for (int32_t tile = 0; tile < OUTPUT_TILES; ++tile)
          add_products(sums[row_tile][tile], weights[tile][0], weights[tile][1], x);
      }
    }
  }
}

template <bool WIDE, int32_t ROW_TILES>
DEVICE void meet_stage(const uint32_t* tables, const Lattice& lattice, const void* stage,
                       int32_t first_output, const Rows& rows, Sums<ROW_TILES>& sums) {
  const int32_t chunks = chunks_of(rows.width);
#pragma unroll 1
  for (int32_t chunk = threadIdx.x / WARP; chunk < chunks; chunk += WARPS)
    meet_chunk<WIDE, ROW_TILES>(tables, lattice, stage, first_output, rows, chunk, sums);
}

// The warp's share of the sums into shared memory: [warp][row][output].
template <int32_t ROW_TILES>
DEVICE void store_sums(const Sums<ROW_TILES>& sums, float* shared) {
  const int32_t lane = threadIdx.x % WARP;
  float* own = shared + threadIdx.x / WARP * (ROW_TILES * TILE_ROWS * SUM_STRIDE);
#pragma unroll
  for (int32_t row_tile = 0; row_tile < ROW_TILES; ++row_tile)
#pragma unroll
    for (int32_t tile = 0; tile < OUTPUT_TILES; ++tile)
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) {
        const int32_t row = row_tile * TILE_ROWS + lane % 4 * 2 + i % 2;
        own[row * SUM_STRIDE + tile * 16 + i / 2 * 8 + lane / 4] = sums[row_tile][tile][i];
      }
  __syncthreads();
}

template <int32_t ROW_TILES>
DEVICE void multiply_sums(Sums<ROW_TILES>& sums, float factor) {
#pragma unroll
  for (int32_t row_tile = 0; row_tile < ROW_TILES; ++row_tile)
#pragma unroll
    for (int32_t tile = 0; tile < OUTPUT_TILES; ++tile)
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) sums[row_tile][tile][i] *= factor;
}

// The warp's share: `factor` times the first stage and the second.
template <int32_t ROW_TILES>
DEVICE void meet_stages(const uint32_t* tables, const Lattice& lattice, float factor,
                        int32_t first_output, const Rows& rows, Sums<ROW_TILES>& sums) {
  meet_stage<true, ROW_TILES>(tables, lattice, lattice.codes, first_output, rows, sums);
  if (lattice.bits == 2) return;
  multiply_sums<ROW_TILES>(sums, factor);
  if (lattice.bits == 3)
    meet_stage<false, ROW_TILES>(tables, lattice, lattice.residual, first_output, rows, sums);
  else
    meet_stage<true, ROW_TILES>(tables, lattice, lattice.residual, first_output, rows, sums);
}

// What the warps stored of an output and a row, in their order.
template <int32_t ROW_TILES>
DEVICE float whole_sum(const float* shared, int32_t row, int32_t output) {
  float sum = 0.0f;
#pragma unroll
  for (int32_t warp = 0; warp < WARPS; ++warp)
    sum += shared[(warp * (ROW_TILES * TILE_ROWS) + row) * SUM_STRIDE + output];
  return sum;
}

template <class Out, int32_t ROW_TILES>
DEVICE void linear(const uint4* rotated, const float* row_scales, const Lattice& lattice,
                   const uint32_t* tables, const bf16* scales, const float* bias, float factor,
                   Out* out, int64_t out_stride, int32_t rows) {
  SHARED_ARRAY(uint32_t, own_tables, LATTICE_TABLES * ENTRIES);
  SHARED_ARRAY(float, shared, WARPS * ROW_TILES * TILE_ROWS * SUM_STRIDE);
  load_tables(tables, own_tables, THREADS);
  const int32_t first_output = blockIdx.x * OUTPUTS, width = lattice.groups * GROUP;
  const int32_t first_row = blockIdx.y * (ROW_TILES * TILE_ROWS);
  const Rows own{rotated + step_index(blockIdx.y * ROW_TILES, 0, 0, width), rows - first_row, width};
  Sums<ROW_TILES> sums = {};
  meet_stages<ROW_TILES>(own_tables, lattice, factor, first_output, own, sums);
  store_sums<ROW_TILES>(sums, shared);
  const int32_t column = threadIdx.x % OUTPUTS, output = first_output + column;
  if (output >= lattice.outputs) return;
  const float scale = to_float(scales[output]), added = bias == nullptr ? 0.0f : bias[output];
  const int32_t count = min(own.count, ROW_TILES * TILE_ROWS);
  for (int32_t row = threadIdx.x / OUTPUTS; row < count; row += THREADS / OUTPUTS) {
    const float sum = whole_sum<ROW_TILES>(shared, row, column) * row_scales[first_row + row];
    out[(first_row + row) * out_stride + output] = from_float<Out>(fmaf(sum, scale, added));
  }
}

#define LINEAR(NAME, T, ROW_TILES)                                                               \
  extern "C" __global__ void __launch_bounds__(THREADS, 1) tsugiki_lattice_linear_##NAME(        \
      const uint4* __restrict__ rotated, const float* __restrict__ row_scales,                   \
      const uint16_t* __restrict__ codes, const void* __restrict__ residual,                     \
      const uint32_t* __restrict__ tables, const bf16* __restrict__ scales,                      \
      const float* __restrict__ bias, T* __restrict__ out, int64_t out_stride, int32_t outputs,  \
      int32_t groups, int32_t bits, int32_t rows, float factor) {                                \
    linear<T, ROW_TILES>(rotated, row_scales, Lattice{codes, residual, outputs, groups, bits},   \
                         tables, scales, bias, factor, out, out_stride, rows);                   \
  }

LINEAR(8_f16, f16, 1)
LINEAR(8_bf16, bf16, 1)
LINEAR(8_f32, float, 1)
LINEAR(32_f16, f16, 4)
LINEAR(32_bf16, bf16, 4)
LINEAR(32_f32, float, 4)
