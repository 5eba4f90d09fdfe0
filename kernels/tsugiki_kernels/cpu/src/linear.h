// One call of the dense linear: what it reads and writes; mirrored by linear.py.
#pragma once

#include "step.h"

namespace tsugiki {

struct Linear {
  const void* x;  // [rows, inputs] of dtype, unit stride in the last dimension; strides in elements
  int64_t x_stride;
  const void* weight;  // [outputs, inputs], contiguous
  const void* bias;    // [outputs] of bias_dtype; null: none
  void* out;           // [rows, outputs] of out_dtype
  int64_t out_stride;
  const Span* spans;  // the rows to compute; spans never overlap
  int64_t span_count;
  int64_t inputs, outputs;
  int32_t dtype, bias_dtype, out_dtype, threads;
};

}  // namespace tsugiki
