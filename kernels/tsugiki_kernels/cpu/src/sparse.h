// The resident form of a sparse quantized delta, mirrored by records.py; what its kernels share.
#pragma once

#include "decode.h"
#include "tokens.h"

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
  if (part.rows_per_mask == LANES)  // divisions take long
    return {part.columns + group * part.kept, part.codes + group * part.code_stride};
  const int64_t per_tile = part.rows_per_mask / LANES;
  const int64_t tile = group / per_tile, place = group % per_tile;
  return {part.columns + tile * part.kept,
          part.codes + tile * part.code_stride + place * 2 * part.bits};
}

inline int64_t groups_of(const SparsePart& part) { return (part.rows + LANES - 1) / LANES; }

// S[row / rows_per_step] for 16 rows
inline Floats steps_of(const SparsePart& part, int64_t row, int64_t count) {
  if (part.rows_per_step == 1)
    return load_up_to(FLOAT16, part.step, row, count) * splat(part.gain);
  if (part.rows_per_step == LANES)
    return splat(f16_to_float(part.step[row / LANES]) * part.gain);
  if (part.rows_per_step % LANES == 0) return splat(step_of(part, row));
  float lanes[LANES] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = step_of(part, row + i);
  return load(lanes);
}

// out += S * sums + bias for 16 rows of the part, each of the tokens.
__attribute__((noinline)) inline void finish(const Step& step, const SparsePart& part,
                                             int64_t group, int64_t first_row, int tokens,
                                             const Floats* sums) {
  const int64_t row = group * LANES, count = std::min<int64_t>(LANES, part.rows - row);
  const Floats steps = steps_of(part, row, count), bias = bias_of(part.bias, row, count);
  for (int t = 0; t < tokens; ++t)
    add_to_out(step, first_row + t, part.offset + row, count, fma(steps, sums[t], bias));
}

}  // namespace tsugiki
