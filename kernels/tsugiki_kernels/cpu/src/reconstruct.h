// Some outputs of a packed dense weight (weight.h), rebuilt: W + D, one rounding per changed element.
#pragma once

#include "dot.h"
#include "sparse.h"
#include "weight.h"

namespace tsugiki {

// Groups of a fused weight from output `first` on, a multiple of 16.
struct Rebuilding {
  void* groups;
  int64_t first;
  PackedShape shape;  // of the whole weight

  // Elements from `groups` to the value of an output and an input.
  int64_t place(int64_t output, int64_t input) const {
    return shape.place(output / LANES, input) - first * shape.inputs +
           output % LANES * shape.lane_stride(input);
  }
};

// Adds the rows of a part to those outputs, `first` to `last` (exclusive), all of which it changes.
template <class Part>
void add_rows(const Part& part, int64_t first, int64_t last, const Rebuilding& where);

// Outputs from where.first to `last`: a copy of the base's groups, changed by all parts.
template <class Whole>
void rebuild(const Whole& delta, const void* base, const Rebuilding& where, int64_t last) {
  const int64_t row_bytes = where.shape.inputs * dtype_size(where.shape.dtype);
  std::memcpy(where.groups, base, (last - where.first) * row_bytes);
  for (int64_t p = 0; p < delta.count; ++p) {
    const auto& part = delta.parts[p];
    const int64_t from = std::max(where.first, part.offset);
    const int64_t to = std::min(last, part.offset + part.rows);
    if (from < to) add_rows(part, from, to, where);
  }
}

}  // namespace tsugiki
