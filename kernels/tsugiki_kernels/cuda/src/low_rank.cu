// Low-rank deltas of many variants in two launches: t = x A^T, then y += scale t B^T + bias.
//
// First pass: an item is 16 ranks of one part by one slice of its inputs; the four warps of a block
// share the slice and their sums are added in the order of the warps. Second pass: the slices are
// added in their order, and an item is 256 outputs. Slices depend on the part alone, so a row's
// bits depend on the row and the part alone. Both matrices are read once for up to 64 rows.

#include "low_rank.cuh"
#include "work_list.cuh"

constexpr int32_t THREADS = LOW_RANK_WARPS * WARP;
constexpr int32_t RANKS_AT_ONCE = 128;  // of t in shared memory
// The rows of t are 16 banks apart: the float4 of eight lanes meet 32 different ones.
constexpr int32_t T_STRIDE = RANKS_AT_ONCE + 16;

template <class T>
DEVICE void sum_columns(const LowRankPart& part, int32_t rank_tile, int32_t slice,
                        const RowTile<T>& rows, TileProduct<T, 1>& product) {
  constexpr int32_t GROUPS_AHEAD = sizeof(T) == 2 ? 4 : 1;  // whose loads are under way
  const int32_t warp = threadIdx.x / WARP, lane_column = threadIdx.x % 4 * 8;
  const int32_t groups = (part.inputs + COLUMNS_AT_ONCE - 1) / COLUMNS_AT_ONCE;
  const int32_t slice_groups = part.slice_columns / COLUMNS_AT_ONCE;
  const int32_t first = slice * slice_groups, beyond = first + slice_groups;
  const int32_t last = beyond < groups ? beyond : groups;
#pragma unroll (GROUPS_AHEAD)
  for (int32_t group = first + warp; group < last; group += LOW_RANK_WARPS) {
    const int64_t index = (int64_t{rank_tile} * groups + group) * 2;
    const Eight<T> x = rows.load(group * COLUMNS_AT_ONCE + lane_column);
#pragma unroll
    for (int32_t half = 0; half < 2; ++half) {
      const Eight<T> a[1] = {load_fragment<T>(part.a, index + half)};
      product.multiply(a, half_of(x, half));
    }
  }
}

// Where a warp's sum of a row and a rank stands. Rows 2 t come before rows 2 t + 1, and every other
// two of them swap their halves: lanes that store two ranks or load one meet 32 different banks.
DEVICE constexpr int32_t sum_slot(int32_t row) { return row % 2 * 4 + row / 2; }
DEVICE constexpr int32_t row_in_slot(int32_t slot) { return slot % 4 * 2 + slot / 4; }
DEVICE constexpr int32_t sum_place(int32_t warp, int32_t row, int32_t rank) {
  const int32_t slot = sum_slot(row);
  return (warp * ROWS_AT_ONCE + slot) * RANK_TILE + (rank ^ (slot / 2 % 2 * 8));
}

// Of its own row of sums, which the lane stores, and of all warps', which the thread loads.
DEVICE int32_t stored_place(int32_t side) {
  return sum_place(threadIdx.x / WARP, threadIdx.x % 4 * 2 + side, threadIdx.x % WARP / 4 * 2);
}
DEVICE int32_t loaded_row() { return row_in_slot(threadIdx.x / RANK_TILE); }
DEVICE int32_t loaded_place(int32_t warp) {
  return sum_place(warp, loaded_row(), threadIdx.x % RANK_TILE);
}

// Adds the warps' sums in their order and writes [8 rows, 16 ranks] of t.
template <class T>
DEVICE void write_slice(const TileProduct<T, 1>& product, float* warp_sums, float* t, int32_t ranks,
                        int32_t rows) {
#pragma unroll
  for (int32_t side = 0; side < 2; ++side) {
    float values[2];
    product.outputs(side, values);
    *reinterpret_cast<float2*>(warp_sums + stored_place(side)) = make_float2(values[0], values[1]);
  }
  __syncthreads();
  const int32_t row = loaded_row(), rank = threadIdx.x % RANK_TILE;
  float sum = 0.0f;
#pragma unroll
  for (int32_t from = 0; from < LOW_RANK_WARPS; ++from)
    sum += warp_sums[loaded_place(from)];
  if (row < rows) t[int64_t{row} * ranks + rank] = sum;
  __syncthreads();
}

template <class T>
DEVICE void shrink(const T* x, int64_t x_stride, float* scratch, const Segment* segments,
                   int32_t capacity) {
  SHARED_ARRAY(float, warp_sums, LOW_RANK_WARPS * ROWS_AT_ONCE * RANK_TILE);
  const int64_t items = segments[capacity].first[0];
  for (int64_t index = blockIdx.x; index < items; index += gridDim.x) {
    const Segment* segment = find_segment(segments, capacity, 0, index);
    const LowRankPart part = *static_cast<const LowRankPart*>(segment->part);
    const Item item = item_of(segment, 0, index, part.ranks / RANK_TILE * part.slices);
    const int32_t slice = item.tile % part.slices, rank_tile = item.tile / part.slices;
    for (int32_t row = 0; row < item.rows; row += ROWS_AT_ONCE) {
      const int32_t count = min(ROWS_AT_ONCE, item.rows - row);
      const RowTile<T> rows{x + (item.start + row) * x_stride, x_stride, count, part.inputs};
      TileProduct<T, 1> product;
      product.clear();
      sum_columns<T>(part, rank_tile, slice, rows, product);
      const int64_t place = slice * segment->rows + item.row + row;
      write_slice<T>(product, warp_sums,
                     scratch + segment->scratch + place * part.ranks + rank_tile * RANK_TILE,
                     part.ranks, count);
    }
  }
}

DEVICE int32_t t_place(int32_t row, int32_t rank) { return row * T_STRIDE + rank; }

// Ranks first .. first + count - 1 of t, summed over the slices: [8, T_STRIDE], absent rows zero.
DEVICE void gather_t(const float* t, const LowRankPart& part, int64_t segment_rows, int32_t rows,
                     int32_t first, int32_t count, float* gathered) {
  const int32_t quads = count / 4;
  for (int32_t i = threadIdx.x; i < ROWS_AT_ONCE * quads; i += THREADS) {
    const int32_t row = i / quads, rank = i % quads * 4;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    for (int32_t slice = 0; row < rows && slice < part.slices; ++slice) {
      const float4 value = *reinterpret_cast<const float4*>(
          t + (slice * segment_rows + row) * part.ranks + first + rank);
      sum = make_float4(sum.x + value.x, sum.y + value.y, sum.z + value.z, sum.w + value.w);
    }
    *reinterpret_cast<float4*>(gathered + t_place(row, rank)) = sum;
  }
}

// The warp's outputs of up to eight rows.
template <class T, class Out>
DEVICE void add_outputs(const TileProduct<T, OUTPUT_TILES>& product, const LowRankPart& part,
                        int32_t first_output, Out* out, int64_t out_stride, int32_t rows) {
  const int32_t output = first_output + threadIdx.x % WARP / 4 * 2 * OUTPUT_TILES;
#pragma unroll
  for (int32_t side = 0; side < 2; ++side) {
    float values[8];
    product.outputs(side, values);
    const int32_t row = threadIdx.x % 4 * 2 + side;
    if (row >= rows || output >= part.outputs) continue;
    const int32_t count = min(8, part.outputs - output);
#pragma unroll
    for (int32_t i = 0; i < 8; ++i)
      if (i < count) values[i] = fmaf(part.scale, values[i], bias_at(part.bias, output + i));
    add_up_to(out + row * out_stride + part.offset + output, count, values);
  }
}

template <class T, class Out>
DEVICE void expand(const float* scratch, Out* out, int64_t out_stride, const Segment* segments,
                   int32_t capacity) {
  SHARED_ARRAY(float, t, ROWS_AT_ONCE * T_STRIDE);
  const int32_t warp = threadIdx.x / WARP, lane_column = threadIdx.x % 4 * 4;
  const int64_t items = segments[capacity].first[1];
  for (int64_t index = blockIdx.x; index < items; index += gridDim.x) {
    const Segment* segment = find_segment(segments, capacity, 1, index);
    const LowRankPart part = *static_cast<const LowRankPart*>(segment->part);
    const int32_t groups = (part.outputs + OUTPUT_ROWS - 1) / OUTPUT_ROWS;
    const Item item =
        item_of(segment, 1, index, (groups + LOW_RANK_WARPS - 1) / LOW_RANK_WARPS);
    const int32_t group = item.tile * LOW_RANK_WARPS + warp;
    for (int32_t row = 0; row < item.rows; row += ROWS_AT_ONCE) {
      const int32_t count = min(ROWS_AT_ONCE, item.rows - row);
      const float* from = scratch + segment->scratch + int64_t{item.row + row} * part.ranks;
      TileProduct<T, OUTPUT_TILES> product;
      product.clear();
      for (int32_t first = 0; first < part.ranks; first += RANKS_AT_ONCE) {
        const int32_t ranks = min(RANKS_AT_ONCE, part.ranks - first);
        gather_t(from, part, segment->rows, count, first, ranks, t);
        __syncthreads();
#pragma unroll 1
        for (int32_t rank = 0; group < groups && rank < ranks; rank += RANK_TILE) {
          Eight<T> b[OUTPUT_TILES];
          const int64_t tile = int64_t{group} * (part.ranks / RANK_TILE) + (first + rank) / RANK_TILE;
          load_fragments(part.b, tile * OUTPUT_TILES, b);
          product.multiply_floats(b, t, T_STRIDE, rank + lane_column);
        }
        __syncthreads();
      }
      add_outputs<T, Out>(product, part, group * OUTPUT_ROWS,
                          out + (item.start + row) * out_stride, out_stride, count);
    }
  }
}

#define SHRINK(NAME, T)                                                               \
  extern "C" __global__ void __launch_bounds__(THREADS, 1) tsugiki_low_rank_shrink_##NAME( \
      const T* __restrict__ x, int64_t x_stride, float* __restrict__ scratch,         \
      const Segment* __restrict__ segments, int32_t capacity) {                       \
    shrink<T>(x, x_stride, scratch, segments, capacity);                              \
  }

#define EXPAND(NAME, T, Out)                                                          \
  extern "C" __global__ void __launch_bounds__(THREADS, 1) tsugiki_low_rank_expand_##NAME( \
      const float* __restrict__ scratch, Out* __restrict__ out, int64_t out_stride,   \
      const Segment* __restrict__ segments, int32_t capacity) {                       \
    expand<T, Out>(scratch, out, out_stride, segments, capacity);                     \
  }

SHRINK(f16, f16)
SHRINK(bf16, bf16)
SHRINK(f32, float)
EXPAND(f16, f16, f16)
EXPAND(bf16, bf16, bf16)
EXPAND(f32, float, float)
EXPAND(f16_f32, f16, float)
EXPAND(bf16_f32, bf16, float)
