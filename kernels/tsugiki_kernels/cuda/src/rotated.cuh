// How rotated rows lie between lattice_rotate.cu, which writes them, and lattice.cu. Mirrored by
// cuda/lattice.py: rotated_values.
//
// Lane 4 g + t of a warp meets row g of eight, and of each 256 columns the 64 from 64 t on, eight at a
// time: what it loads for one step of eight is 16 bytes of the high halves, then, 32 lanes later, of
// the low ones.
#pragma once

#include "prelude.cuh"

constexpr int32_t TILE_ROWS = 8;
constexpr int32_t CHUNK_COLUMNS = 256;
constexpr int32_t LANE_COLUMNS = CHUNK_COLUMNS / 4;
constexpr int32_t STEPS = LANE_COLUMNS / 8;
constexpr int32_t PLANES = 2;

DEVICE int32_t chunks_of(int32_t width) { return (width + CHUNK_COLUMNS - 1) / CHUNK_COLUMNS; }

// Of the high halves of a warp's step, in units of 16 bytes.
DEVICE int64_t step_index(int64_t tile, int32_t chunk, int32_t step, int32_t width) {
  return ((tile * chunks_of(width) + chunk) * STEPS + step) * PLANES * WARP;
}

// Of the high halves of eight columns of a row.
DEVICE int64_t rotated_index(int32_t row, int32_t column, int32_t width) {
  const int32_t within = column % CHUNK_COLUMNS;
  const int32_t lane = row % TILE_ROWS * 4 + within / LANE_COLUMNS;
  const int32_t step = within % LANE_COLUMNS / 8;
  return step_index(row / TILE_ROWS, column / CHUNK_COLUMNS, step, width) + lane;
}
