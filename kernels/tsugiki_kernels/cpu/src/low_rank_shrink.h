// The dot products of shrinking where the processor has a product of pairs: rows of A against tokens.
#pragma once

#include "step.h"

namespace tsugiki {

constexpr int64_t RANKS_AT_ONCE = 8;

#if defined(TSUGIKI_AVX512) && defined(__AVX512BF16__)

// `first` and `second` of the halves, or fourths, that are added next: of a in the lower lanes, of b
// in the upper ones.
template <int FIRST, int SECOND>
inline __m512 added_parts(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, FIRST), _mm512_shuffle_f32x4(a, b, SECOND));
}
template <int FIRST, int SECOND>
inline __m512 added_lanes(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_ps(a, b, FIRST), _mm512_shuffle_ps(a, b, SECOND));
}

// Lane i: `sum(v[i])`, in its very order, of sixteen.
inline __m512 sixteen_sums(const __m512 (&v)[LANES]) {
  __m512 quads[4];
  for (int s = 0; s < 4; ++s)
    quads[s] = added_parts<0x88, 0xdd>(added_parts<0x44, 0xee>(v[s], v[4 + s]),
                                       added_parts<0x44, 0xee>(v[8 + s], v[12 + s]));
  return added_lanes<0x88, 0xdd>(added_lanes<0x44, 0xee>(quads[0], quads[1]),
                                 added_lanes<0x44, 0xee>(quads[2], quads[3]));
}

// Rows of A against tokens, both bfloat16 as they are, two inputs a lane: sums[token][row].
template <int ROWS, int TOKENS>
inline void shrink_tile(const uint16_t* a, const uint16_t* x, int64_t x_stride, int64_t inputs,
                        float* sums, int64_t rank) {
  static_assert(ROWS * TOKENS <= LANES && LANES % ROWS == 0);
  __m512 total[LANES];
  for (int i = 0; i < LANES; ++i) total[i] = _mm512_setzero_ps();
  const auto meet = [&](auto load, int64_t c) __attribute__((always_inline)) {
    __m512bh tokens[TOKENS];
    for (int t = 0; t < TOKENS; ++t) tokens[t] = load(x + t * x_stride + c);
    for (int r = 0; r < ROWS; ++r) {
      const __m512bh row = load(a + r * inputs + c);
      for (int t = 0; t < TOKENS; ++t)
        total[t * ROWS + r] = _mm512_dpbf16_ps(total[t * ROWS + r], row, tokens[t]);
    }
  };
  int64_t c = 0;
  for (; c + 2 * LANES <= inputs; c += 2 * LANES)
    meet([](const uint16_t* p) { return (__m512bh)_mm512_loadu_si512(p); }, c);
  if (c < inputs) {
    const __mmask32 mask = (1u << (inputs - c)) - 1;
    meet([mask](const uint16_t* p) { return (__m512bh)_mm512_maskz_loadu_epi16(mask, p); }, c);
  }
  alignas(64) float found[LANES];
  _mm512_store_ps(found, sixteen_sums(total));
  for (int t = 0; t < TOKENS; ++t)
    std::memcpy(sums + t * rank, found + t * ROWS, ROWS * sizeof(float));
}

template <int ROWS, int TOKENS>
inline int64_t shrink_tokens(const uint16_t* a, const uint16_t* x, int64_t x_stride, int64_t inputs,
                             int64_t first, int64_t tokens, float* sums, int64_t rank) {
  for (; first + TOKENS <= tokens; first += TOKENS)
    shrink_tile<ROWS, TOKENS>(a, x + first * x_stride, x_stride, inputs, sums + first * rank, rank);
  return first;
}

template <int ROWS>
inline void shrink_rows(const uint16_t* a, const uint16_t* x, int64_t x_stride, int64_t inputs,
                        int64_t tokens, float* sums, int64_t rank) {
  int64_t t = 0;
  if constexpr (ROWS == 8) {  // four by four load least
    t = shrink_tokens<4, 4>(a, x, x_stride, inputs, 0, tokens, sums, rank);
    shrink_tokens<4, 4>(a + 4 * inputs, x, x_stride, inputs, 0, tokens, sums + 4, rank);
  }
  t = shrink_tokens<ROWS, 2>(a, x, x_stride, inputs, t, tokens, sums, rank);
  shrink_tokens<ROWS, 1>(a, x, x_stride, inputs, t, tokens, sums, rank);
}

#endif

}  // namespace tsugiki
