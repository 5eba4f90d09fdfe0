// The register block of the dense linear: some rows of x meet some groups of 16 outputs, one
// accumulator each, whose lanes are the outputs.
//
// An output is the sum over the steps of a packed weight (weight.h) in their order, so its bits
// depend on its row of x and its row of weight alone, whatever the block.
//
// vdpbf16ps reads denormals as zero and flushes denormal sums; the levels without it do not.
#pragma once

#include "linear.h"

namespace tsugiki {

#if defined(TSUGIKI_AVX512)
// 24 of the 32 registers hold sums: a broadcast of x takes two cycles or more, and serves three products.
constexpr int ROWS_AT_ONCE = 8, GROUPS_AT_ONCE = 3;
#else
constexpr int ROWS_AT_ONCE = 2, GROUPS_AT_ONCE = 2;  // each sum a pair of the 16 registers
#endif

// What an input, or a pair of them, is to a product. `last`: an input that stands alone.
struct Float32Lanes {
  typedef Float32 Element;
  static constexpr int PAIR = 1;
  static Floats load(const Element* p) { return tsugiki::load(&p->bits); }
  static Floats broadcast(const Element* p) { return splat(p->bits); }
  static Floats meet(Floats a, Floats b, Floats total) { return fma(a, b, total); }
};
struct Float16Lanes {
  typedef Float16 Element;
  static constexpr int PAIR = 1;
  static Floats load(const Element* p) { return load_f16(&p->bits); }
  static Floats broadcast(const Element* p) { return splat(p->value()); }
  static Floats meet(Floats a, Floats b, Floats total) { return fma(a, b, total); }
};
struct Bfloat16Pairs {
  typedef Bfloat16 Element;
  static constexpr int PAIR = 2;
  static Floats load(const Element* p) { return tsugiki::load((const float*)p); }
  static Floats broadcast(const Element* p) {
    float pair;
    std::memcpy(&pair, (const void*)p, sizeof pair);
    return splat(pair);
  }
  static Floats meet(Floats a, Floats b, Floats total) { return fma_pairs(a, b, total); }
};

// sums[r][g] += x[r] times group g of the weight, over some steps. Meanwhile memory is asked for LINES
// groups that lie `ahead` bytes from these: into the second-level cache, for the first is too small
// to hold them beside x.
template <class Lanes, int ROWS, int GROUPS, int LINES>
inline void meet(const typename Lanes::Element* const* x, const typename Lanes::Element* weight,
                 int64_t group_elements, int64_t steps, int64_t ahead, float* sums) {
  typedef typename Lanes::Element Element;
  Floats total[ROWS][GROUPS];
  for (int r = 0; r < ROWS; ++r)
    for (int g = 0; g < GROUPS; ++g) total[r][g] = load(sums + (r * GROUPS + g) * LANES);
  const Element* rows[ROWS];
  for (int r = 0; r < ROWS; ++r) rows[r] = x[r];
  for (int64_t s = 0; s < steps; ++s, weight += LANES * Lanes::PAIR) {
    Floats weights[GROUPS];
    for (int g = 0; g < GROUPS; ++g) weights[g] = Lanes::load(weight + g * group_elements);
    for (int l = 0; l < LINES; ++l)
      __builtin_prefetch((const char*)(weight + l * group_elements) + ahead, 0, 2);
    for (int r = 0; r < ROWS; ++r) {
      const Floats value = Lanes::broadcast(rows[r] + s * Lanes::PAIR);
      for (int g = 0; g < GROUPS; ++g) total[r][g] = Lanes::meet(value, weights[g], total[r][g]);
    }
  }
  for (int r = 0; r < ROWS; ++r)
    for (int g = 0; g < GROUPS; ++g) store(sums + (r * GROUPS + g) * LANES, total[r][g]);
}

}  // namespace tsugiki
