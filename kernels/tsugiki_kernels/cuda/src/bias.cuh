// What a part adds to every row, whatever the row holds. Mirrored by cuda/records.py.
#pragma once

#include "prelude.cuh"

constexpr int32_t PLAIN_BITS = 32;  // of a bias that is float values

struct Bias {
  const void* values;  // floats, or codes: code r at bit r * bits, least significant first
  float scale;
  int32_t bits;  // 0: there is none
};

DEVICE float bias_at(const Bias& bias, int32_t row) {
  if (bias.bits == 0) return 0.0f;
  if (bias.bits == PLAIN_BITS) return static_cast<const float*>(bias.values)[row];
  const uint8_t* codes = static_cast<const uint8_t*>(bias.values);
  const int64_t bit = int64_t{row} * bias.bits;
  const int32_t shift = bit % 8;
  uint32_t word = codes[bit / 8];
  if (shift + bias.bits > 8) word |= uint32_t{codes[bit / 8 + 1]} << 8;
  const int32_t code = (word >> shift) & ((1u << bias.bits) - 1u);
  return bias.scale * static_cast<float>(code - (1 << (bias.bits - 1)));
}
