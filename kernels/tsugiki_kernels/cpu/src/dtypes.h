// Activation dtypes and their values one at a time. bfloat16 and float16 are stored as 16-bit words;
// conversions round to nearest even.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tsugiki {

enum Dtype : int32_t { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };

inline int64_t dtype_size(Dtype dtype) { return dtype == FLOAT32 ? 4 : 2; }

inline float bf16_to_float(uint16_t bits) {
  const uint32_t wide = uint32_t(bits) << 16;
  float f;
  std::memcpy(&f, &wide, 4);
  return f;
}

inline uint16_t float_to_bf16(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  if (f != f) return 0x7fc0;
  return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float f16_to_float(uint16_t h) {
#if defined(__F16C__)
  return _cvtsh_ss(h);
#else
  const uint32_t sign = uint32_t(h & 0x8000) << 16, magnitude = h & 0x7fff;
  uint32_t bits = (magnitude << 13) + (112u << 23);
  if (magnitude >= 0x7c00) bits += 112u << 23;  // infinity, NaN
  float f;
  if (magnitude < 0x400) {
    f = float(magnitude) * 0x1p-24f;  // subnormal
    std::memcpy(&bits, &f, 4);
  }
  bits |= sign;
  std::memcpy(&f, &bits, 4);
  return f;
#endif
}

inline uint16_t float_to_f16(float f) {
#if defined(__F16C__)
  return _cvtss_sh(f, _MM_FROUND_TO_NEAREST_INT);
#else
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  const uint16_t sign = uint16_t((bits >> 16) & 0x8000);
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return sign | 0x7e00;
  if (bits >= 0x477ff000) return sign | 0x7c00;  // rounds to infinity
  if (bits < 0x38800000) {                       // subnormal: let the float adder round
    float magnitude;
    std::memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    std::memcpy(&bits, &magnitude, 4);
    return sign | uint16_t(bits - 0x3f000000);
  }
  return sign | uint16_t((bits - (112u << 23) + 0xfff + ((bits >> 13) & 1)) >> 13);
#endif
}

// One stored value of each activation dtype.
struct Float32 {
  float bits;
  float value() const { return bits; }
  static Float32 from(float f) { return {f}; }
};
struct Bfloat16 {
  uint16_t bits;
  float value() const { return bf16_to_float(bits); }
  static Bfloat16 from(float f) { return {float_to_bf16(f)}; }
};
struct Float16 {
  uint16_t bits;
  float value() const { return f16_to_float(bits); }
  static Float16 from(float f) { return {float_to_f16(f)}; }
};

}  // namespace tsugiki
