// Sixteen float32 lanes, the unit of every kernel here, and the loads and stores of the activation
// dtypes. AVX-512 has its own instructions; elsewhere a pair of 8-lane GCC vectors, which AVX2
// holds in registers and plain x86-64 splits further. Lane arithmetic is the same for every kernel
// of one library: multiply-adds are written out and -ffp-contract=off keeps the compiler from
// fusing others, so that two code paths of one sum agree bit by bit.
#pragma once

#include <initializer_list>

#include "dtypes.h"

namespace tsugiki {

constexpr int LANES = 16;

typedef float Half16 __attribute__((vector_size(32)));     // 8 float lanes
typedef uint32_t Uint8x __attribute__((vector_size(32)));  // 8 uint32 lanes

inline Half16 fma8(Half16 a, Half16 b, Half16 c) {
#if defined(__FMA__)
  return (Half16)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

inline Half16 load8(const float* p) {
  Half16 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline Half16 splat8(float f) { return Half16{f, f, f, f, f, f, f, f}; }

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define TSUGIKI_AVX512 1

struct Floats {
  __m512 v;
};

inline Floats zeros() { return {_mm512_setzero_ps()}; }
inline Floats splat(float f) { return {_mm512_set1_ps(f)}; }
inline Floats load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, Floats a) { _mm512_storeu_ps(p, a.v); }
inline Floats fma(Floats a, Floats b, Floats c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Floats operator+(Floats a, Floats b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Floats operator-(Floats a, Floats b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Floats operator*(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Floats operator/(Floats a, Floats b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Floats max(Floats a, Floats b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Half16 low(Floats a) { return (Half16)_mm512_castps512_ps256(a.v); }
inline Half16 high(Floats a) { return (Half16)_mm512_extractf32x8_ps(a.v, 1); }
inline Floats join(Half16 lo, Half16 hi) {
  return {_mm512_insertf32x8(_mm512_castps256_ps512((__m256)lo), (__m256)hi, 1)};
}

inline Floats load_bf16(const uint16_t* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}

inline Floats load_f16(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))};
}

// Round to nearest even on the integers: exact for denormals too, unlike vcvtneps2bf16.
inline void store_bf16(uint16_t* p, Floats a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  const __m512i safe = _mm512_mask_mov_epi32(up, nan, _mm512_set1_epi32(0x7fc00000));
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(safe, 16)));
}

inline void store_f16(uint16_t* p, Floats a) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}

// 2^n for lanes holding whole numbers in [-126, 127]
inline Floats power_of_two(Floats n) {
  const __m512i exponent = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23))};
}

inline Floats round_to_whole(Floats a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}

#else

struct Floats {
  Half16 lo, hi;
};

inline Floats zeros() { return {splat8(0), splat8(0)}; }
inline Floats splat(float f) { return {splat8(f), splat8(f)}; }
inline Floats load(const float* p) { return {load8(p), load8(p + 8)}; }
inline void store(float* p, Floats a) { std::memcpy(p, &a, sizeof a); }
inline Floats fma(Floats a, Floats b, Floats c) {
  return {fma8(a.lo, b.lo, c.lo), fma8(a.hi, b.hi, c.hi)};
}
inline Floats operator+(Floats a, Floats b) { return {a.lo + b.lo, a.hi + b.hi}; }
inline Floats operator-(Floats a, Floats b) { return {a.lo - b.lo, a.hi - b.hi}; }
inline Floats operator*(Floats a, Floats b) { return {a.lo * b.lo, a.hi * b.hi}; }
inline Floats operator/(Floats a, Floats b) { return {a.lo / b.lo, a.hi / b.hi}; }
inline Floats max(Floats a, Floats b) {
  return {a.lo > b.lo ? a.lo : b.lo, a.hi > b.hi ? a.hi : b.hi};
}
inline Half16 low(Floats a) { return a.lo; }
inline Half16 high(Floats a) { return a.hi; }
inline Floats join(Half16 lo, Half16 hi) { return {lo, hi}; }

template <float (*convert)(uint16_t)>
inline Floats load_16bit(const uint16_t* p) {
  float wide[LANES];
  for (int i = 0; i < LANES; ++i) wide[i] = convert(p[i]);
  return load(wide);
}

template <uint16_t (*convert)(float)>
inline void store_16bit(uint16_t* p, Floats a) {
  float wide[LANES];
  store(wide, a);
  for (int i = 0; i < LANES; ++i) p[i] = convert(wide[i]);
}

inline Floats load_bf16(const uint16_t* p) { return load_16bit<bf16_to_float>(p); }
inline Floats load_f16(const uint16_t* p) { return load_16bit<f16_to_float>(p); }
inline void store_bf16(uint16_t* p, Floats a) { store_16bit<float_to_bf16>(p, a); }
inline void store_f16(uint16_t* p, Floats a) { store_16bit<float_to_f16>(p, a); }

inline Half16 power_of_two8(Half16 n) {
  typedef int32_t Int8x __attribute__((vector_size(32)));
  const Int8x bits = (__builtin_convertvector(n, Int8x) + 127) << 23;
  return (Half16)bits;
}

inline Floats power_of_two(Floats n) { return {power_of_two8(n.lo), power_of_two8(n.hi)}; }

// Adding and taking away 1.5 * 2^23 leaves the nearest whole number, for |a| < 2^22.
inline Floats round_to_whole(Floats a) {
  const Floats shift = splat(12582912.0f);
  return (a + shift) - shift;
}

#endif

// For results of products of pairs, which flush denormals too: in a third of the time.
inline void store_bf16_flushed(uint16_t* p, Floats a) {
#if defined(TSUGIKI_AVX512) && defined(__AVX512BF16__)
  const __m256bh rounded = _mm512_cvtneps_pbh(a.v);
  std::memcpy(p, &rounded, sizeof rounded);
#else
  store_bf16(p, a);
#endif
}

// x[columns[0]], ... x[columns[15]]. Sixteen loads: vgatherdps is slower on Zen 4, and on Intel since
// its microcode fixes.
inline Floats gather(const float* x, const uint16_t* c) {
  const Half16 lo = {x[c[0]], x[c[1]], x[c[2]], x[c[3]], x[c[4]], x[c[5]], x[c[6]], x[c[7]]};
  c += 8;
  const Half16 hi = {x[c[0]], x[c[1]], x[c[2]], x[c[3]], x[c[4]], x[c[5]], x[c[6]], x[c[7]]};
  return join(lo, hi);
}

inline Floats load_as(Dtype dtype, const void* p, int64_t index) {
  if (dtype == BFLOAT16) return load_bf16((const uint16_t*)p + index);
  if (dtype == FLOAT16) return load_f16((const uint16_t*)p + index);
  return load((const float*)p + index);
}

inline void store_as(Dtype dtype, void* p, int64_t index, Floats a) {
  if (dtype == BFLOAT16) return store_bf16((uint16_t*)p + index, a);
  if (dtype == FLOAT16) return store_f16((uint16_t*)p + index, a);
  store((float*)p + index, a);
}

// The values as they would be read back after a store in this dtype.
inline Floats rounded(Dtype dtype, Floats a) {
  if (dtype == FLOAT32) return a;
  float stored[LANES];  // wide enough for every dtype
  store_as(dtype, stored, 0, a);
  return load_as(dtype, stored, 0);
}

// The same for fewer than 16 values: the other lanes are zero, and memory beyond is not touched.
__attribute__((noinline)) inline Floats load_some(Dtype dtype, const void* p, int64_t index,
                                                 int64_t count) {
  alignas(64) char lanes[LANES * 4] = {};
  const int64_t size = dtype_size(dtype);
  std::memcpy(lanes, (const char*)p + index * size, count * size);
  return load_as(dtype, lanes, 0);
}

__attribute__((noinline)) inline void store_some(Dtype dtype, void* p, int64_t index, Floats a,
                                                 int64_t count) {
  alignas(64) char lanes[LANES * 4];
  const int64_t size = dtype_size(dtype);
  store_as(dtype, lanes, 0, a);
  std::memcpy((char*)p + index * size, lanes, count * size);
}

inline Floats load_up_to(Dtype dtype, const void* p, int64_t index, int64_t count) {
  return count >= LANES ? load_as(dtype, p, index) : load_some(dtype, p, index, count);
}

inline void store_up_to(Dtype dtype, void* p, int64_t index, Floats a, int64_t count) {
  if (count >= LANES) return store_as(dtype, p, index, a);
  store_some(dtype, p, index, a, count);
}

// The first `count` lanes, zeros beyond.
inline Floats keep_first(Floats a, int64_t count) {
  static const uint32_t window[2 * LANES] = {~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u,
                                             ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u};
  Uint8x lo, hi;
  std::memcpy(&lo, window + LANES - count, sizeof lo);
  std::memcpy(&hi, window + LANES - count + 8, sizeof hi);
  return join((Half16)((Uint8x)low(a) & lo), (Half16)((Uint8x)high(a) & hi));
}

// The one order in which lanes are summed: pairs at distance 8, 4, 2, 1.
inline float sum(Floats a) {
  float s[8];
  const Half16 eight = low(a) + high(a);
  std::memcpy(s, &eight, sizeof s);
  for (int i = 0; i < 4; ++i) s[i] = s[i] + s[i + 4];
  return (s[0] + s[2]) + (s[1] + s[3]);
}

inline float largest(Floats a) {
  const Half16 lo = low(a), hi = high(a), eight = lo > hi ? lo : hi;
  float s[8];
  std::memcpy(s, &eight, sizeof s);
  for (int half = 4; half >= 1; half /= 2)
    for (int i = 0; i < half; ++i) s[i] = s[i] > s[i + half] ? s[i] : s[i + half];
  return s[0];
}

// Rows become columns.
inline void transpose8(Half16 (&r)[8]) {
  Half16 s[8];
  for (int i = 0; i < 4; ++i) {
    s[2 * i] = __builtin_shuffle(r[2 * i], r[2 * i + 1], Uint8x{0, 8, 2, 10, 4, 12, 6, 14});
    s[2 * i + 1] = __builtin_shuffle(r[2 * i], r[2 * i + 1], Uint8x{1, 9, 3, 11, 5, 13, 7, 15});
  }
  for (int i : {0, 1, 4, 5}) {
    r[i] = __builtin_shuffle(s[i], s[i + 2], Uint8x{0, 1, 8, 9, 4, 5, 12, 13});
    r[i + 2] = __builtin_shuffle(s[i], s[i + 2], Uint8x{2, 3, 10, 11, 6, 7, 14, 15});
  }
  for (int i = 0; i < 4; ++i) {
    s[i] = __builtin_shuffle(r[i], r[i + 4], Uint8x{0, 1, 2, 3, 8, 9, 10, 11});
    s[i + 4] = __builtin_shuffle(r[i], r[i + 4], Uint8x{4, 5, 6, 7, 12, 13, 14, 15});
  }
  for (int i = 0; i < 8; ++i) r[i] = s[i];
}

// Lanes that hold two bfloat16 each, the first in the low half, seen as floats.
inline Half16 first_of_pair(Half16 pairs) { return (Half16)((Uint8x)pairs << 16); }
inline Half16 second_of_pair(Half16 pairs) { return (Half16)((Uint8x)pairs & 0xffff0000u); }
inline Floats first_of_pair(Floats p) { return join(first_of_pair(low(p)), first_of_pair(high(p))); }
inline Floats second_of_pair(Floats p) {
  return join(second_of_pair(low(p)), second_of_pair(high(p)));
}

// c + a.first * b.first + a.second * b.second for lanes of two bfloat16
inline Floats fma_pairs(Floats a, Floats b, Floats c) {
#if defined(TSUGIKI_AVX512) && defined(__AVX512BF16__)
  return {_mm512_dpbf16_ps(c.v, (__m512bh)a.v, (__m512bh)b.v)};
#else
  c = fma(first_of_pair(a), first_of_pair(b), c);
  return fma(second_of_pair(a), second_of_pair(b), c);
#endif
}

}  // namespace tsugiki
