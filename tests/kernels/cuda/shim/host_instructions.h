// The CPU's version of every wrapper in instructions.cuh; SHIM_ARCH says which GPU is played.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "block.h"
#include "host_functions.h"
#include "host_types.h"
#include "host_warp.h"

struct f16;
struct bf16;

constexpr bool HAS_BF16_MMA = SHIM_ARCH >= 800;

// ---- conversions ----

inline float float_of_f16(uint16_t bits) { return _cvtsh_ss(bits); }
inline uint16_t f16_of_float(float value) { return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT); }

inline uint16_t bf16_of_float(float value) {
  const uint32_t word = __float_as_uint(value);
  if ((word & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return static_cast<uint16_t>((word + 0x7fffu + (word >> 16 & 1u)) >> 16);
}

inline uint32_t f16_pair_of_floats(float low, float high) {
  return f16_of_float(low) | uint32_t{f16_of_float(high)} << 16;
}
inline uint32_t bf16_pair_of_floats(float low, float high) {
  return bf16_of_float(low) | uint32_t{bf16_of_float(high)} << 16;
}

inline uint32_t f16_pair_sum(uint32_t first, uint32_t second) {
  const auto sum = [](uint32_t a, uint32_t b) {
    return f16_of_float(float_of_f16(uint16_t(a)) + float_of_f16(uint16_t(b)));
  };
  return sum(first, second) | uint32_t{sum(first >> 16, second >> 16)} << 16;
}

// ---- bits ----

template <uint32_t mask, uint32_t pattern>
inline uint32_t masked_xor(uint32_t word) {
  return (word & mask) ^ pattern;
}

template <uint32_t mask, uint32_t pattern>
inline uint32_t masked_or(uint32_t word) {
  return (word & mask) | pattern;
}

template <uint32_t factor>
inline uint32_t multiply_add(uint32_t word, uint32_t term) {
  return word * factor + term;
}

// ---- memory ----

inline uint4 load_stream(const void* global) { return *static_cast<const uint4*>(global); }
inline void store_stream(void* global, uint4 value) { *static_cast<uint4*>(global) = value; }

// The destination is poison until the copy's group was waited for: a wait too early shows.
inline void copy_async(void* shared, const void* global) {
  if (SHIM_ARCH < 800) {
    *static_cast<uint4*>(shared) = *static_cast<const uint4*>(global);
    return;
  }
  *static_cast<uint4*>(shared) = {~0u, ~0u, ~0u, ~0u};
  shim::copy_start({shared, global});
}

inline void copy_async_commit() { shim::copy_commit(); }

template <int groups>
inline void copy_async_wait() {
  for (shim::Copy copy; shim::copy_finished(groups, &copy);)
    *static_cast<uint4*>(copy.to) = *static_cast<const uint4*>(copy.from);
}

// ---- tensor cores ----

namespace shim {

// Lane l gets the row addresses of its elements: row l / 4 of each matrix, or, transposed, rows
// 2 (l % 4) and the next.
struct MatrixRows {
  const char* row;
  const char* rows[4];       // of row l / 4
  const char* pairs[4][2];   // of rows 2 (l % 4), + 1

  SHIM_ANSWER static void answer(void* const* requests, uint32_t) {
    for (int lane = 0; lane < 32; lane++) {
      MatrixRows& mine = *static_cast<MatrixRows*>(requests[lane]);
      for (int matrix = 0; matrix < 4; matrix++) {
        const auto row = [&](int i) {
          return static_cast<const MatrixRows*>(requests[8 * matrix + i])->row;
        };
        mine.rows[matrix] = row(lane / 4);
        mine.pairs[matrix][0] = row(lane % 4 * 2);
        mine.pairs[matrix][1] = row(lane % 4 * 2 + 1);
      }
    }
  }
};

inline MatrixRows matrix_rows(const void* row, const char* name, Place place) {
  MatrixRows request{static_cast<const char*>(row), {}, {}};
  collective(~0u, name, place, &request, MatrixRows::answer);
  return request;
}

inline void check_row(const void* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) fault("load_matrix: a row is not aligned to 16");
}

template <int matrices>
void load_rows(uint32_t (&part)[matrices], const void* row, Place place) {
  if (current_lane < 8 * matrices) check_row(row);
  const MatrixRows found = matrix_rows(row, "load_matrix", place);
  for (int i = 0; i < matrices; i++)
    part[i] = *reinterpret_cast<const uint32_t*>(found.rows[i] + current_lane % 4 * 4);
}

template <int matrices>
void load_columns(uint32_t (&part)[matrices], const void* row, Place place) {
  if (current_lane < 8 * matrices) check_row(row);
  const MatrixRows found = matrix_rows(row, "load_matrix_transposed", place);
  const int column = current_lane / 4 * 2;
  for (int i = 0; i < matrices; i++)
    part[i] = *reinterpret_cast<const uint16_t*>(found.pairs[i][0] + column) |
              uint32_t{*reinterpret_cast<const uint16_t*>(found.pairs[i][1] + column)} << 16;
}

inline float f16_element(uint32_t pair, int half) {
  return float_of_f16(static_cast<uint16_t>(pair >> (16 * half)));
}
inline float bf16_element(uint32_t pair, int half) {
  return __uint_as_float(half ? pair & 0xffff0000u : pair << 16);
}

// d += a b with k = 16. Products are exact in double; one rounding at the end, where the hardware
// rounds somewhere in between.
struct Product {
  float* d;
  const uint32_t* a;
  const uint32_t* b;

  template <float (*element)(uint32_t, int)>
  SHIM_ANSWER static void answer(void* const* requests, uint32_t) {
    double a[16][16], b[16][8];
    for (int lane = 0; lane < 32; lane++) {
      const Product& part = *static_cast<const Product*>(requests[lane]);
      const int row = lane / 4, pair = lane % 4 * 2;
      for (int half = 0; half < 2; half++)
        for (int k = 0; k < 2; k++) {
          a[row][8 * k + pair + half] = element(part.a[2 * k], half);
          a[row + 8][8 * k + pair + half] = element(part.a[2 * k + 1], half);
          b[8 * k + pair + half][row] = element(part.b[k], half);
        }
    }
    for (int lane = 0; lane < 32; lane++) {
      const Product& part = *static_cast<const Product*>(requests[lane]);
      for (int i = 0; i < 4; i++) {
        const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        double sum = part.d[i];
        for (int k = 0; k < 16; k++) sum += a[row][k] * b[k][column];
        part.d[i] = static_cast<float>(sum);
      }
    }
  }
};

}  // namespace shim

inline void load_matrix(uint32_t (&part)[4], const void* row,
                        shim::Place place = shim::Place::here()) {
  shim::load_rows(part, row, place);
}
inline void load_matrix(uint32_t (&part)[2], const void* row,
                        shim::Place place = shim::Place::here()) {
  shim::load_rows(part, row, place);
}
inline void load_matrix_transposed(uint32_t (&part)[4], const void* row,
                                   shim::Place place = shim::Place::here()) {
  shim::load_columns(part, row, place);
}
inline void load_matrix_transposed(uint32_t (&part)[2], const void* row,
                                   shim::Place place = shim::Place::here()) {
  shim::load_columns(part, row, place);
}

template <class T>
inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                         shim::Place place = shim::Place::here());

template <>
inline void mma_m16n8k16<f16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                              shim::Place place) {
  shim::Product request{d, a, b};
  shim::collective(~0u, "mma_m16n8k16<f16>", place, &request,
                   shim::Product::answer<shim::f16_element>);
}

template <>
inline void mma_m16n8k16<bf16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                               shim::Place place) {
  if (!HAS_BF16_MMA) __trap();
  shim::Product request{d, a, b};
  shim::collective(~0u, "mma_m16n8k16<bf16>", place, &request,
                   shim::Product::answer<shim::bf16_element>);
}

inline void mma_m16n8k8_f16(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b,
                            shim::Place place = shim::Place::here()) {
  const uint32_t a[4] = {a0, a1, 0, 0}, both[2] = {b, 0};
  mma_m16n8k16<f16>(d, a, both, place);
}
