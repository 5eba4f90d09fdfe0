// A sparse quantized part as it lies in a variant's extent, in one of two forms. Mirrored by
// cuda/sparse_forms.py, which says how codes are packed.
//
// Tiles: sixteen rows share their kept columns. They are the A operand of mma.m16n8k16.
// Rows: every row keeps columns of its own. A lane owns a block of neighbouring columns, so that
// what the 32 lanes gather never shares a bank (column_window.cuh).
#pragma once

#include "bias.cuh"

constexpr int32_t GROUP = 16;  // rows of a tile that are computed together
constexpr int32_t PANEL = 32;  // kept columns of a tile that one load of matrices gathers
constexpr int32_t QUAD = 4;    // rows of the row form that a warp computes together
constexpr int32_t SPARSE_WARPS = 8;
constexpr int32_t SPARSE_THREADS = SPARSE_WARPS * WARP;

struct SparsePart {
  const uint16_t* columns;  // tiles: [ceil(outputs / rows_per_mask), kept]
  const void* codes;
  const uint4* places;  // rows: [outputs / 4][windows][entries / 4][lane]; null in tiles
  const uint16_t* step;  // f16
  Bias bias;
  int32_t offset, outputs, inputs;
  int32_t kept, rows_per_mask, rows_per_step, bits;
  int32_t block, windows, entries;  // rows: columns of a lane, windows, entries of a lane in each
  float zero, gain;
};

DEVICE constexpr int32_t ceil_div(int32_t a, int32_t b) { return (a + b - 1) / b; }

// The warp of this thread; the shuffle tells the compiler that all lanes agree, so that it need not
// bring them together before each instruction of the warp.
DEVICE int32_t warp_number() {
  return __shfl_sync(FULL_WARP, static_cast<int32_t>(threadIdx.x / WARP), 0);
}

// S = step * gain, rounded once.
DEVICE float step_of(const SparsePart& part, int32_t row) {
  int32_t place = row;
  if (part.rows_per_step == GROUP)
    place = row / GROUP;
  else if (part.rows_per_step != 1)
    place = row / part.rows_per_step;
  return float_of_f16(part.step[place]) * part.gain;
}

// Where the results go.
struct Outputs {
  void* first;
  int64_t stride;
  bool floats;
};

// Output `at`. Results are T, or floats.
template <class T>
DEVICE float output_at(const Outputs& out, int64_t at) {
  return out.floats ? static_cast<const float*>(out.first)[at]
                    : to_float(static_cast<const T*>(out.first)[at]);
}

template <class T>
DEVICE void set_output(const Outputs& out, int64_t at, float value) {
  if (out.floats)
    static_cast<float*>(out.first)[at] = value;
  else
    static_cast<T*>(out.first)[at] = from_float<T>(value);
}

// Rounded once.
template <class T>
DEVICE void add_output(const Outputs& out, int64_t at, float change) {
  set_output<T>(out, at, output_at<T>(out, at) + change);
}
