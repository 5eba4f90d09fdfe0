// The register block of the dense linear: up to ROWS_AT_ONCE rows of x meet eight rows of the
// weight, each pair of them in one accumulator of 16 lanes.
//
// Lane l of an accumulator sums the products of its columns (bfloat16: 32 s + 2 l and 32 s + 2 l + 1;
// otherwise 16 s + l) in the order of s, and the lanes are added as sum(Floats) does. No block shape
// changes that order, so the bits of an output depend on its row of x and its row of weight alone.
//
// vdpbf16ps reads denormals as zero and flushes denormal sums; the levels without it do not.
#pragma once

#include "linear.h"

namespace tsugiki {

constexpr int OUTPUTS_AT_ONCE = 8;
constexpr int LINE = 64;  // bytes of a cache line

#if defined(TSUGIKI_AVX512)
constexpr int ROWS_AT_ONCE = 3;     // 24 accumulators of the 32 registers
constexpr int OUTPUTS_IN_REGISTERS = 8;
#else
constexpr int ROWS_AT_ONCE = 2;     // 4 accumulators, each a pair of the 16 registers
constexpr int OUTPUTS_IN_REGISTERS = 2;
#endif

// How the values of a dtype meet: `WIDTH` of them a step.
struct Float32Lanes {
  typedef Float32 Element;
  static constexpr int WIDTH = 16;
  static Floats load(const Element* p) { return tsugiki::load(&p->bits); }
  static Floats meet(Floats a, Floats b, Floats total) { return fma(a, b, total); }
};
struct Float16Lanes {
  typedef Float16 Element;
  static constexpr int WIDTH = 16;
  static Floats load(const Element* p) { return load_f16(&p->bits); }
  static Floats meet(Floats a, Floats b, Floats total) { return fma(a, b, total); }
};
struct Bfloat16Pairs {
  typedef Bfloat16 Element;
  static constexpr int WIDTH = 32;
  static Floats load(const Element* p) {
    Floats pairs;
    std::memcpy((void*)&pairs, (const void*)p, sizeof pairs);
    return pairs;
  }
  static Floats meet(Floats a, Floats b, Floats total) { return fma_pairs(a, b, total); }
};

// The last, incomplete step of a row: zeros beyond `count`, and memory beyond is not touched.
template <class Lanes>
inline Floats load_rest(const typename Lanes::Element* p, int64_t count) {
#if defined(TSUGIKI_AVX512)
  if constexpr (sizeof(*p) == 2) {
    const __m512i values = _mm512_maskz_loadu_epi16((1u << count) - 1, p);
    if constexpr (Lanes::WIDTH == 32) return {_mm512_castsi512_ps(values)};
    return {_mm512_cvtph_ps(_mm512_castsi512_si256(values))};
  } else {
    return {_mm512_maskz_loadu_ps((1u << count) - 1, p)};
  }
#else
  typename Lanes::Element copy[Lanes::WIDTH] = {};
  std::memcpy((void*)copy, (const void*)p, count * sizeof *p);
  return Lanes::load(copy);
#endif
}

// The sums of eight accumulators, each in the order of sum(Floats).
inline Half16 sums_of(const Floats (&a)[OUTPUTS_AT_ONCE]) {
#if defined(TSUGIKI_AVX512)
  typedef __m256 V;
  V s[8], pairs[4];
  for (int i = 0; i < 8; ++i) s[i] = (V)(low(a[i]) + high(a[i]));
  for (int i = 0; i < 4; ++i)  // outputs i and i + 4, four lanes each
    pairs[i] = _mm256_add_ps(_mm256_blend_ps(s[i], s[i + 4], 0xf0),
                             _mm256_permute2f128_ps(s[i], s[i + 4], 0x21));
  const V even = _mm256_add_ps(_mm256_shuffle_ps(pairs[0], pairs[1], 0x44),
                               _mm256_shuffle_ps(pairs[0], pairs[1], 0xee));
  const V odd = _mm256_add_ps(_mm256_shuffle_ps(pairs[2], pairs[3], 0x44),
                              _mm256_shuffle_ps(pairs[2], pairs[3], 0xee));
  return (Half16)_mm256_add_ps(_mm256_shuffle_ps(even, odd, 0x88),
                               _mm256_shuffle_ps(even, odd, 0xdd));
#else
  return Half16{sum(a[0]), sum(a[1]), sum(a[2]), sum(a[3]),
                sum(a[4]), sum(a[5]), sum(a[6]), sum(a[7])};
#endif
}

// Asks for memory that will be read soon. Into the second-level cache: the first is too small to
// hold it beside x.
template <int LINES>
inline void fetch(const void* from) {
  for (int l = 0; l < LINES; ++l) __builtin_prefetch((const char*)from + LINE * l, 0, 2);
}

// total[r][first + o] = the accumulator of x[r] and weight[first + o]; LINES of `next` fetched a step
// (of a whole line of each row).
template <class Lanes, int ROWS, int OUTPUTS, int LINES>
inline void accumulate(const typename Lanes::Element* const* x,
                       const typename Lanes::Element* const* weight, int first, int64_t inputs,
                       const char* next, Floats (*total)[OUTPUTS_AT_ONCE]) {
  Floats sums[ROWS][OUTPUTS];
  for (int r = 0; r < ROWS; ++r)
    for (int o = 0; o < OUTPUTS; ++o) sums[r][o] = zeros();
  auto step = [&](auto load) {
    Floats rows[ROWS];
    for (int r = 0; r < ROWS; ++r) rows[r] = load(x[r]);
    for (int o = 0; o < OUTPUTS; ++o) {
      const Floats weights = load(weight[first + o]);
      for (int r = 0; r < ROWS; ++r) sums[r][o] = Lanes::meet(rows[r], weights, sums[r][o]);
    }
  };
  constexpr int FETCHED = LINES * Lanes::WIDTH * int(sizeof(typename Lanes::Element)) / LINE;
  int64_t c = 0;
  for (; c + Lanes::WIDTH <= inputs; c += Lanes::WIDTH, next += LINE * FETCHED) {
    fetch<FETCHED>(next);
    step([&](auto* row) { return Lanes::load(row + c); });
  }
  if (c < inputs) step([&](auto* row) { return load_rest<Lanes>(row + c, inputs - c); });
  for (int r = 0; r < ROWS; ++r)
    for (int o = 0; o < OUTPUTS; ++o) total[r][first + o] = sums[r][o];
}

// sums[r] = x[r] times each of eight rows of weight.
template <class Lanes, int ROWS, int LINES>
inline void multiply(const typename Lanes::Element* const* x,
                     const typename Lanes::Element* const* weight, int64_t inputs,
                     const char* next, Half16* sums) {
  Floats total[ROWS][OUTPUTS_AT_ONCE];
  constexpr int FETCHED = OUTPUTS_IN_REGISTERS == OUTPUTS_AT_ONCE ? LINES : 0;
  for (int o = 0; o < OUTPUTS_AT_ONCE; o += OUTPUTS_IN_REGISTERS)
    accumulate<Lanes, ROWS, OUTPUTS_IN_REGISTERS, FETCHED>(x, weight, o, inputs, next, total);
  for (int r = 0; r < ROWS; ++r) sums[r] = sums_of(total[r]);
}

}  // namespace tsugiki
