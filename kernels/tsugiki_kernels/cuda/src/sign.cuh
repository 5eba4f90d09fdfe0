// A part of sign bits as it lies in a variant's extent. Mirrored by cuda/sign.py.
#pragma once

#include "bias.cuh"
#include "tile_product.cuh"

constexpr int32_t SIGN_WARPS = 4;
constexpr int32_t SIGN_TILES = 4;  // of 16 outputs, interleaved as tile_product.cuh wants them
constexpr int32_t SIGN_ROWS = 16 * SIGN_TILES;
constexpr int32_t UNIT_COLUMNS = 256;  // whose signs of a tile are 16 bytes to a lane: four words

// y[offset + o] += S[o] * sum_c sign(o, c) x[c] + bias[o], S = scale * gain rounded to float.
struct SignPart {
  const uint4* signs;     // [outputs / 64][inputs / 256][4 tiles][lane]
  const uint16_t* scale;  // f16 [outputs]
  Bias bias;
  int32_t offset, outputs, inputs;
  float gain;
};

DEVICE float sign_scale(const SignPart& part, int32_t output) {
  return float_of_f16(part.scale[output]) * part.gain;
}

// A word holds the signs of two outputs for columns 8 t .. 8 t + 7 of two neighbouring groups of 32
// columns: bytes as the file has them, (output 0, group 0), (1, 0), (0, 1), (1, 1). So the signs of
// one column in both groups are 16 bits apart, and a pair of numbers is a shift away.
DEVICE constexpr int32_t sign_bit(int32_t output, int32_t group, int32_t column) {
  return 16 * group + 8 * output + column;
}

template <class T>
constexpr uint32_t MINUS_ONES = 0xbf80bf80u;  // two of them, in bf16
template <>
constexpr uint32_t MINUS_ONES<f16> = 0xbc00bc00u;

// +1 or -1 for columns 2 step and 2 step + 1 of both groups and both outputs: the A operand.
template <class T>
DEVICE Eight<T> sign_fragment(uint32_t word, int32_t step) {
  Eight<T> fragment;
#pragma unroll
  for (int32_t i = 0; i < 4; ++i) {
    const int32_t bit = sign_bit(i % 2, 0, 2 * step + i / 2);
    fragment.words[i] = ((word << (15 - bit)) & 0x80008000u) ^ MINUS_ONES<T>;
  }
  return fragment;
}

DEVICE float sign_at(uint32_t word, int32_t bit) {
  return __uint_as_float(((word << (31 - bit)) & 0x80000000u) ^ 0xbf800000u);
}

template <>
DEVICE Eight<float> sign_fragment<float>(uint32_t word, int32_t step) {
  Eight<float> fragment;
#pragma unroll
  for (int32_t i = 0; i < 8; ++i) {
    const int32_t bit = sign_bit(i / 2 % 2, i % 2, 2 * step + i / 4);
    fragment.words[i] = __float_as_uint(sign_at(word, bit));
  }
  return fragment;
}
