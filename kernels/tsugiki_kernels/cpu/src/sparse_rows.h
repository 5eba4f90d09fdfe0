// The row form (rows_per_mask no multiple of 16; codes repacked row by row): lane l sums the kept
// columns j = l (mod 16); with several tokens the lanes become 16 separate sums over 8 tokens each,
// which add the same numbers in the same order.
#pragma once

#include "sparse.h"

namespace tsugiki {

// One row of the row form.
struct SparseRow {
  const uint16_t* columns;
  const uint8_t* codes;
  int64_t kept;
  bool memory_follows;  // rows enough below it that reading past its end stays in the tensors
};

inline SparseRow row_of(const SparsePart& part, int64_t row, int64_t list) {
  return {part.columns + list * part.kept, part.codes + row * part.code_stride, part.kept,
          row + LANES * part.rows_per_mask < part.rows};
}

// The last, incomplete vector of a row: its lanes beyond have weight 0 and take whatever columns
// follow in memory or, where memory ends, repeat the first of the vector.
template <int BITS>
inline Floats tail_of(const Decoder<BITS>& decode, const SparseRow& row, const uint16_t** columns,
                      uint16_t (&copy)[LANES]) {
  const int64_t whole = row.kept / LANES * LANES, count = row.kept - whole;
  const uint8_t* codes = row.codes + whole * BITS / 8;
  *columns = row.columns + whole;
  if (row.memory_follows) return keep_first(decode(codes), count);
  for (int64_t i = 0; i < LANES; ++i) copy[i] = (*columns)[i < count ? i : 0];
  *columns = copy;
  return decode_some(decode, codes, count);
}

// meet(weights, columns) for each vector of the row, in order.
template <int BITS, class Meet>
inline void for_vectors(const Decoder<BITS>& decode, const SparseRow& row, Meet meet) {
  const int64_t whole = row.kept / LANES * LANES;
  for (int64_t j = 0; j < whole; j += LANES) meet(decode(row.codes + j * BITS / 8), row.columns + j);
  if (whole == row.kept) return;
  uint16_t copy[LANES];
  const uint16_t* columns;
  const Floats weights = tail_of(decode, row, &columns, copy);
  meet(weights, columns);
}

template <int BITS>
inline float row_sum(const Decoder<BITS>& decode, const SparseRow& row, const float* x) {
  Floats total = zeros();
  for_vectors(decode, row, [&](Floats weights, const uint16_t* columns) {
    total = fma(weights, gather(x, columns), total);
  });
  return sum(total);
}

template <int BITS>
inline Half16 row_sum_of_eight(const Decoder<BITS>& decode, const SparseRow& row, const float* x) {
  Half16 total[LANES];
  for (int l = 0; l < LANES; ++l) total[l] = splat8(0);
  for_vectors(decode, row, [&](Floats weights, const uint16_t* columns) {
    float lanes[LANES];
    store(lanes, weights);
#pragma GCC unroll 16
    for (int l = 0; l < LANES; ++l)
      total[l] = fma8(splat8(lanes[l]), load8(x + int64_t(columns[l]) * WIDEST), total[l]);
  });
#pragma GCC unroll 4
  for (int half = 8; half >= 1; half /= 2)  // the order of sum(Floats)
    for (int l = 0; l < half; ++l) total[l] = total[l] + total[l + half];
  return total[0];
}

template <int BITS>
void row_block(const Step& step, const SparsePart& part, int64_t first, int64_t last,
               const TokenBlock& block) {
  const Decoder<BITS> decode(part.zero);
  int64_t list = first * LANES / part.rows_per_mask, left = part.rows_per_mask;
  left -= first * LANES % part.rows_per_mask;
  for (int64_t group = first; group < last; ++group) {
    float sums[WIDEST][LANES] = {};
    const int64_t count = std::min<int64_t>(LANES, part.rows - group * LANES);
    for (int64_t i = 0; i < count; ++i, --left) {
      if (left == 0) ++list, left = part.rows_per_mask;
      const SparseRow row = row_of(part, group * LANES + i, list);
      if (block.width == 1) {
        sums[0][i] = row_sum(decode, row, block.data);
      } else {
        const Half16 eight = row_sum_of_eight(decode, row, block.data);
        for (int t = 0; t < WIDEST; ++t) sums[t][i] = eight[t];
      }
    }
    Floats lanes[WIDEST];
    for (int t = 0; t < block.tokens; ++t) lanes[t] = load(sums[t]);
    finish(step, part, group, block.first_row, block.tokens, lanes);
  }
}

}  // namespace tsugiki
