// The rotation of a row of inputs: signs, then a Hadamard transform of each block of order * 2^k
// values, H_order (x) H_2 (x) ... (x) H_2 / sqrt(block). A row's order of sums is that of its width.
#pragma once

#include <cmath>

#include "tokens.h"

namespace tsugiki {

// Mirrored by lattice.py.
struct Rotation {
  const float* signs;   // [width]
  const float* matrix;  // [order, order] of +1 and -1; unused when order is 1
  int64_t width;
  int32_t order, power;  // of a block; power = 2^k

  int64_t block() const { return int64_t(order) * power; }
};

// All doublings of `count` values that begin at multiples of `power`, in place.
inline void transform_doublings(float* values, int64_t count, int64_t power) {
  for (int64_t step = 1; step < power; step *= 2)
    for (int64_t at = 0; at < count; at += 2 * step)
      for (int64_t i = at; i < at + step; ++i) {
        const float first = values[i], second = values[i + step];
        values[i] = first + second, values[i + step] = first - second;
      }
}

// to[k, p] = scale * sum over m of from[m, p] * matrix[m, k]
inline void transform_order(const Rotation& rotation, const float* from, float scale, float* to) {
  const int64_t order = rotation.order, power = rotation.power;
  for (int64_t p = 0; p < power; p += LANES) {
    const int64_t count = std::min<int64_t>(LANES, power - p);
    for (int64_t k = 0; k < order; ++k) {
      Floats total = zeros();
      for (int64_t m = 0; m < order; ++m)
        total = fma(splat(rotation.matrix[m * order + k]),
                    load_up_to(FLOAT32, from, m * power + p, count), total);
      store_up_to(FLOAT32, to, k * power + p, total * splat(scale), count);
    }
  }
}

// `values` [padded(width)], a row in float32, becomes its rotation; `spare`: room for a block.
inline void rotate_row(const Rotation& rotation, float* values, float* spare) {
  for (int64_t c = 0; c < rotation.width; ++c) values[c] *= rotation.signs[c];
  transform_doublings(values, rotation.width, rotation.power);
  const int64_t block = rotation.block();
  const float scale = 1.0f / std::sqrt(float(block));
  for (int64_t at = 0; at < rotation.width; at += block) {
    if (rotation.order > 1) {
      std::memcpy(spare, values + at, block * sizeof(float));
      transform_order(rotation, spare, scale, values + at);
    } else {
      for (int64_t c = at; c < at + block; ++c) values[c] *= scale;
    }
  }
}

}  // namespace tsugiki
