// Packed codes of 1, 2, 4 or 8 bits -> 16 floats `code - zero`. Sixteen consecutive codes occupy
// 2 * BITS whole bytes, least significant bits first.
#pragma once

#include "simd.h"

namespace tsugiki {

#if defined(TSUGIKI_AVX512)

inline __m512i shifts_of(int bits, int per_word) {
  alignas(64) int32_t shift[LANES];
  for (int i = 0; i < LANES; ++i) shift[i] = (i % per_word) * bits;
  return _mm512_load_si512(shift);
}

// permutexvar reads the low 4 bits of each lane only, so the table repeats instead of masking.
inline __m512 table_of(int bits, float zero) {
  alignas(64) float table[LANES];
  for (int i = 0; i < LANES; ++i) table[i] = float(i & ((1 << bits) - 1)) - zero;
  return _mm512_load_ps(table);
}

template <int BITS>
struct Decoder;

template <>
struct Decoder<1> {
  __m512 off, on;
  explicit Decoder(float zero) : off(_mm512_set1_ps(-zero)), on(_mm512_set1_ps(1.0f - zero)) {}
  Floats operator()(const uint8_t* p) const {
    uint16_t word;
    std::memcpy(&word, p, 2);
    return {_mm512_mask_blend_ps(_cvtu32_mask16(word), off, on)};
  }
};

template <>
struct Decoder<2> {
  __m512 table;
  __m512i shifts = shifts_of(2, 16);
  explicit Decoder(float zero) : table(table_of(2, zero)) {}
  Floats operator()(const uint8_t* p) const {
    int32_t word;
    std::memcpy(&word, p, 4);
    const __m512i index = _mm512_srlv_epi32(_mm512_set1_epi32(word), shifts);
    return {_mm512_permutexvar_ps(index, table)};
  }
};

template <>
struct Decoder<4> {
  __m512 table;
  __m512i shifts = shifts_of(4, 8);
  explicit Decoder(float zero) : table(table_of(4, zero)) {}
  Floats operator()(const uint8_t* p) const {
    const __m512i halves = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    const __m512i words = _mm512_castsi128_si512(_mm_loadl_epi64((const __m128i*)p));
    const __m512i index = _mm512_srlv_epi32(_mm512_permutexvar_epi32(halves, words), shifts);
    return {_mm512_permutexvar_ps(index, table)};
  }
};

template <>
struct Decoder<8> {
  __m512 zero;
  explicit Decoder(float z) : zero(_mm512_set1_ps(z)) {}
  Floats operator()(const uint8_t* p) const {
    const __m512i codes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
    return {_mm512_sub_ps(_mm512_cvtepi32_ps(codes), zero)};
  }
};

#else

typedef int32_t Int8x __attribute__((vector_size(32)));

inline Half16 spread8(Uint8x word, int bits, int first) {
  Uint8x shifts;
  for (int i = 0; i < 8; ++i) shifts[i] = uint32_t((first + i) * bits);
  const Uint8x code = (word >> shifts) & ((1u << bits) - 1);
  return __builtin_convertvector((Int8x)code, Half16);
}

inline Uint8x splat_word(uint32_t w) { return Uint8x{w, w, w, w, w, w, w, w}; }

template <int BITS>
struct Decoder {
  Floats zero;
  explicit Decoder(float z) : zero(splat(z)) {}
  Floats operator()(const uint8_t* p) const { return codes(p) - zero; }

 private:
  static Floats codes(const uint8_t* p) {
    if constexpr (BITS == 8) {
      float wide[LANES];
      for (int i = 0; i < LANES; ++i) wide[i] = p[i];
      return load(wide);
    } else if constexpr (BITS == 4) {
      uint32_t word[2];
      std::memcpy(word, p, 8);
      return {spread8(splat_word(word[0]), 4, 0), spread8(splat_word(word[1]), 4, 0)};
    } else {
      uint32_t word = 0;
      std::memcpy(&word, p, 2 * BITS);
      return {spread8(splat_word(word), BITS, 0), spread8(splat_word(word), BITS, 8)};
    }
  }
};

#endif

#if defined(TSUGIKI_AVX512)

// Where each of 16 consecutive codes lies: its two bytes, and its first bit there.
struct CodePlaces {
  alignas(64) uint8_t bytes[64];
  alignas(64) int32_t shifts[LANES];
};

constexpr CodePlaces code_places(int bits) {
  CodePlaces places{};
  for (int i = 0; i < LANES; ++i) {
    const int byte = i * bits / 8;
    places.bytes[4 * i] = uint8_t(byte);
    places.bytes[4 * i + 1] = byte + 1 < 16 ? uint8_t(byte + 1) : 0x80;  // 0x80: a zero
    places.bytes[4 * i + 2] = places.bytes[4 * i + 3] = 0x80;
    places.shifts[i] = i * bits % 8;
  }
  return places;
}

// Sixteen consecutive codes of 1 to 8 bits; reads 16 bytes: extents end with slack.
inline Floats sixteen_codes(const uint8_t* p, int bits) {
  static constexpr CodePlaces places[] = {code_places(0), code_places(1), code_places(2),
                                          code_places(3), code_places(4), code_places(5),
                                          code_places(6), code_places(7), code_places(8)};
  const __m512i all = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)p));
  const __m512i words = _mm512_shuffle_epi8(all, _mm512_load_si512(places[bits].bytes));
  const __m512i codes = _mm512_srlv_epi32(words, _mm512_load_si512(places[bits].shifts));
  const __m512i kept = _mm512_and_si512(codes, _mm512_set1_epi32((1 << bits) - 1));
  return {_mm512_cvtepi32_ps(kept)};
}

#else

// Eight consecutive codes of 1 to 8 bits, which are `bits` whole bytes; reads 8 of them.
inline Half16 eight_codes(const uint8_t* p, int bits) {
  typedef uint64_t Words __attribute__((vector_size(64)));
  typedef int32_t Codes __attribute__((vector_size(32)));
  uint64_t word;
  std::memcpy(&word, p, 8);
  const Words shifts = Words{0, 1, 2, 3, 4, 5, 6, 7} * uint64_t(bits);
  const Words codes = (Words{} + word) >> shifts & ((uint64_t(1) << bits) - 1);
  return __builtin_convertvector(__builtin_convertvector(codes, Codes), Half16);
}

// Sixteen of them, for any width. Reads up to 7 bytes past the last: extents end with slack.
inline Floats sixteen_codes(const uint8_t* p, int bits) {
  return join(eight_codes(p, bits), eight_codes(p + bits, bits));
}

#endif

// Fewer than 16 codes, without reading past their last byte: lanes beyond `count` come out as 0.
template <int BITS>
__attribute__((noinline)) Floats decode_some(const Decoder<BITS>& decode, const uint8_t* p,
                                             int64_t count) {
  uint8_t bytes[2 * BITS] = {};
  std::memcpy(bytes, p, (count * BITS + 7) / 8);
  return keep_first(decode(bytes), count);
}

}  // namespace tsugiki
