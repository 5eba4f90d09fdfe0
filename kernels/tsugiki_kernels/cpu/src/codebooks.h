// Weights that are looked up (sketch): the records, and the entries of one row's codebooks.
#pragma once

#include "decode.h"
#include "step.h"

namespace tsugiki {

enum ValueKind : int32_t { HALVES, BYTES };

// Mirrored by records.py. An index map, and a value for each entry of each codebook: those of a
// base, or what a variant adds to them.
struct CodebookPart : Part {
  int64_t code_stride;  // bytes per row
  int64_t width;        // inputs of a stretch; its codes fill whole bytes
  int32_t bits, groups;
  int32_t kind;  // ValueKind
  float gain;
  const uint8_t* codes;  // column c at bit c * bits
  const void* values;    // [rows, groups, 2^bits] of `kind`
  const uint16_t* step;  // float16 [rows] beside the gain; null: 1
};

struct CodebookLinear {
  int64_t count;
  CodebookPart parts[1];

  // The part that has an output, or null.
  const CodebookPart* part_of(int64_t output) const {
    for (int64_t p = 0; p < count; ++p)
      if (parts[p].offset <= output && output < parts[p].offset + parts[p].rows) return &parts[p];
    return nullptr;
  }
};

// The same `entries` (a power of two) again and again.
inline Floats repeated(Floats values, int64_t entries) {
#if defined(TSUGIKI_AVX512)
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i places = _mm512_and_si512(lanes, _mm512_set1_epi32(int(entries - 1)));
  return {_mm512_permutexvar_ps(places, values.v)};
#else
  float found[LANES];
  store(found, values);
  for (int64_t i = entries; i < LANES; ++i) found[i] = found[i - entries];
  return load(found);
#endif
}

inline Floats load_bytes(const int8_t* p) {
#if defined(TSUGIKI_AVX512)
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)))};
#else
  float found[LANES];
  for (int i = 0; i < LANES; ++i) found[i] = p[i];
  return load(found);
#endif
}

inline Floats load_some_bytes(const int8_t* p, int64_t count) {
  int8_t bytes[LANES] = {};
  std::memcpy(bytes, p, count);
  return load_bytes(bytes);
}

// The values of a codebook, before step and gain, in sixteen lanes: of an index that is looked up
// only the low four bits count, and codes of two or three bits come with the next one's above them.
template <int BITS>
inline Floats values_of(const CodebookPart& part, int64_t row, int64_t group) {
  constexpr int64_t ENTRIES = 1 << BITS;
  const int64_t first = (row * part.groups + group) * ENTRIES;
  if (part.kind == BYTES) {
    const int8_t* bytes = (const int8_t*)part.values + first;
    if constexpr (BITS == 4) return load_bytes(bytes);
    return repeated(load_some_bytes(bytes, ENTRIES), ENTRIES);
  }
  if constexpr (BITS == 4) return load_f16((const uint16_t*)part.values + first);
  return repeated(load_some(FLOAT16, part.values, first, ENTRIES), ENTRIES);
}

}  // namespace tsugiki
