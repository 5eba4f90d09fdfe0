// Sparse deltas in tile form, on tensor cores: out += x D^T + bias for many variants in one launch.
//
// A warp owns 16 outputs. Their codes are the A operand; the B operand is gathered: lane l names the
// place of kept column l of a panel in the window of x, a place holds eight tokens of one column,
// and one load of transposed matrices hands each lane what the product wants of 32 columns. Tokens
// are the columns of the product, so a token's bits are the same whether it comes alone or with
// seven others; more than eight take turns. A block shares the window and takes 256 outputs.

#include "column_window.cuh"
#include "sparse_tiles.cuh"
#include "work_list.cuh"

constexpr int32_t TOKENS_AT_ONCE = 8;

template <class T>
using Place = Tokens<T, TOKENS_AT_ONCE>;

template <class T>
struct OnePair;
template <>
struct OnePair<f16> {
  static constexpr uint32_t WORD = 0x3c003c00u;
};
template <>
struct OnePair<bf16> {
  static constexpr uint32_t WORD = 0x3f803f80u;
};

// Lane 4 g + t: rows g (two values) and g + 8 by tokens 2 t and 2 t + 1.
struct TileSums {
  float planes[2][4];  // the high plane of codes of 8 bits is the second
  float x[4];          // the sums of the gathered x, the same for both rows

  DEVICE void clear() {
#pragma unroll
    for (int32_t i = 0; i < 4; ++i) planes[0][i] = planes[1][i] = x[i] = 0.0f;
  }

  // Of row g + 8 * lower and token 2 t + side; `shift`: what each of the codes is above its value.
  DEVICE float sum(int32_t lower, int32_t side, float shift) const {
    const int32_t i = lower * 2 + side;
    const float codes = fmaf(16.0f, planes[1][i], planes[0][i]);
    return shift == 0.0f ? codes : fmaf(-shift, x[i], codes);
  }
};

// Panel `i` of four words of codes against its gathered columns.
template <class T, int32_t BITS, bool SHIFTED>
DEVICE void add_panel(const uint32_t (&words)[4], int32_t i, const uint32_t (&gathered)[4],
                      TileSums& sums) {
  using Codes = TileCodes<BITS>;
  constexpr uint32_t ONE = OnePair<T>::WORD;
#pragma unroll
  for (int32_t half = 0; half < 2; ++half) {
    const uint32_t b[2] = {gathered[2 * half], gathered[2 * half + 1]};
#pragma unroll
    for (int32_t plane = 0; plane < Codes::PLANES; ++plane) {
      uint32_t a[4];
#pragma unroll
      for (int32_t pair = 0; pair < 4; ++pair) {
        const int32_t index = ((i * 2 + half) * Codes::PLANES + plane) * 4 + pair;
        a[pair] = operand_pair<T, Codes::PLANE_BITS>(words[index / Codes::SLOTS],
                                                     index % Codes::SLOTS);
      }
      mma_m16n8k16<T>(sums.planes[plane], a, b);
    }
    if constexpr (SHIFTED) mma_m16n8k16<T>(sums.x, {ONE, ONE, ONE, ONE}, b);
  }
}

// 16 bytes of codes of a lane and the columns that go with them, up to PANELS panels from
// `index` * PANELS on. WHOLE: all of them exist; else columns that do not exist gather zeros.
// Columns outside the window gather zeros too.
template <class T, int32_t BITS, bool SHIFTED, bool WHOLE>
DEVICE void add_panels(const TileGroup& tile, int32_t index, int32_t last,
                       const SwizzledColumns& window, const Place<T>* places, TileSums& sums) {
  constexpr int32_t PANELS = TileCodes<BITS>::PANELS;
  const int32_t lane = threadIdx.x % WARP, first = index * PANELS * PANEL + lane;
  const uint4 loaded = WHOLE ? load_stream(tile.codes + (int64_t{index} * WARP + lane) * 4)
                             : load_codes(tile.codes, index * 4, tile.words);
  const uint32_t words[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
  const uint16_t* const from = tile.columns + first;
  uint32_t columns[PANELS];
#pragma unroll
  for (int32_t i = 0; i < PANELS; ++i)
    columns[i] = WHOLE || first + i * PANEL < tile.kept ? from[i * PANEL] : ~0u;
#pragma unroll
  for (int32_t i = 0; i < PANELS; ++i) {
    if (!WHOLE && index * PANELS + i >= last) break;
    const uint32_t inside = min(columns[i] - window.first, static_cast<uint32_t>(window.columns()));
    uint32_t gathered[4];
    load_matrix_transposed(gathered, places + SwizzledColumns::place(inside));
    add_panel<T, BITS, SHIFTED>(words, i, gathered, sums);
  }
}

// The panels of a tile that have columns in the window.
template <class T, int32_t BITS, bool SHIFTED>
DEVICE void add_window(const SparsePart& part, int32_t group, const SwizzledColumns& window,
                       const Place<T>* places, TileSums& sums) {
  constexpr int32_t PANELS = TileCodes<BITS>::PANELS;
  const TileGroup tile = tile_group<BITS>(part, group);
  const PanelRange panels = panels_in(tile, window.first, window.columns(), part.inputs);
  const int32_t whole = min(panels.last, tile.kept / PANEL) / PANELS;
  int32_t index = panels.first / PANELS;
#pragma unroll 1
  for (; index < whole; ++index)
    add_panels<T, BITS, SHIFTED, true>(tile, index, panels.last, window, places, sums);
#pragma unroll 1
  for (; index * PANELS < panels.last; ++index)
    add_panels<T, BITS, SHIFTED, false>(tile, index, panels.last, window, places, sums);
}

// What the operands of a part are above code - zero.
DEVICE float operand_shift(const SparsePart& part) {
  switch (part.bits) {
    case 1: return TileCodes<1>::SHIFT + part.zero;
    case 2: return TileCodes<2>::SHIFT + part.zero;
    case 4: return TileCodes<4>::SHIFT + part.zero;
    default: return 17.0f * TileCodes<8>::SHIFT + part.zero;
  }
}

template <class T>
DEVICE void add_window_of(const SparsePart& part, int32_t group, const SwizzledColumns& window,
                          const Place<T>* places, bool shifted, TileSums& sums) {
  switch (part.bits) {
    case 1:
      if (shifted) return add_window<T, 1, true>(part, group, window, places, sums);
      return add_window<T, 1, false>(part, group, window, places, sums);
    case 2: return add_window<T, 2, true>(part, group, window, places, sums);
    case 4: return add_window<T, 4, true>(part, group, window, places, sums);
    default: return add_window<T, 8, true>(part, group, window, places, sums);
  }
}

template <class T>
DEVICE void add_tile(const TileSums& sums, const SparsePart& part, int32_t group, float shift,
                     const Outputs& out, int64_t start, int32_t tokens) {
  const int32_t token = threadIdx.x % 4 * 2;
#pragma unroll
  for (int32_t lower = 0; lower < 2; ++lower) {
    const int32_t row = group * GROUP + threadIdx.x % WARP / 4 + 8 * lower;
    if (row >= part.outputs || token >= tokens) continue;
    const float step = step_of(part, row), bias = bias_at(part.bias, row);
    const int64_t at = (start + token) * out.stride + part.offset + row;
    add_output<T>(out, at, fmaf(step, sums.sum(lower, 0, shift), bias));
    if (token + 1 < tokens)
      add_output<T>(out, at + out.stride, fmaf(step, sums.sum(lower, 1, shift), bias));
  }
}

// Up to eight tokens of an item.
template <class T>
DEVICE void apply_tiles(const SparsePart& part, int32_t first_group, const StepRows<T>& rows,
                        int32_t window_columns, const Outputs& out, int64_t start) {
  DYN_SHARED(Place<T>, places);
  const float shift = operand_shift(part);
  const int32_t groups = ceil_div(part.outputs, GROUP);
  const int32_t warp = warp_number();
  int32_t staged = -1;
#pragma unroll 1
  for (int32_t turn = 0; turn < GROUPS_OF_WARP; ++turn) {
    const int32_t group = first_group + turn * SPARSE_WARPS + warp;
    TileSums sums;
    sums.clear();
#pragma unroll 1
    for (int32_t first = 0; first < part.inputs; first += window_columns) {
      const SwizzledColumns window{first, window_columns};
      if (staged != first) {
        __syncthreads();
        stage_window(rows, window, places);
        __syncthreads();
        staged = first;
      }
      if (group < groups)
        add_window_of<T>(part, group, window, places, shift != 0.0f, sums);
    }
    if (group < groups) add_tile<T>(sums, part, group, shift, out, start, rows.count);
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

// Two blocks to a multiprocessor: one stages while the other multiplies.
#define APPLY(NAME, T)                                                                          \
  extern "C" __global__ void __launch_bounds__(SPARSE_THREADS, 2) tsugiki_sparse_tiles_##NAME(  \
      const T* __restrict__ x, int64_t x_stride, void* __restrict__ out, int64_t out_stride,    \
      int32_t float_out, const Segment* __restrict__ segments, int32_t capacity,                \
      int32_t window_columns) {                                                                 \
    apply(x, x_stride, Outputs{out, out_stride, float_out != 0}, segments, capacity,            \
          window_columns);                                                                      \
  }

APPLY(f16, f16)
APPLY(bf16, bf16)
