// Codes of the E8P lattice (tsugiki_kernels/lattice.py) and what they stand for.
//
// A code's eight weights are eight nibbles of a word: those of its low byte's entry in one table,
// with bits flipped as its high byte's entry in another says. A nibble n stands for (n - center) / 2;
// nibbles 0 to 3 are the even columns, 4 to 7 the odd ones, so that a mask makes neighbours of two.
#pragma once

#include "eight.cuh"

constexpr int32_t GROUP = 8;  // weights of a code
constexpr int32_t ENTRIES = 256;
constexpr int32_t LATTICE_TABLES = 3;  // magnitudes, signs and shifts, points of the small ball
constexpr int32_t CODES_AT_ONCE = 8;   // of a lane

// Eight codes of one stage: two in a word, or four of a byte each.
struct Codes {
  uint32_t words[4];
};

DEVICE Codes no_codes() { return Codes{{0, 0, 0, 0}}; }

// Codes first .. first + 7 of a row of 16-bit codes; zeros beyond `groups`.
DEVICE Codes wide_codes(const uint16_t* row, int32_t first, int32_t groups) {
  const uint16_t* from = row + first;
  if (first + CODES_AT_ONCE <= groups && is_aligned(from)) {
    const uint4 all = load_stream(from);
    return Codes{{all.x, all.y, all.z, all.w}};
  }
  Codes found = no_codes();
#pragma unroll
  for (int32_t i = 0; i < CODES_AT_ONCE; ++i)
    if (first + i < groups) found.words[i / 2] |= uint32_t{from[i]} << i % 2 * 16;
  return found;
}

// The same of 8-bit codes, in words 0 and 1.
DEVICE Codes narrow_codes(const uint8_t* row, int32_t first, int32_t groups) {
  const uint8_t* from = row + first;
  Codes found = no_codes();
#pragma unroll
  for (int32_t i = 0; i < CODES_AT_ONCE; ++i)
    if (first + i < groups) found.words[i / 4] |= uint32_t{from[i]} << i % 4 * 8;
  return found;
}

// Nibbles of code i, which must be known at compile time; `tables` in shared memory.
DEVICE uint32_t wide_nibbles(const uint32_t* tables, const Codes& codes, int32_t i) {
  const uint32_t word = codes.words[i / 2];
  const uint32_t low = i % 2 == 0 ? word & 0xffu : word >> 16 & 0xffu;
  const uint32_t high = i % 2 == 0 ? word >> 8 & 0xffu : word >> 24;
  return tables[low] ^ tables[ENTRIES + high];
}

DEVICE uint32_t narrow_nibbles(const uint32_t* tables, const Codes& codes, int32_t i) {
  return tables[2 * ENTRIES + (codes.words[i / 4] >> i % 4 * 8 & 0xffu)];
}

// What is taken from nibbles: the middle of the lattice's two shifted halves, and of the ball.
constexpr float WIDE_CENTER = 7.5f;
constexpr float NARROW_CENTER = 8.0f;

// 2 weights[2 j], 2 weights[2 j + 1] in f16, exactly: the nibbles become mantissas of 64 + n.
DEVICE void f16_weights(uint32_t nibbles, uint32_t minus_center, uint32_t (&pairs)[4]) {
  constexpr uint32_t MANTISSAS = 0x00f000f0u, SIXTY_FOUR = 0x54005400u;
  pairs[0] = f16_pair_sum(masked_or<MANTISSAS, SIXTY_FOUR>(nibbles << 4), minus_center);
  pairs[1] = f16_pair_sum(masked_or<MANTISSAS, SIXTY_FOUR>(nibbles), minus_center);
  pairs[2] = f16_pair_sum(masked_or<MANTISSAS, SIXTY_FOUR>(nibbles >> 4), minus_center);
  pairs[3] = f16_pair_sum(masked_or<MANTISSAS, SIXTY_FOUR>(nibbles >> 8), minus_center);
}

// weights[i] += factor * 2 * what the nibbles stand for.
DEVICE void add_weights(uint32_t nibbles, float center, float factor, float (&weights)[GROUP]) {
#pragma unroll
  for (int32_t i = 0; i < GROUP; ++i) {
    const uint32_t nibble = nibbles >> (i / 2 * 4 + i % 2 * 16) & 0xfu;
    weights[i] = fmaf(static_cast<float>(nibble) - center, factor, weights[i]);
  }
}

// The tables into shared memory, by all threads of a block.
DEVICE void load_tables(const uint32_t* tables, uint32_t* shared, int32_t threads) {
  for (int32_t i = threadIdx.x; i < LATTICE_TABLES * ENTRIES; i += threads) shared[i] = tables[i];
  __syncthreads();
}
