// Sparse deltas in tile form without tensor cores: float activations, and bfloat16 on Turing.
//
// The codes lie as tensor cores want them: lane 4 g + t has rows g and g + 8 of four columns of each
// half panel. It multiplies these with up to four tokens, whose columns it shares with the lanes of
// the same t, and four lanes add up at the end. In place of a product of matrices, otherwise as
// sparse_tiles.cu.

#include "column_window.cuh"
#include "sparse_tiles.cuh"
#include "work_list.cuh"

constexpr int32_t TOKENS_AT_ONCE = 4;
using Place = Tokens<float, TOKENS_AT_ONCE>;

struct LaneSums {
  float of[2][TOKENS_AT_ONCE];  // rows g and g + 8
};

// Panel `panel` of a tile, and the words of a lane that hold it.
template <int32_t BITS>
DEVICE void add_panel(const TileGroup& tile, int32_t panel, float zero,
                      const SwizzledColumns& window, const Place* places, LaneSums& sums) {
  const int32_t group_row = threadIdx.x % WARP / 4, lane_column = threadIdx.x % 4 * 2;
#pragma unroll
  for (int32_t i = 0; i < 8; ++i) {
    const int32_t kept = panel * PANEL + i / 4 * 16 + i / 2 % 2 * 8 + lane_column + i % 2;
    const uint32_t column = kept < tile.kept ? tile.columns[kept] : ~0u;
    const uint32_t place = min(column - window.first, static_cast<uint32_t>(window.columns()));
    const Place x = load_words(places + SwizzledColumns::place(place));
#pragma unroll
    for (int32_t lower = 0; lower < 2; ++lower) {
      const float value =
          code_at<BITS>(tile.codes, tile.words, kept, group_row + 8 * lower) - zero;
#pragma unroll
      for (int32_t token = 0; token < TOKENS_AT_ONCE; ++token)
        sums.of[lower][token] = fmaf(value, x.value(token), sums.of[lower][token]);
    }
  }
}

template <int32_t BITS>
DEVICE void add_window(const SparsePart& part, int32_t group, const SwizzledColumns& window,
                       const Place* places, LaneSums& sums) {
  const TileGroup tile = tile_group<BITS>(part, group);
  const PanelRange panels = panels_in(tile, window.first, window.columns(), part.inputs);
#pragma unroll 1
  for (int32_t panel = panels.first; panel < panels.last; ++panel)
    add_panel<BITS>(tile, panel, part.zero, window, places, sums);
}

DEVICE void add_window_of(const SparsePart& part, int32_t group, const SwizzledColumns& window,
                          const Place* places, LaneSums& sums) {
  switch (part.bits) {
    case 1: return add_window<1>(part, group, window, places, sums);
    case 2: return add_window<2>(part, group, window, places, sums);
    case 4: return add_window<4>(part, group, window, places, sums);
    default: return add_window<8>(part, group, window, places, sums);
  }
}

// Lane 4 g + t adds token t of both rows.
template <class T>
DEVICE void add_tile(LaneSums sums, const SparsePart& part, int32_t group, const Outputs& out,
                     int64_t start, int32_t tokens) {
  const int32_t wanted = threadIdx.x % 4;
#pragma unroll
  for (int32_t lower = 0; lower < 2; ++lower) {
    float mine = 0.0f;
#pragma unroll
    for (int32_t token = 0; token < TOKENS_AT_ONCE; ++token) {
      float sum = sums.of[lower][token];
      sum += __shfl_xor_sync(FULL_WARP, sum, 1);
      sum += __shfl_xor_sync(FULL_WARP, sum, 2);
      if (token == wanted) mine = sum;
    }
    const int32_t row = group * GROUP + threadIdx.x % WARP / 4 + 8 * lower;
    if (row >= part.outputs || wanted >= tokens) continue;
    const int64_t at = (start + wanted) * out.stride + part.offset + row;
    add_output<T>(out, at, fmaf(step_of(part, row), mine, bias_at(part.bias, row)));
  }
}

// Up to four tokens of an item.
template <class T>
DEVICE void apply_tiles(const SparsePart& part, int32_t first_group, const StepRows<T>& rows,
                        int32_t window_columns, const Outputs& out, int64_t start) {
  DYN_SHARED(Place, places);
  const int32_t groups = ceil_div(part.outputs, GROUP), warp = warp_number();
  int32_t staged = -1;
#pragma unroll 1
  for (int32_t turn = 0; turn < GROUPS_OF_WARP; ++turn) {
    const int32_t group = first_group + turn * SPARSE_WARPS + warp;
    LaneSums sums = {};
#pragma unroll 1
    for (int32_t first = 0; first < part.inputs; first += window_columns) {
      const SwizzledColumns window{first, window_columns};
      if (staged != first) {
        __syncthreads();
        stage_window(rows, window, places);
        __syncthreads();
        staged = first;
      }
      if (group < groups) add_window_of(part, group, window, places, sums);
    }
    if (group < groups) add_tile<T>(sums, part, group, out, start, rows.count);
  }
}

template <class T>
DEVICE void apply(const T* x, int64_t x_stride, const Outputs& out, const Segment* segments,
                  int32_t capacity, int32_t window_columns) {
  const int64_t items = segments[capacity].first[0];
  for (int64_t index = blockIdx.x; index < items; index += gridDim.x) {
    const Segment* segment = find_segment(segments, capacity, 0, index);
    const SparsePart& part = *static_cast<const SparsePart*>(segment->part);
    const Item item = item_of(segment, 0, index, ceil_div(part.outputs, GROUP * GROUPS_OF_ITEM));
#pragma unroll 1
    for (int32_t row = 0; row < item.rows; row += TOKENS_AT_ONCE) {
      const int64_t start = item.start + row;
      const StepRows<T> rows{x + start * x_stride, x_stride,
                             min(TOKENS_AT_ONCE, item.rows - row), part.inputs};
      apply_tiles(part, item.tile * GROUPS_OF_ITEM, rows, window_columns, out, start);
    }
  }
}

#define APPLY(NAME, T)                                                                            \
  extern "C" __global__ void __launch_bounds__(SPARSE_THREADS, 2)                                 \
      tsugiki_sparse_tiles_scalar_##NAME(                                                         \
          const T* __restrict__ x, int64_t x_stride, void* __restrict__ out, int64_t out_stride,  \
          int32_t float_out, const Segment* __restrict__ segments, int32_t capacity,              \
          int32_t window_columns) {                                                               \
    apply(x, x_stride, Outputs{out, out_stride, float_out != 0}, segments, capacity,              \
          window_columns);                                                                        \
  }

APPLY(bf16, bf16)
APPLY(f32, float)
