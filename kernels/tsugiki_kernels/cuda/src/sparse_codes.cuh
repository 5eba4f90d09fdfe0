// Codes of the tile form: how they lie in the words of a lane, and their values as matrix elements.
//
// A panel is 16 rows by 32 kept columns. Of each of its two halves of 16 columns (a step of
// mma.m16n8k16) lane 4 g + t holds four pairs: rows g and g + 8 by columns 2 t, 2 t + 1 and then by
// 2 t + 8, 2 t + 9. The codes of a pair lie in the two halves of a word, so that one shift and one
// logical operation make an operand of two: code + SHIFT<bits> in 16 bits. The shift is taken
// off the sums. Bits: 1: 64 columns to a word; 2: 32; 4: 16; 8: two words of 4 for 16 columns.
#pragma once

#include "sparse.cuh"

template <int32_t BITS>
struct TileCodes {
  static constexpr int32_t PLANES = BITS == 8 ? 2 : 1;  // low and high halves of the codes
  static constexpr int32_t PLANE_BITS = BITS == 8 ? 4 : BITS;
  static constexpr int32_t PANELS = 8 / BITS;  // to 16 bytes of a lane
  static constexpr int32_t SLOTS = 16 / PLANE_BITS;  // pairs in a word
  // What operands are above their codes; exact in 16 bits together with any code.
  static constexpr float SHIFT = BITS == 1 ? -0.5f : BITS == 2 ? 4.0f : 16.0f;

  // Words of a lane for a number of kept columns.
  DEVICE static int32_t words(int32_t kept) {
    const int32_t panels = ceil_div(kept, PANEL);
    return BITS == 1 ? ceil_div(panels, 2) : panels * (BITS / 2);
  }
};

// f16 and bf16: the pattern of SHIFT in both halves, and the place of a code's lowest bit.
template <class T, int32_t PLANE_BITS>
struct OperandPattern;
template <>
struct OperandPattern<f16, 2> {
  static constexpr uint32_t PATTERN = 0x44004400u, MASK = 0x03000300u;
  static constexpr int32_t PLACE = 8;
};
template <>
struct OperandPattern<bf16, 2> {
  static constexpr uint32_t PATTERN = 0x40804080u, MASK = 0x00600060u;
  static constexpr int32_t PLACE = 5;
};
template <>
struct OperandPattern<f16, 4> {
  static constexpr uint32_t PATTERN = 0x4c004c00u, MASK = 0x03c003c0u;
  static constexpr int32_t PLACE = 6;
};
template <>
struct OperandPattern<bf16, 4> {
  static constexpr uint32_t PATTERN = 0x41804180u, MASK = 0x00780078u;
  static constexpr int32_t PLACE = 3;
};
// One bit is the sign of a half.
template <>
struct OperandPattern<f16, 1> {
  static constexpr uint32_t PATTERN = 0xb800b800u, MASK = 0x80008000u;
};
template <>
struct OperandPattern<bf16, 1> {
  static constexpr uint32_t PATTERN = 0xbf00bf00u, MASK = 0x80008000u;
};

// Pair `slot` of a word as two elements of T.
template <class T, int32_t PLANE_BITS>
DEVICE uint32_t operand_pair(uint32_t word, int32_t slot) {
  using Pattern = OperandPattern<T, PLANE_BITS>;
  if constexpr (PLANE_BITS == 1) {
    return masked_xor<Pattern::MASK, Pattern::PATTERN>(word << slot);
  } else {
    const int32_t up = Pattern::PLACE - slot * PLANE_BITS;
    return masked_xor<Pattern::MASK, Pattern::PATTERN>(up > 0 ? word << up : word >> -up);
  }
}

// Where the code of one entry lies: which word of which lane, and from which bit.
struct CodePlace {
  int32_t word, lane, bit;
};

// Kept column `column` (of a tile) and row 0 .. 15, low plane; the high plane is the next word.
template <int32_t BITS>
DEVICE CodePlace code_place(int32_t column, int32_t row) {
  using Codes = TileCodes<BITS>;
  const int32_t panel = column / PANEL, half = column / 16 % 2, k = column % 16;
  const int32_t lane = row % 8 * 4 + k % 8 / 2;
  const int32_t pair = row / 8 + k / 8 * 2, high = k % 2;
  if constexpr (BITS == 1) {
    const int32_t slot = panel % 2 * 8 + half * 4 + pair;
    return {panel / 2, lane, 15 - slot + 16 * high};
  }
  const int32_t slot = (half * 4 + pair) % Codes::SLOTS;
  const int32_t word = BITS == 2 ? panel : panel * (BITS / 2) + half * Codes::PLANES;
  return {word, lane, slot * Codes::PLANE_BITS + 16 * high};
}

// Words lie in fours as long as there are four, [four][lane][4], then [word][lane].
DEVICE int64_t word_index(int32_t word, int32_t lane, int32_t words) {
  if (word < words / 4 * 4) return (int64_t{word / 4} * WARP + lane) * 4 + word % 4;
  return int64_t{word} * WARP + lane;
}

template <int32_t BITS>
DEVICE float code_at(const uint32_t* codes, int32_t words, int32_t column, int32_t row) {
  const CodePlace place = code_place<BITS>(column, row);
  constexpr uint32_t MASK = (1u << TileCodes<BITS>::PLANE_BITS) - 1u;
  uint32_t code = codes[word_index(place.word, place.lane, words)] >> place.bit & MASK;
  if constexpr (BITS == 8)
    code |= (codes[word_index(place.word + 1, place.lane, words)] >> place.bit & MASK) << 4;
  return static_cast<float>(code);
}

// Four words of a lane from `word` on; what does not exist is zero.
DEVICE uint4 load_codes(const uint32_t* codes, int32_t word, int32_t words) {
  const int32_t lane = threadIdx.x % WARP;
  if (word + 4 <= words) return load_stream(codes + word_index(word, lane, words));
  uint4 loaded = make_uint4(0, 0, 0, 0);
  if (word < words) loaded.x = codes[int64_t{word} * WARP + lane];
  if (word + 1 < words) loaded.y = codes[int64_t{word + 1} * WARP + lane];
  if (word + 2 < words) loaded.z = codes[int64_t{word + 2} * WARP + lane];
  return loaded;
}
