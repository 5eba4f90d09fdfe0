// Sparse deltas in tile form without tensor cores: float activations, and bfloat16 on Turing.
//
// The codes lie as tensor cores want them: lane 4 g + t has rows g and g + 8 of four columns of each
// half panel. It multiplies these with up to four tokens, whose columns it shares with the lanes of
// the same t, and four lanes add up at the end.

#include "sparse_tiles_apply.cuh"

template <class T>
struct LaneSums {
  static constexpr int32_t TOKENS = 4;
  using Place = Tokens<float, TOKENS>;

  float of[2][TOKENS];  // rows g and g + 8

  template <int32_t BITS>
  DEVICE void add_window(const SparsePart& part, int32_t group, const PaddedColumns& window,
                         const Place* places) {
    const TileGroup tile = tile_group<BITS>(part, group);
    const PanelRange panels = panels_in(tile, window.first, window.columns(), part.inputs);
#pragma unroll 1
    for (int32_t panel = panels.first; panel < panels.last; ++panel)
      add_panel<BITS>(tile, panel, part.zero, window, places);
  }

  template <int32_t BITS>
  DEVICE void add_panel(const TileGroup& tile, int32_t panel, float zero,
                        const PaddedColumns& window, const Place* places) {
    const int32_t group_row = threadIdx.x % WARP / 4, lane_column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int32_t i = 0; i < 8; ++i) {
      const int32_t kept = panel * PANEL + i / 4 * 16 + i / 2 % 2 * 8 + lane_column + i % 2;
      const uint32_t column = kept < tile.kept ? tile.columns[kept] : ~0u;
      const Place x = load_words(place_at(places, window.offset_of<sizeof(Place)>(column)));
#pragma unroll
      for (int32_t lower = 0; lower < 2; ++lower) {
        const float value =
            code_at<BITS>(tile.codes, tile.words, kept, group_row + 8 * lower) - zero;
#pragma unroll
        for (int32_t token = 0; token < TOKENS; ++token)
          of[lower][token] = fmaf(value, x.value(token), of[lower][token]);
      }
    }
  }

  // Lane 4 g + t adds token t of both rows.
  DEVICE void add_to(const SparsePart& part, int32_t group, const Outputs& out, int64_t start,
                     int32_t tokens) const {
    const int32_t wanted = threadIdx.x % 4;
#pragma unroll
    for (int32_t lower = 0; lower < 2; ++lower) {
      float mine = 0.0f;
#pragma unroll
      for (int32_t token = 0; token < TOKENS; ++token) {
        float sum = of[lower][token];
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
};

APPLY(tsugiki_sparse_tiles_scalar_bf16, bf16, LaneSums<bf16>, 1)
APPLY(tsugiki_sparse_tiles_scalar_f32, float, LaneSums<float>, 1)
