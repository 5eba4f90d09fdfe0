// The resident form of a sparse quantized delta, mirrored by records.py.
#pragma once

#include "decode.h"
#include "step.h"

namespace tsugiki {

struct SparsePart : Part {
  int64_t kept;           // columns kept per row
  int64_t rows_per_mask;  // rows that share one list of columns
  int64_t rows_per_step;
  int64_t code_stride;  // bytes of codes per tile (tile form) or per row (row form)
  int32_t bits;
  int32_t by_row;  // 0: tile form, 1: row form
  float zero;
  float gain;
  const uint16_t* columns;  // [ceil(rows / rows_per_mask), kept]
  const uint8_t* codes;
  const uint16_t* step;  // float16
};

struct SparseLinear {
  int64_t count;
  SparsePart parts[1];  // `count` of them
};

// S = step * gain, rounded once.
inline float step_of(const SparsePart& part, int64_t row) {
  return f16_to_float(part.step[row / part.rows_per_step]) * part.gain;
}

// Where the columns and codes of a 16-row group of a tile begin.
struct Group {
  const uint16_t* columns;
  const uint8_t* codes;
};

inline Group group_of(const SparsePart& part, int64_t group) {
  const int64_t per_tile = part.rows_per_mask / LANES;
  const int64_t tile = group / per_tile, place = group % per_tile;
  return {part.columns + tile * part.kept,
          part.codes + tile * part.code_stride + place * 2 * part.bits};
}

}  // namespace tsugiki
