// How a packed weight lies in memory (weight.py packs it), for products whose lanes are outputs.
//
// Outputs stand in groups of 16, the last group holding what is left, each group in one piece. A
// group holds step after step: of bfloat16 a step is two neighbouring inputs, a pair of values in
// every lane; of float32 and float16 one input. An odd last input of bfloat16 is a step of its own
// with one value in every lane.
#pragma once

#include <algorithm>

#include "simd.h"

namespace tsugiki {

inline int64_t inputs_per_step(Dtype dtype) { return dtype == BFLOAT16 ? 2 : 1; }

struct PackedShape {
  int64_t outputs, inputs;
  Dtype dtype;

  int64_t lanes_of(int64_t group) const { return std::min<int64_t>(LANES, outputs - group * LANES); }

  // Elements before the values of an input in a group, lane 0.
  int64_t place(int64_t group, int64_t input) const {
    const int64_t pair = inputs_per_step(dtype), lanes = lanes_of(group);
    const int64_t start = group * LANES * inputs, paired = inputs / pair * pair;
    if (input >= paired) return start + paired * lanes;
    return start + input / pair * pair * lanes + input % pair;
  }

  // Elements from one lane to the next.
  int64_t lane_stride(int64_t input) const {
    const int64_t pair = inputs_per_step(dtype);
    return input >= inputs / pair * pair ? 1 : pair;
  }
};

}  // namespace tsugiki
