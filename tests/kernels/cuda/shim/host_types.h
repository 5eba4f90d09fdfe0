// CUDA's vector types, with the alignment that 8- and 16-byte loads have on the device.
#pragma once

#include <cstdint>

#define SHIM_VECTORS(name, T)                                                      \
  struct alignas(2 * sizeof(T)) name##2 {                                          \
    T x, y;                                                                        \
  };                                                                               \
  struct name##3 {                                                                 \
    T x, y, z;                                                                     \
  };                                                                               \
  struct alignas(4 * sizeof(T)) name##4 {                                          \
    T x, y, z, w;                                                                  \
  };                                                                               \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                       \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }               \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }

SHIM_VECTORS(char, signed char)
SHIM_VECTORS(uchar, unsigned char)
SHIM_VECTORS(short, short)
SHIM_VECTORS(ushort, unsigned short)
SHIM_VECTORS(int, int)
SHIM_VECTORS(uint, unsigned)
SHIM_VECTORS(float, float)
#undef SHIM_VECTORS

struct alignas(16) double2 {
  double x, y;
};
struct alignas(16) longlong2 {
  long long x, y;
};
struct alignas(16) ulonglong2 {
  unsigned long long x, y;
};
