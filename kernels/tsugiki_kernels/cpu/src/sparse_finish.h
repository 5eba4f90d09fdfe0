// `finish` for many groups of a part at once.
#pragma once

#include <utility>

#include "sparse.h"

namespace tsugiki {

// f(0), ... f(COUNT - 1) with constants: what they index stays in registers, where a loop that the
// compiler unrolls too late leaves it in memory.
template <class F, int... I>
inline __attribute__((always_inline)) void each_of(std::integer_sequence<int, I...>, const F& f) {
  (f(std::integral_constant<int, I>()), ...);
}
template <int COUNT, class F>
inline __attribute__((always_inline)) void unrolled(const F& f) {
  each_of(std::make_integer_sequence<int, COUNT>(), f);
}

// `finish` for the groups of a part one after the other. What they have in common is fetched once, where
// they are whole, their rows share steps, and `out` is bfloat16.
class Finish {
 public:
  // `steps` is room for [last - first] floats.
  void begin(const Step& step, const SparsePart& part, int64_t first_row, int64_t first,
             int64_t last, float* steps) {
    step_ = &step, part_ = &part, first_row_ = first_row, first_ = first, steps_ = steps;
    const Bias& bias = part.bias;
    quick_ = last * LANES <= part.rows && step.out_dtype == BFLOAT16 &&
             part.rows_per_step % LANES == 0 &&
             (bias.values == nullptr || bias.bits != PLAIN_BITS);
    if (!quick_) return;
    const int64_t groups = part.rows_per_step / LANES;  // of a step
    for (int64_t g = first, at = first / groups; g < last; ++at) {
      const float one = f16_to_float(part.step[at]) * part.gain;
      for (const int64_t stop = std::min(last, (at + 1) * groups); g < stop; ++g)
        steps[g - first] = one;
    }
    out_ = (uint16_t*)step.out + first_row * step.out_stride + part.offset;
    out_stride_ = step.out_stride;
    codes_ = (const uint8_t*)bias.values, bits_ = bias.bits;
    scale_ = bias.scale, least_ = -bias.scale * float(1 << bits_ >> 1);
  }

  // The sums of the first `tokens` of COUNT.
  template <int COUNT>
  inline __attribute__((always_inline)) void operator()(int64_t group, int tokens,
                                                        const Floats (&sums)[COUNT]) const {
    if (!quick_ || tokens < COUNT) return some(group, tokens, sums);
    const Floats steps = splat(steps_[group - first_]), bias = bias_of_group(group);
    uint16_t* out = out_ + group * LANES;
    unrolled<COUNT>([&](auto t) __attribute__((always_inline)) {
      store_bf16_flushed(out, load_bf16(out) + fma(steps, sums[t], bias));
      out += out_stride_;
    });
  }

 private:
  // Sums whose address is taken do not stay in registers: it is taken of copies.
  template <int COUNT>
  inline __attribute__((always_inline)) void some(int64_t group, int tokens,
                                                  const Floats (&sums)[COUNT]) const {
    Floats copy[COUNT];
    unrolled<COUNT>([&](auto t) __attribute__((always_inline)) { copy[t] = sums[t]; });
    finish(*step_, *part_, group, first_row_, tokens, copy);
  }

  // scale * (code - half), rounded once
  Floats bias_of_group(int64_t group) const {
    if (codes_ == nullptr) return zeros();
    return fma(splat(scale_), sixteen_codes(codes_ + group * 2 * bits_, bits_), splat(least_));
  }

  const Step* step_;
  const SparsePart* part_;
  int64_t first_row_, first_;
  const float* steps_;  // step * gain of each group
  uint16_t* out_;
  int64_t out_stride_;
  const uint8_t* codes_;
  int bits_;
  float scale_, least_;
  bool quick_;
};

}  // namespace tsugiki
