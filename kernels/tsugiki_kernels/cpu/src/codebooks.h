// Rows of weights that are looked up: an index of 2 to 4 bits for every input, and for every stretch
// of inputs a codebook (sketch). Lane l of a stretch sums its inputs c = l (mod 16) in order, over the
// stretches in order; the lanes are summed at the end.
#pragma once

#include "decode.h"
#include "tasks.h"
#include "tokens.h"

namespace tsugiki {

enum ValueKind : int32_t { HALVES, BYTES };

// Mirrored by records.py.
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
};

// The base's own weight: its product is the output, not added to one.
struct BaseCodebooks : CodebookPart {};

struct BaseCodebookLinear {
  int64_t count;
  BaseCodebooks parts[1];
};

// Sixteen entries, repeated where a codebook has fewer: of an index that is looked up only the low
// four bits count, and codes of two or three bits come with the next one's bits above them.
inline Floats entries_of(const CodebookPart& part, int64_t row, int64_t group) {
  const int64_t entries = int64_t(1) << part.bits, first = (row * part.groups + group) * entries;
  if (part.bits == 4 && part.kind == HALVES) return load_f16((const uint16_t*)part.values + first);
  float table[LANES];
  for (int i = 0; i < LANES; ++i) {
    const int64_t at = first + (i & (entries - 1));
    table[i] = part.kind == BYTES ? float(((const int8_t*)part.values)[at])
                                  : f16_to_float(((const uint16_t*)part.values)[at]);
  }
  return load(table);
}

// Sixteen consecutive codes of BITS bits, 2 * BITS bytes, each replaced by its entry.
template <int BITS>
struct Lookup {
#if defined(TSUGIKI_AVX512)
  static Floats at(const uint8_t* p, Floats table) {
    if constexpr (BITS == 4) {
      const __m512i halves = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
      const __m512i shifts =
          _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
      const __m512i words = _mm512_castsi128_si512(_mm_loadl_epi64((const __m128i*)p));
      const __m512i spread = _mm512_permutexvar_epi32(halves, words);
      return {_mm512_permutexvar_ps(_mm512_srlv_epi32(spread, shifts), table.v)};
    }
    uint64_t word = 0;
    std::memcpy(&word, p, 2 * BITS);
    const __m512i low = _mm512_setr_epi64(0, BITS, 2 * BITS, 3 * BITS, 4 * BITS, 5 * BITS,
                                          6 * BITS, 7 * BITS);
    const __m512i all = _mm512_set1_epi64(int64_t(word));
    const __m512i first = _mm512_srlv_epi64(all, low);
    const __m512i second = _mm512_srlv_epi64(_mm512_srli_epi64(all, 8 * BITS), low);
    const __m512i index = _mm512_inserti64x4(
        _mm512_castsi256_si512(_mm512_cvtepi64_epi32(first)), _mm512_cvtepi64_epi32(second), 1);
    return {_mm512_permutexvar_ps(index, table.v)};
  }
#else
  static Floats at(const uint8_t* p, Floats table) {
    float entries[LANES], found[LANES];
    store(entries, table);
    uint64_t word = 0;
    std::memcpy(&word, p, 2 * BITS);
    for (int i = 0; i < LANES; ++i) found[i] = entries[word >> (i * BITS) & ((1 << BITS) - 1)];
    return load(found);
  }
#endif

  // The first `count` codes, zeros beyond; reads no byte after theirs.
  __attribute__((noinline)) static Floats some(const uint8_t* p, Floats table, int64_t count) {
    uint8_t bytes[2 * BITS] = {};
    std::memcpy(bytes, p, count * BITS / 8);
    return keep_first(at(bytes, table), count);
  }
};

template <int BITS, int SOME_ROWS, int TOKENS>
inline void codebook_tile(const CodebookPart& part, int64_t row, const float* x, int64_t x_stride,
                          float* sums, int64_t sums_stride) {
  Floats total[SOME_ROWS][TOKENS];
  for (int r = 0; r < SOME_ROWS; ++r)
    for (int t = 0; t < TOKENS; ++t) total[r][t] = zeros();
  const int64_t whole = part.width / LANES * LANES, rest = part.width - whole;
  for (int64_t g = 0; g < part.groups; ++g) {
    const uint8_t* codes = part.codes + row * part.code_stride + g * part.width * BITS / 8;
    const float* inputs = x + g * part.width;
    Floats table[SOME_ROWS];
    for (int r = 0; r < SOME_ROWS; ++r) table[r] = entries_of(part, row + r, g);
    for (int64_t c = 0; c < whole; c += LANES) {
      Floats values[TOKENS];
      for (int t = 0; t < TOKENS; ++t) values[t] = load(inputs + t * x_stride + c);
      for (int r = 0; r < SOME_ROWS; ++r) {
        const Floats weight =
            Lookup<BITS>::at(codes + r * part.code_stride + c * BITS / 8, table[r]);
        for (int t = 0; t < TOKENS; ++t) total[r][t] = fma(weight, values[t], total[r][t]);
      }
    }
    for (int r = 0; r < SOME_ROWS && rest > 0; ++r) {
      const Floats weight =
          Lookup<BITS>::some(codes + r * part.code_stride + whole * BITS / 8, table[r], rest);
      for (int t = 0; t < TOKENS; ++t)
        total[r][t] =
            fma(weight, load_some(FLOAT32, inputs + t * x_stride, whole, rest), total[r][t]);
    }
  }
  for (int t = 0; t < TOKENS; ++t)
    for (int r = 0; r < SOME_ROWS; ++r) sums[t * sums_stride + r] = sum(total[r][t]);
}

template <int BITS, int TOKENS>
inline void codebook_rows(const CodebookPart& part, int64_t row, int64_t rows, const float* x,
                          int64_t x_stride, float* sums, int64_t sums_stride) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4)
    codebook_tile<BITS, 4, TOKENS>(part, row + r, x, x_stride, sums + r, sums_stride);
  for (; r < rows; ++r)
    codebook_tile<BITS, 1, TOKENS>(part, row + r, x, x_stride, sums + r, sums_stride);
}

// sums[t * LANES + r] = weights[row + r] . x[t], before step and gain.
template <int BITS>
inline void codebook_dot(const CodebookPart& part, int64_t row, int64_t rows, const float* x,
                         int64_t x_stride, int64_t tokens, float* sums) {
  int64_t t = 0;
  for (; t + 4 <= tokens; t += 4)
    codebook_rows<BITS, 4>(part, row, rows, x + t * x_stride, x_stride, sums + t * LANES, LANES);
  for (; t < tokens; ++t)
    codebook_rows<BITS, 1>(part, row, rows, x + t * x_stride, x_stride, sums + t * LANES, LANES);
}

inline void group_sums(const CodebookPart& part, int64_t, int64_t row, int64_t count, const float* x,
                       int64_t stride, int64_t tokens, float* sums) {
  switch (part.bits) {
    case 2: return codebook_dot<2>(part, row, count, x, stride, tokens, sums);
    case 3: return codebook_dot<3>(part, row, count, x, stride, tokens, sums);
    default: return codebook_dot<4>(part, row, count, x, stride, tokens, sums);
  }
}

inline Floats scale_of(const CodebookPart& part, int64_t row, int64_t count) {
  if (part.step == nullptr) return splat(part.gain);
  return load_up_to(FLOAT16, part.step, row, count) * splat(part.gain);
}

inline int64_t cost_of(const CodebookPart&, int64_t inputs) { return inputs; }

inline void put(const Step& step, const BaseCodebooks&, int64_t row, int64_t column, int64_t count,
                Floats value) {
  store_up_to(step.out_dtype, step.out, row * step.out_stride + column, value, count);
}

}  // namespace tsugiki
