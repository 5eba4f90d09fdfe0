// Codes of two kept columns -> 16 pairs of bfloat16 weights, for processors with a product of pairs.
#pragma once

#include "sparse.h"

#if defined(TSUGIKI_AVX512) && defined(__AVX512BF16__)
#define TSUGIKI_PAIRS 1
#endif

namespace tsugiki {

#if defined(TSUGIKI_PAIRS)
constexpr bool HAS_PAIRS = true;
#else
constexpr bool HAS_PAIRS = false;
#endif

// Whether there are kernels for the part's codes, and its weights code - zero are bfloat16: halves
// of small whole numbers are.
inline bool pairs_are_exact(const SparsePart& part) {
  if (part.by_row || part.bits > 4) return false;
  if (part.bits == 1) return part.zero == 0.5f;
  const float twice = part.zero * 2;
  return twice >= 0 && twice <= 32 && twice == float(int(twice));
}

#if defined(TSUGIKI_PAIRS)

// 16 codes of two columns -> 16 pairs of weights, the first column's in the lower halves.
template <int BITS>
struct PairDecoder;

// Weights of one half with the code as their sign.
template <>
struct PairDecoder<1> {
  __m512i to_sign = _mm512_sub_epi32(_mm512_set1_epi32(0x000f000f), both(shifts_of(1, 16)));
  explicit PairDecoder(float) {}
  __m512bh operator()(const uint8_t* first, const uint8_t* second) const {
    uint16_t low, high;
    std::memcpy(&low, first, 2), std::memcpy(&high, second, 2);
    return weights(_mm512_set1_epi32(int32_t(uint32_t(high) << 16 | low)));
  }
  __m512bh neighbours(const uint8_t* codes) const {
    int32_t word;
    std::memcpy(&word, codes, 4);
    return weights(_mm512_set1_epi32(word));
  }

 private:
  static __m512i both(__m512i low) { return _mm512_or_si512(low, _mm512_slli_epi32(low, 16)); }
  __m512bh weights(__m512i codes) const {  // (shifted & sign) ^ -0.5
    return (__m512bh)_mm512_ternarylogic_epi32(_mm512_sllv_epi16(codes, to_sign),
                                               _mm512_set1_epi32(int32_t(0x80008000)),
                                               _mm512_set1_epi32(int32_t(0xbf00bf00)), 0x6a);
  }
};

inline __m512i weight_words(int bits, float zero) {
  alignas(64) uint16_t table[32];
  for (int i = 0; i < 32; ++i) table[i] = float_to_bf16(float(i & ((1 << bits) - 1)) - zero);
  return _mm512_load_si512(table);
}

// Each lane rotated so that its first code comes to bit 0, its second to bit 16; the table repeats,
// for it is asked with 5 bits.
template <>
struct PairDecoder<2> {
  __m512i table, to_low, to_high;
  explicit PairDecoder(float zero) : table(weight_words(2, zero)), to_low(shifts_of(2, 16)) {
    to_high = _mm512_add_epi32(to_low, _mm512_set1_epi32(16));
  }
  __m512bh operator()(const uint8_t* first, const uint8_t* second) const {
    return look_up(spread(first), spread(second));
  }
  __m512bh look_up(__m512i first, __m512i second) const {
    const __m512i low = _mm512_srlv_epi32(first, to_low), high = _mm512_rorv_epi32(second, to_high);
    const __m512i codes = _mm512_mask_blend_epi16(0xaaaaaaaa, low, high);
    return (__m512bh)_mm512_permutexvar_epi16(codes, table);
  }

 private:
  static __m512i spread(const uint8_t* p) {
    int32_t word;
    std::memcpy(&word, p, 4);
    return _mm512_set1_epi32(word);
  }
};

// Where the 32 codes of two columns that are neighbours lie, 16 bytes in all: each word's byte, with
// zeros above it, and its first bit there.
struct NeighbourPlaces {
  alignas(64) uint8_t bytes[64];
  alignas(64) uint16_t shifts[32];
};

constexpr NeighbourPlaces neighbour_places() {
  NeighbourPlaces places{};
  for (int i = 0; i < 32; ++i) {
    const int row = i / 2, column = i % 2;
    places.bytes[2 * i] = uint8_t(8 * column + row / 2), places.bytes[2 * i + 1] = 0x80;
    places.shifts[i] = uint16_t(row % 2 * 4);
  }
  return places;
}

template <>
struct PairDecoder<4> {
  static constexpr NeighbourPlaces PLACES = neighbour_places();
  PairDecoder<2> words;
  __m512i bytes = _mm512_load_si512(PLACES.bytes), shifts = _mm512_load_si512(PLACES.shifts);
  explicit PairDecoder(float zero) : words(0) {
    words.table = weight_words(4, zero), words.to_low = shifts_of(4, 8);
    words.to_high = _mm512_add_epi32(words.to_low, _mm512_set1_epi32(16));
  }
  __m512bh neighbours(const uint8_t* codes) const {
    const __m512i all = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)codes));
    const __m512i found = _mm512_srlv_epi16(_mm512_shuffle_epi8(all, bytes), shifts);
    return (__m512bh)_mm512_permutexvar_epi16(found, words.table);
  }
  __m512bh operator()(const uint8_t* first, const uint8_t* second) const {
    return words.look_up(spread(first), spread(second));
  }

 private:
  static __m512i spread(const uint8_t* p) {
    int32_t word[2];
    std::memcpy(word, p, 8);
    return _mm512_mask_set1_epi32(_mm512_set1_epi32(word[0]), 0xff00, word[1]);
  }
};

// Weights of two columns whose codes lie `next` bytes apart.
template <bool NEIGHBOURS, class Decode>
inline __m512bh decode_pair(const Decode& decode, const uint8_t* codes, int64_t next) {
  return decode(codes, codes + next);
}

template <>
inline __m512bh decode_pair<true>(const PairDecoder<1>& decode, const uint8_t* codes, int64_t) {
  return decode.neighbours(codes);
}

template <>
inline __m512bh decode_pair<true>(const PairDecoder<4>& decode, const uint8_t* codes, int64_t) {
  return decode.neighbours(codes);
}

#endif

}  // namespace tsugiki
