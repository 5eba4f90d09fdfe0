// How indices become weights and meet x: some columns at a time, in float32 or as pairs of
// bfloat16.
//
// Both take an index of 2 to 4 bits to its entry by one permutation of a register that holds the
// codebook. The columns of a unit lie in the order in which `index` yields them: x is laid out to
// fit, once for all rows.
#pragma once

#include "codebooks.h"

namespace tsugiki {

#if defined(TSUGIKI_AVX512) && defined(__AVX512BF16__)
#define TSUGIKI_CODEBOOK_PAIRS 1
#endif

// Sixteen columns in float32, for activations of any dtype.
template <int BITS>
struct FloatUnit {
  static constexpr int COLUMNS = 16;
  typedef float Input;
  typedef Floats Table;
  typedef Floats Weights;

  static Table table(Floats entries) { return entries; }

  // Columns c .. c + count of a row, zeros beyond.
  static void lay_out(const Step& step, int64_t row, int64_t c, int64_t count, Input* to) {
    const Floats values = load_up_to(step.dtype, step.x, row * step.x_stride + c, count);
    store(to, count < LANES ? keep_first(values, count) : values);
  }

  static Weights input(const Input* x) { return load(x); }

  static Floats meet(Weights weights, Weights x, Floats total) { return fma(weights, x, total); }

#if defined(TSUGIKI_AVX512)
  typedef __m512i Index;

  static Index index(const uint8_t* p) {
    if constexpr (BITS == 4) {
      const __m512i halves = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
      const __m512i shifts =
          _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
      const __m512i words = _mm512_castsi128_si512(_mm_loadl_epi64((const __m128i*)p));
      return _mm512_srlv_epi32(_mm512_permutexvar_epi32(halves, words), shifts);
    }
    uint64_t word = 0;
    std::memcpy(&word, p, 2 * BITS);
    const __m512i low = _mm512_setr_epi64(0, BITS, 2 * BITS, 3 * BITS, 4 * BITS, 5 * BITS,
                                          6 * BITS, 7 * BITS);
    const __m512i all = _mm512_set1_epi64(int64_t(word));
    const __m512i first = _mm512_srlv_epi64(all, low);
    const __m512i second = _mm512_srlv_epi64(_mm512_srli_epi64(all, 8 * BITS), low);
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi64_epi32(first)),
                              _mm512_cvtepi64_epi32(second), 1);
  }

  static Weights look_up(Index index, Table table) {
    return {_mm512_permutexvar_ps(index, table.v)};
  }
#else
  typedef uint64_t Index;

  static Index index(const uint8_t* p) {
    uint64_t word = 0;
    std::memcpy(&word, p, 2 * BITS);
    return word;
  }

  static Weights look_up(Index index, Table table) {
    float entries[LANES], found[LANES];
    store(entries, table);
    for (int i = 0; i < LANES; ++i) found[i] = entries[index >> (i * BITS) & ((1 << BITS) - 1)];
    return load(found);
  }
#endif
};

#if defined(TSUGIKI_CODEBOOK_PAIRS)

// Thirty-two columns, x and the entries in bfloat16: the entries are rounded to it, as the weights
// of a bfloat16 checkpoint are. Lane l sums the products of words 2l and 2l + 1.
template <int BITS>
struct PairUnit {
  static constexpr int COLUMNS = 32;
  typedef uint16_t Input;
  typedef __m512i Table;  // sixteen entries, twice
  typedef __m512i Weights;
  typedef __m512i Index;  // of each word the low five bits count

  static Table table(Floats entries) {
    return _mm512_broadcast_i64x4((__m256i)_mm512_cvtneps_pbh(entries.v));
  }

  static void lay_out(const Step& step, int64_t row, int64_t c, int64_t count, Input* to) {
    const __mmask32 mask = count >= COLUMNS ? ~0u : (1u << count) - 1;
    const uint16_t* x = (const uint16_t*)step.x + row * step.x_stride + c;
    __m512i words = _mm512_maskz_loadu_epi16(mask, x);
    if constexpr (BITS == 4) words = _mm512_permutexvar_epi16(load_table(FOURTHS), words);
    _mm512_storeu_si512(to, words);
  }

  // 4 bits: each quarter of the register has all words of codes, shifted by another code.
  static Index index(const uint8_t* p) {
    if constexpr (BITS == 4) {
      const __m512i words = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)p));
      return _mm512_srlv_epi16(words, load_table(QUARTERS));
    } else {
      constexpr __mmask16 BYTES_OF_UNIT = (1 << 4 * BITS) - 1;
      const __m512i bytes = _mm512_broadcast_i32x4(_mm_maskz_loadu_epi8(BYTES_OF_UNIT, p));
      return _mm512_srlv_epi16(_mm512_shuffle_epi8(bytes, load_table(BYTES)), load_table(SHIFTS));
    }
  }

  static Weights look_up(Index index, Table table) {
    return _mm512_permutexvar_epi16(index, table);
  }

  static Weights input(const Input* x) { return _mm512_loadu_si512(x); }

  static Floats meet(Weights weights, Weights x, Floats total) {
    return {_mm512_dpbf16_ps(total.v, (__m512bh)weights, (__m512bh)x)};
  }

 private:
  struct Words {
    alignas(64) uint16_t of[COLUMNS];
  };
  static __m512i load_table(const Words& words) { return _mm512_load_si512(words.of); }

  template <class Word>
  static constexpr Words words(Word word) {
    Words found{};
    for (int i = 0; i < COLUMNS; ++i) found.of[i] = uint16_t(word(i));
    return found;
  }
  // column 4 j + q stands at word 8 q + j
  static constexpr Words FOURTHS = words([](int i) { return i % 8 * 4 + i / 8; });
  static constexpr Words QUARTERS = words([](int i) { return i / 8 * 4; });
  // the two bytes of 16 where a code begins (0x80: zero), and its first bit there
  static constexpr Words BYTES = words([](int i) {
    const int byte = i * BITS / 8;
    return byte | (byte + 1 < 16 ? byte + 1 : 0x80) << 8;
  });
  static constexpr Words SHIFTS = words([](int i) { return i * BITS % 8; });
};

#endif

// Lane r: the sum of the lanes of all[r], in one order for all.
inline Floats sum_each(const Floats (&all)[LANES]) {
#if defined(TSUGIKI_AVX512)
  __m512 eights[8], fours[4], twos[2];  // what is left of each after adding at distance 8, 4, 2
  for (int i = 0; i < 8; ++i) {
    const __m512 a = all[2 * i].v, b = all[2 * i + 1].v;
    eights[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
  }
  for (int i = 0; i < 4; ++i) {
    const __m512 a = eights[2 * i], b = eights[2 * i + 1];
    fours[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  }
  for (int i = 0; i < 2; ++i) {
    const __m512 a = fours[2 * i], b = fours[2 * i + 1];
    twos[i] = _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
  }
  const __m512 ones = _mm512_add_ps(_mm512_shuffle_ps(twos[0], twos[1], 0x88),
                                    _mm512_shuffle_ps(twos[0], twos[1], 0xdd));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return {_mm512_permutexvar_ps(order, ones)};
#else
  float sums[LANES];
  for (int r = 0; r < LANES; ++r) sums[r] = sum(all[r]);
  return load(sums);
#endif
}

}  // namespace tsugiki
