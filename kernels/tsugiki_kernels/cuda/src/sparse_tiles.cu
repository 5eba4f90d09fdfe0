// Sparse deltas in tile form, on tensor cores.
//
// The codes of a warp's 16 outputs are the A operand; the B operand is gathered: lane l names the
// place of kept column l of a panel in the window of x, a place holds eight tokens of one column,
// and one load of transposed matrices hands each lane what the product wants of 32 columns. Tokens
// are the columns of the product, so a token's bits are the same whether it comes alone or with
// seven others.

#include "sparse_tiles_apply.cuh"

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

// What the operands of a part are above code - zero.
DEVICE float operand_shift(const SparsePart& part) {
  switch (part.bits) {
    case 1: return TileCodes<1>::SHIFT + part.zero;
    case 2: return TileCodes<2>::SHIFT + part.zero;
    case 4: return TileCodes<4>::SHIFT + part.zero;
    default: return 17.0f * TileCodes<8>::SHIFT + part.zero;
  }
}

// Lane 4 g + t: rows g (two values) and g + 8 by tokens 2 t and 2 t + 1.
template <class T>
struct TileSums {
  static constexpr int32_t TOKENS = 8;
  using Place = Tokens<T, TOKENS>;

  float planes[2][4];  // the high plane of codes of 8 bits is the second
  float x[4];          // the sums of the gathered x, the same for both rows

  template <int32_t BITS>
  DEVICE void add_window(const SparsePart& part, int32_t group, const PaddedColumns& window,
                         const Place* places) {
    if (BITS > 1 || operand_shift(part) != 0.0f)
      add_panels<BITS, true>(part, group, window, places);
    else
      add_panels<BITS, false>(part, group, window, places);
  }

  // The panels of a tile that have columns in the window.
  template <int32_t BITS, bool SHIFTED>
  DEVICE void add_panels(const SparsePart& part, int32_t group, const PaddedColumns& window,
                         const Place* places) {
    constexpr int32_t PANELS = TileCodes<BITS>::PANELS;
    const int32_t lane = threadIdx.x % WARP;
    const TileGroup tile = tile_group<BITS>(part, group);
    const PanelRange panels = panels_in(tile, window.first, window.columns(), part.inputs);
    const int32_t whole = min(panels.last, tile.kept / PANEL) / PANELS;
    int32_t turn = panels.first / PANELS;
    const uint16_t* columns = tile.columns + turn * PANELS * PANEL + lane;
    const uint32_t* codes = tile.codes + (int64_t{turn} * WARP + lane) * 4;
#pragma unroll(BITS == 4 ? 2 : 1)  // a turn of 4 bits is short: two share what a loop costs
    for (; turn < whole; ++turn) {
      add_turn<BITS, SHIFTED>(load_stream(codes), columns, PANELS, PANELS * PANEL, window, places);
      columns += PANELS * PANEL;
      codes += 4 * WARP;
    }
#pragma unroll 1
    for (; turn * PANELS < panels.last; ++turn) {
      add_turn<BITS, SHIFTED>(load_codes(tile.codes, turn * 4, tile.words), columns,
                              panels.last - turn * PANELS,
                              tile.kept - turn * PANELS * PANEL - lane, window, places);
      columns += PANELS * PANEL;
    }
  }

  // Up to PANELS panels: 16 bytes of codes of a lane, and the columns that go with them, one of
  // each panel. `left`: the columns from this one on that exist; others gather zeros, and so do
  // columns outside the window.
  template <int32_t BITS, bool SHIFTED>
  DEVICE void add_turn(uint4 codes, const uint16_t* from, int32_t panels, int32_t left,
                       const PaddedColumns& window, const Place* places) {
    constexpr int32_t PANELS = TileCodes<BITS>::PANELS;
    const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
    uint32_t columns[PANELS];
#pragma unroll
    for (int32_t i = 0; i < PANELS; ++i)
      columns[i] = i * PANEL < left ? __ldg(from + i * PANEL) : ~0u;
#pragma unroll
    for (int32_t i = 0; i < PANELS; ++i) {
      if (i >= panels) break;
      uint32_t gathered[4];
      load_matrix_transposed(gathered,
                             place_at(places, window.offset_of<sizeof(Place)>(columns[i])));
      add_panel<BITS, SHIFTED>(words, i, gathered);
    }
  }

  // Panel `i` of four words of codes against its gathered columns.
  template <int32_t BITS, bool SHIFTED>
  DEVICE void add_panel(const uint32_t (&words)[4], int32_t i, const uint32_t (&gathered)[4]) {
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
        mma_m16n8k16<T>(planes[plane], a, b);
      }
      if constexpr (SHIFTED) mma_m16n8k16<T>(x, {ONE, ONE, ONE, ONE}, b);
    }
  }

  // Of row g + 8 * lower and token 2 t + side; `shift`: what each of the codes is above its value.
  DEVICE float sum(int32_t lower, int32_t side, float shift) const {
    const int32_t i = lower * 2 + side;
    const float codes = fmaf(16.0f, planes[1][i], planes[0][i]);
    return shift == 0.0f ? codes : fmaf(-shift, x[i], codes);
  }

  // All that is read comes before all that is written: one wait, not four.
  DEVICE void add_to(const SparsePart& part, int32_t group, const Outputs& out, int64_t start,
                     int32_t tokens) const {
    const float shift = operand_shift(part);
    const int32_t token = threadIdx.x % 4 * 2;
    const int32_t first = group * GROUP + threadIdx.x % WARP / 4;
    float sums[2][2];
#pragma unroll
    for (int32_t lower = 0; lower < 2; ++lower) {
      const int32_t row = first + 8 * lower;
      if (row >= part.outputs) continue;
      const float step = step_of(part, row), bias = bias_at(part.bias, row);
#pragma unroll
      for (int32_t side = 0; side < 2; ++side) {
        if (token + side >= tokens) continue;
        const int64_t at = (start + token + side) * out.stride + part.offset + row;
        sums[lower][side] = output_at<T>(out, at) + fmaf(step, sum(lower, side, shift), bias);
      }
    }
#pragma unroll
    for (int32_t lower = 0; lower < 2; ++lower) {
      const int32_t row = first + 8 * lower;
#pragma unroll
      for (int32_t side = 0; side < 2; ++side)
        if (row < part.outputs && token + side < tokens)
          set_output<T>(out, (start + token + side) * out.stride + part.offset + row,
                        sums[lower][side]);
    }
  }
};

APPLY(tsugiki_sparse_tiles_f16, f16, TileSums<f16>, 2)
APPLY(tsugiki_sparse_tiles_bf16, bf16, TileSums<bf16>, 2)
