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

// Where the 32 codes of two columns that are neighbours lie, 4 * BITS bytes in all: each word's byte,
// with zeros above it, and its first bit there.
struct NeighbourPlaces {
  alignas(64) uint8_t bytes[64];
  alignas(64) uint16_t shifts[32];
};

constexpr NeighbourPlaces neighbour_places(int bits) {
  NeighbourPlaces places{};
  for (int i = 0; i < 32; ++i) {
    const int first_bit = i / 2 * bits, column = i % 2;
    places.bytes[2 * i] = uint8_t(2 * bits * column + first_bit / 8);
    places.bytes[2 * i + 1] = 0x80;
    places.shifts[i] = uint16_t(first_bit % 8);
  }
  return places;
}

// Where in the 64 bits of two columns of codes of 2 bits the code of each word begins.
struct FirstBits {
  alignas(64) uint8_t bits[64] = {};
  constexpr FirstBits() {
    for (int word = 0; word < 32; ++word) bits[2 * word] = uint8_t(word / 2 * 2 + word % 2 * 32);
  }
};

// Weights looked up by their codes. Columns that lie apart: each lane rotated so that its first code
// comes to bit 0, its second to bit 16. The table repeats, for it is asked with 5 bits.
template <int BITS>
struct TableDecoder {
  static constexpr NeighbourPlaces PLACES = neighbour_places(BITS);
  __m512i table, to_low = shifts_of(BITS, 32 / BITS);
  __m512i to_high = _mm512_add_epi32(to_low, _mm512_set1_epi32(16));
  __m512i bytes = _mm512_load_si512(PLACES.bytes), shifts = _mm512_load_si512(PLACES.shifts);

  explicit TableDecoder(float zero) : table(weight_words(BITS, zero)) {}

  __m512bh operator()(const uint8_t* first, const uint8_t* second) const {
    const __m512i low = _mm512_srlv_epi32(spread(first), to_low);
    const __m512i high = _mm512_rorv_epi32(spread(second), to_high);
    return weights(_mm512_mask_blend_epi16(0xaaaaaaaa, low, high));
  }

  __m512bh neighbours(const uint8_t* codes) const {
    const __m512i found = _mm512_shuffle_epi8(all(codes), bytes);
    return weights(_mm512_srlv_epi16(found, shifts));
  }

 protected:
  __m512bh weights(__m512i codes) const {
    return (__m512bh)_mm512_permutexvar_epi16(codes, table);
  }
  static __m512i spread(const uint8_t* p) {  // sixteen codes: eight lanes a word of 4 bits
    int32_t word[2] = {};
    std::memcpy(word, p, 2 * BITS);
    const __m512i first = _mm512_set1_epi32(word[0]);
    return BITS == 2 ? first : _mm512_mask_set1_epi32(first, 0xff00, word[1]);
  }
  static __m512i all(const uint8_t* codes) {
    if constexpr (BITS == 4)
      return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)codes));
    int64_t word;
    std::memcpy(&word, codes, 8);
    return _mm512_set1_epi64(word);
  }
};

template <>
struct PairDecoder<2> : TableDecoder<2> {
  using TableDecoder<2>::TableDecoder;

  // Two columns are eight bytes: each word takes those eight of their bits that begin with its code.
  __m512bh neighbours(const uint8_t* codes) const {
    return weights(_mm512_multishift_epi64_epi8(first_bits, all(codes)));
  }

 private:
  static constexpr FirstBits FIRST_BITS{};
  __m512i first_bits = _mm512_load_si512(FIRST_BITS.bits);
};

template <>
struct PairDecoder<4> : TableDecoder<4> {
  using TableDecoder<4>::TableDecoder;
};

// Weights of two columns whose codes lie `next` bytes apart.
template <bool NEIGHBOURS, class Decode>
inline __m512bh decode_pair(const Decode& decode, const uint8_t* codes, int64_t next) {
  if constexpr (NEIGHBOURS) return decode.neighbours(codes);
  return decode(codes, codes + next);
}

#endif

}  // namespace tsugiki
