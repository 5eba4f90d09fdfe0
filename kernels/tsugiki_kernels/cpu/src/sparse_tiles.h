// The tile form in float32: 16 rows share their columns, so one x meets 16 weights, one vector per
// kept column, and no lanes are summed. The columns come in order but for neighbours, of which the
// second is added first: the one order, for every number of tokens.
#pragma once

#include "sparse.h"

namespace tsugiki {

template <int BITS, int TOKENS, int GROUPS>
inline void tile_sums(const SparsePart& part, const Decoder<BITS>& decode, const Group* groups,
                      const float* x, Floats (&sums)[GROUPS][TOKENS]) {
  const int64_t stride = part.rows_per_mask * BITS / 8;
  Floats total[GROUPS][TOKENS];
  const uint8_t* codes[GROUPS];
  const uint16_t* columns[GROUPS];
  for (int g = 0; g < GROUPS; ++g) {
    codes[g] = groups[g].codes, columns[g] = groups[g].columns;
    for (int t = 0; t < TOKENS; ++t) total[g][t] = zeros();
  }
  const auto meet = [&](int g, int ahead) {
    const Floats weights = decode(codes[g] + ahead * stride);
    const float* values = x + int64_t(columns[g][ahead]) * TOKENS;
    for (int t = 0; t < TOKENS; ++t) total[g][t] = fma(weights, splat(values[t]), total[g][t]);
  };
  for (int64_t j = 0; j + 1 < part.kept; j += 2) {
    for (int g = 0; g < GROUPS; ++g) meet(g, 1);
    for (int g = 0; g < GROUPS; ++g) meet(g, 0), codes[g] += 2 * stride, columns[g] += 2;
  }
  for (int g = 0; g < GROUPS && part.kept % 2; ++g) meet(g, 0);
  for (int g = 0; g < GROUPS; ++g)
    for (int t = 0; t < TOKENS; ++t) sums[g][t] = total[g][t];
}

template <int BITS, int TOKENS, int GROUPS>
inline void tile_groups(const Step& step, const SparsePart& part, const Decoder<BITS>& decode,
                        int64_t first, int64_t last, const TokenBlock& block) {
  int64_t g = first;
  for (; g + GROUPS <= last; g += GROUPS) {
    Group groups[GROUPS];
    Floats sums[GROUPS][TOKENS];
    for (int i = 0; i < GROUPS; ++i) groups[i] = group_of(part, g + i);
    tile_sums<BITS, TOKENS, GROUPS>(part, decode, groups, block.data, sums);
    for (int i = 0; i < GROUPS; ++i)
      finish(step, part, g + i, block.first_row, block.tokens, sums[i]);
  }
  if constexpr (GROUPS > 1)
    tile_groups<BITS, TOKENS, 1>(step, part, decode, g, last, block);
}

// Few tokens leave registers free: several groups at once hide the latency of the adds.
template <int BITS>
void tile_block(const Step& step, const SparsePart& part, int64_t first, int64_t last,
                const TokenBlock& block) {
  const Decoder<BITS> decode(part.zero);
  switch (block.width) {
    case 1: return tile_groups<BITS, 1, 4>(step, part, decode, first, last, block);
    case 2: return tile_groups<BITS, 2, 2>(step, part, decode, first, last, block);
    case 4: return tile_groups<BITS, 4, 1>(step, part, decode, first, last, block);
    default: return tile_groups<BITS, 8, 1>(step, part, decode, first, last, block);
  }
}

}  // namespace tsugiki
