// Sign deltas of many variants in one launch: y += S (signs x) + bias, from one bit per weight.
//
// An item is 64 outputs of one part for up to 64 rows of one variant. The four warps of a block take
// turns over units of 256 columns and their sums are added in the order of the warps, so a row's
// bits depend on the row and the part alone. A bit becomes +1 or -1 in the registers that the tensor
// cores read: one shift and one three-input operation for two weights. With more than eight rows
// a weight that was made is multiplied with 16 of them.

#include "sign.cuh"
#include "work_list.cuh"

constexpr int32_t THREADS = SIGN_WARPS * WARP;
constexpr int32_t GROUP_COLUMNS = 32;
constexpr int32_t WIDE = 2;  // tiles of eight rows that are multiplied at once
constexpr int32_t SUM_STRIDE = SIGN_ROWS + 4;  // rows of sums are 4 banks apart

// Adds what 64 columns contribute to the 64 outputs, for ROW_TILES * 8 rows.
template <class T, int32_t ROW_TILES>
DEVICE void add_word(const uint32_t (&words)[SIGN_TILES], const RowTile<T> (&rows)[ROW_TILES],
                     int32_t column, TileProduct<T, SIGN_TILES> (&products)[ROW_TILES]) {
  Eight<T> first[ROW_TILES], second[ROW_TILES];
#pragma unroll
  for (int32_t i = 0; i < ROW_TILES; ++i) {
    first[i] = rows[i].load(column);
    second[i] = rows[i].load(column + GROUP_COLUMNS);
  }
#pragma unroll
  for (int32_t step = 0; step < 4; ++step) {
    Eight<T> signs[SIGN_TILES];
#pragma unroll
    for (int32_t tile = 0; tile < SIGN_TILES; ++tile)
      signs[tile] = sign_fragment<T>(words[tile], step);
#pragma unroll
    for (int32_t i = 0; i < ROW_TILES; ++i)
      products[i].multiply(signs, interleaved(first[i], second[i], step));
  }
}

// The same for the 256 columns of a unit.
template <class T, int32_t ROW_TILES>
DEVICE void add_unit(const uint4* signs, const RowTile<T> (&rows)[ROW_TILES], int32_t column,
                     TileProduct<T, SIGN_TILES> (&products)[ROW_TILES]) {
  uint4 words[SIGN_TILES];
#pragma unroll
  for (int32_t tile = 0; tile < SIGN_TILES; ++tile)
    words[tile] = load_stream(signs + tile * WARP + threadIdx.x % WARP);
#pragma unroll 2
  for (int32_t i = 0; i < 4; ++i) {  // two at a time: more loads in flight would cost occupancy
    uint32_t word[SIGN_TILES];
#pragma unroll
    for (int32_t tile = 0; tile < SIGN_TILES; ++tile)
      word[tile] = i == 0 ? words[tile].x : i == 1 ? words[tile].y : i == 2 ? words[tile].z
                                                                            : words[tile].w;
    add_word(word, rows, column + i * 2 * GROUP_COLUMNS + threadIdx.x % 4 * 8, products);
  }
}

// A lane stores four of its eight sums of a row in each of two turns, and a thread loads so: which
// four come first is chosen so that eight lanes meet 32 different banks.
DEVICE bool stores_upper(int32_t turn) { return (threadIdx.x % WARP / 4 + turn) % 2; }
DEVICE int32_t stored_place(int32_t side, int32_t turn) {
  const int32_t row = threadIdx.x % 4 * 2 + side, group = threadIdx.x % WARP / 4;
  return row * SUM_STRIDE + 8 * group + 4 * stores_upper(turn);
}
DEVICE bool loads_upper(int32_t turn) { return (threadIdx.x % 8 / 4 + turn) % 2; }
DEVICE int32_t loaded_place(int32_t warp, int32_t turn) {
  const int32_t row = threadIdx.x / 8, group = threadIdx.x % 8;
  return (warp * ROWS_AT_ONCE + row) * SUM_STRIDE + 8 * group + 4 * loads_upper(turn);
}

// Stores the lane's outputs of rows 2 t and 2 t + 1 among the sums of its warp.
template <class T>
DEVICE void store_sums(const TileProduct<T, SIGN_TILES>& product, float* sums) {
#pragma unroll
  for (int32_t side = 0; side < 2; ++side) {
    float values[2 * SIGN_TILES];
    product.outputs(side, values);
#pragma unroll
    for (int32_t turn = 0; turn < 2; ++turn) {
      const bool upper = stores_upper(turn);
      *reinterpret_cast<float4*>(sums + stored_place(side, turn)) =
          make_float4(upper ? values[4] : values[0], upper ? values[5] : values[1],
                      upper ? values[6] : values[2], upper ? values[7] : values[3]);
    }
  }
}

DEVICE float4 sum_of(float4 a, float4 b) {
  return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

// Adds up the warps' sums of eight rows and adds the result into out; 64 threads take eight each.
template <class Out>
DEVICE void add_outputs(const float* sums, const SignPart& part, int32_t first_output, Out* out,
                        int64_t out_stride, int32_t rows) {
  const int32_t row = threadIdx.x / 8, group = threadIdx.x % 8, output = first_output + 8 * group;
  if (row >= rows || output >= part.outputs) return;
  float4 first = make_float4(0.0f, 0.0f, 0.0f, 0.0f), second = first;
#pragma unroll
  for (int32_t warp = 0; warp < SIGN_WARPS; ++warp) {
    first = sum_of(first, *reinterpret_cast<const float4*>(sums + loaded_place(warp, 0)));
    second = sum_of(second, *reinterpret_cast<const float4*>(sums + loaded_place(warp, 1)));
  }
  const bool upper_first = loads_upper(0);
  const float4 lower = upper_first ? second : first, upper = upper_first ? first : second;
  float values[8] = {lower.x, lower.y, lower.z, lower.w, upper.x, upper.y, upper.z, upper.w};
  const int32_t count = min(8, part.outputs - output);
#pragma unroll
  for (int32_t i = 0; i < 8; ++i)
    if (i < count)
      values[i] = fmaf(sign_scale(part, output + i), values[i], bias_at(part.bias, output + i));
  add_up_to(out + row * out_stride + part.offset + output, count, values);
}

// ROW_TILES * 8 rows of an item, from row `first`.
template <class T, class Out, int32_t ROW_TILES>
DEVICE void apply_rows(const SignPart& part, const Item& item, int32_t first, const T* x,
                       int64_t x_stride, Out* out, int64_t out_stride, float* sums) {
  const int32_t warp = threadIdx.x / WARP;
  const int32_t units = (part.inputs + UNIT_COLUMNS - 1) / UNIT_COLUMNS;
  RowTile<T> rows[ROW_TILES];
#pragma unroll
  for (int32_t i = 0; i < ROW_TILES; ++i) {
    const int32_t row = first + i * ROWS_AT_ONCE;
    rows[i] = RowTile<T>{x + (item.start + row) * x_stride, x_stride,
                         min(ROWS_AT_ONCE, item.rows - row), part.inputs};
  }
  float* own_sums = sums + warp * ROWS_AT_ONCE * SUM_STRIDE;
  TileProduct<T, SIGN_TILES> products[ROW_TILES];
#pragma unroll
  for (int32_t i = 0; i < ROW_TILES; ++i) products[i].clear();
#pragma unroll 1
  for (int32_t unit = warp; unit < units; unit += SIGN_WARPS)
    add_unit<T, ROW_TILES>(part.signs + (int64_t{item.tile} * units + unit) * SIGN_TILES * WARP,
                           rows, unit * UNIT_COLUMNS, products);
#pragma unroll
  for (int32_t i = 0; i < ROW_TILES; ++i) {
    store_sums<T>(products[i], own_sums);
    __syncthreads();
    if (threadIdx.x < SIGN_ROWS)
      add_outputs(sums, part, item.tile * SIGN_ROWS,
                  out + (item.start + first + i * ROWS_AT_ONCE) * out_stride, out_stride,
                  rows[i].rows);
    __syncthreads();
  }
}

template <class T, class Out>
DEVICE void apply(const T* x, int64_t x_stride, Out* out, int64_t out_stride,
                  const Segment* segments, int32_t capacity) {
  SHARED_ARRAY(float, sums, SIGN_WARPS * ROWS_AT_ONCE * SUM_STRIDE);
  const int64_t items = segments[capacity].first[0];
  for (int64_t index = blockIdx.x; index < items; index += gridDim.x) {
    const Segment* segment = find_segment(segments, capacity, 0, index);
    const SignPart part = *static_cast<const SignPart*>(segment->part);
    const Item item = item_of(segment, 0, index, (part.outputs + SIGN_ROWS - 1) / SIGN_ROWS);
    for (int32_t row = 0; row < item.rows; row += WIDE * ROWS_AT_ONCE) {
      if (item.rows - row <= ROWS_AT_ONCE)
        apply_rows<T, Out, 1>(part, item, row, x, x_stride, out, out_stride, sums);
      else
        apply_rows<T, Out, WIDE>(part, item, row, x, x_stride, out, out_stride, sums);
    }
  }
}

#define APPLY(NAME, T, Out)                                                                  \
  extern "C" __global__ void __launch_bounds__(THREADS, 1) tsugiki_sign_apply_##NAME(        \
      const T* __restrict__ x, int64_t x_stride, Out* __restrict__ out, int64_t out_stride,  \
      const Segment* __restrict__ segments, int32_t capacity) {                              \
    apply<T, Out>(x, x_stride, out, out_stride, segments, capacity);                         \
  }

APPLY(f16, f16, f16)
APPLY(bf16, bf16, bf16)
APPLY(f32, float, float)
APPLY(f16_f32, f16, float)
APPLY(bf16_f32, bf16, float)
