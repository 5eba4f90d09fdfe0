// Rows of weights against rows of x, both contiguous along the inputs: lane l sums the inputs
// c = l (mod 16) in order, and the lanes are summed at the end. Rows and tokens are blocked so that
// a decoded weight meets several tokens and a loaded x several rows; the order of one sum stays.
#pragma once

#include "decode.h"
#include "tasks.h"
#include "tokens.h"

namespace tsugiki {

struct SignPart : Part {
  int64_t sign_stride;  // bytes per row
  float gain;
  int32_t unused;
  const uint8_t* signs;   // column c at byte c / 8, bit c % 8
  const uint16_t* scale;  // float16 [rows]
};

struct SignLinear {
  int64_t count;
  SignPart parts[1];
};

// Weights as vectors of 16 inputs: `whole` within the row, `tail` for its last, incomplete one. (One
// function with a branch would put a call into the inner loop, and the sums on the stack.)

// Signs as +0.5 and -0.5.
struct SignRows {
  const uint8_t* signs;
  int64_t stride;
  int64_t inputs;
  Decoder<1> half = Decoder<1>(0.5f);

  Floats whole(int64_t row, int64_t c) const { return half(signs + row * stride + c / 8); }
  Floats tail(int64_t row, int64_t c) const {
    return decode_some(half, signs + row * stride + c / 8, inputs - c);
  }
};

template <Dtype dtype>
struct DenseRows {
  const void* weights;  // [rows, inputs]
  int64_t inputs;

  Floats whole(int64_t row, int64_t c) const { return load_as(dtype, weights, row * inputs + c); }
  Floats tail(int64_t row, int64_t c) const {
    return load_some(dtype, weights, row * inputs + c, inputs - c);
  }
};

template <int ROWS, int TOKENS, class Weights>
inline void dot_tile(const Weights& weights, int64_t row, int64_t inputs, const float* x,
                     int64_t x_stride, float* sums, int64_t sums_stride) {
  Floats total[ROWS][TOKENS];
  for (int r = 0; r < ROWS; ++r)
    for (int t = 0; t < TOKENS; ++t) total[r][t] = zeros();
  const int64_t whole = inputs / LANES * LANES;
  for (int64_t c = 0; c < whole; c += LANES) {
    Floats values[TOKENS];
    for (int t = 0; t < TOKENS; ++t) values[t] = load(x + t * x_stride + c);
    for (int r = 0; r < ROWS; ++r) {
      const Floats weight = weights.whole(row + r, c);
      for (int t = 0; t < TOKENS; ++t) total[r][t] = fma(weight, values[t], total[r][t]);
    }
  }
  for (int r = 0; r < ROWS && whole < inputs; ++r) {
    const Floats weight = weights.tail(row + r, whole);
    for (int t = 0; t < TOKENS; ++t)
      total[r][t] = fma(weight, load(x + t * x_stride + whole), total[r][t]);
  }
  for (int t = 0; t < TOKENS; ++t)
    for (int r = 0; r < ROWS; ++r) sums[t * sums_stride + r] = sum(total[r][t]);
}

template <int TOKENS, class Weights>
inline void dot_rows(const Weights& weights, int64_t row, int64_t rows, int64_t inputs,
                     const float* x, int64_t x_stride, float* sums, int64_t sums_stride) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4)
    dot_tile<4, TOKENS>(weights, row + r, inputs, x, x_stride, sums + r, sums_stride);
  for (; r < rows; ++r)
    dot_tile<1, TOKENS>(weights, row + r, inputs, x, x_stride, sums + r, sums_stride);
}

// sums[t * sums_stride + r] = weights[row + r] . x[t] for `rows` rows and `tokens` tokens.
template <class Weights>
inline void dot(const Weights& weights, int64_t row, int64_t rows, int64_t inputs, const float* x,
                int64_t x_stride, int64_t tokens, float* sums, int64_t sums_stride) {
  int64_t t = 0;
  for (; t + 4 <= tokens; t += 4)
    dot_rows<4>(weights, row, rows, inputs, x + t * x_stride, x_stride, sums + t * sums_stride,
                sums_stride);
  for (; t < tokens; ++t)
    dot_rows<1>(weights, row, rows, inputs, x + t * x_stride, x_stride, sums + t * sums_stride,
                sums_stride);
}

// The same for a dense [rows, inputs] matrix whose dtype is known at run time.
inline void dot_dense(Dtype dtype, const void* matrix, int64_t row, int64_t rows, int64_t inputs,
                      const float* x, int64_t x_stride, int64_t tokens, float* sums,
                      int64_t sums_stride) {
  if (dtype == BFLOAT16)
    return dot(DenseRows<BFLOAT16>{matrix, inputs}, row, rows, inputs, x, x_stride, tokens, sums,
               sums_stride);
  if (dtype == FLOAT16)
    return dot(DenseRows<FLOAT16>{matrix, inputs}, row, rows, inputs, x, x_stride, tokens, sums,
               sums_stride);
  dot(DenseRows<FLOAT32>{matrix, inputs}, row, rows, inputs, x, x_stride, tokens, sums,
      sums_stride);
}

}  // namespace tsugiki
