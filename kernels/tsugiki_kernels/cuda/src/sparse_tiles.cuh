// A tile of a sparse part: 16 rows that share their kept columns. What its kernels have in common.
#pragma once

#include "sparse_codes.cuh"

constexpr int32_t GROUPS_OF_WARP = 2;
constexpr int32_t GROUPS_OF_ITEM = SPARSE_WARPS * GROUPS_OF_WARP;

// The list of kept columns and the codes of 16 rows.
struct TileGroup {
  const uint16_t* columns;
  const uint32_t* codes;
  int32_t kept, words;
};

template <int32_t BITS>
DEVICE TileGroup tile_group(const SparsePart& part, int32_t group) {
  const int32_t words = TileCodes<BITS>::words(part.kept);
  const int32_t tile =
      part.rows_per_mask == GROUP ? group : group / (part.rows_per_mask / GROUP);
  return {part.columns + int64_t{tile} * part.kept,
          static_cast<const uint32_t*>(part.codes) + int64_t{group} * words * WARP, part.kept,
          words};
}

// How many of the ascending columns are below `limit`. All lanes of the warp must call.
DEVICE int32_t columns_below(const TileGroup& tile, int32_t limit) {
  int32_t first = 0, count = tile.kept;  // the answer is in first .. first + count
  while (count > 0) {
    const int32_t step = ceil_div(count, WARP);
    const int32_t probe = (threadIdx.x % WARP + 1) * step - 1;
    const bool below = probe < count && tile.columns[first + probe] < limit;
    const int32_t passed = __popc(__ballot_sync(FULL_WARP, below)) * step;
    first += passed;
    count = min(step - 1, count - passed);
  }
  return first;
}

// Panels that have columns in a window.
struct PanelRange {
  int32_t first, last;
};

// All lanes of the warp must call.
DEVICE PanelRange panels_in(const TileGroup& tile, int32_t first, int32_t columns,
                            int32_t inputs) {
  if (inputs <= columns) return {0, ceil_div(tile.kept, PANEL)};
  return {columns_below(tile, first) / PANEL,
          ceil_div(columns_below(tile, first + columns), PANEL)};
}
