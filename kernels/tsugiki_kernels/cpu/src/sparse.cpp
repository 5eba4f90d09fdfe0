// Sparse quantized deltas: y[r] += S[r] * sum_j (code(r, j) - zero) * x[column(r, j)] + bias[r].
//
// Tile form (rows_per_mask a multiple of 16): 16 rows share their columns, so one gathered x meets
// 16 weights, one vector per kept column; no reduction across lanes. Even and odd kept columns go
// to two sums, added at the end, for every number of tokens.
//
// Row form (any other rows_per_mask; codes repacked row by row): lane l sums the kept columns
// j = l (mod 16); with several tokens the lanes become 16 separate sums over 8 tokens each, which
// add the same numbers in the same order.

#include "sparse.h"

namespace tsugiki {

// S[row / rows_per_step] for 16 rows
inline Floats steps_of(const SparsePart& part, int64_t row, int64_t count) {
  if (part.rows_per_step == 1)
    return load_up_to(FLOAT16, part.step, row, count) * splat(part.gain);
  if (part.rows_per_step % LANES == 0) return splat(step_of(part, row));
  float lanes[LANES] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = step_of(part, row + i);
  return load(lanes);
}

template <int BITS, int TOKENS, int GROUPS>
inline void tile_sums(const SparsePart& part, const Decoder<BITS>& decode, const Group* groups,
                      const float* x, Floats (&sums)[GROUPS][TOKENS]) {
  const int64_t stride = part.rows_per_mask * BITS / 8;
  Floats even[GROUPS][TOKENS], odd[GROUPS][TOKENS];
  for (int g = 0; g < GROUPS; ++g)
    for (int t = 0; t < TOKENS; ++t) even[g][t] = odd[g][t] = zeros();
  auto meet = [&](int64_t j, Floats(&into)[GROUPS][TOKENS]) {
    for (int g = 0; g < GROUPS; ++g) {
      const Floats weights = decode(groups[g].codes + j * stride);
      const float* values = x + int64_t(groups[g].columns[j]) * TOKENS;
      for (int t = 0; t < TOKENS; ++t) into[g][t] = fma(weights, splat(values[t]), into[g][t]);
    }
  };
  int64_t j = 0;
  for (; j + 1 < part.kept; j += 2) {
    meet(j, even);
    meet(j + 1, odd);
  }
  if (j < part.kept) meet(j, even);
  for (int g = 0; g < GROUPS; ++g)
    for (int t = 0; t < TOKENS; ++t) sums[g][t] = even[g][t] + odd[g][t];
}

__attribute__((noinline)) void finish(const Step& step, const SparsePart& part, int64_t group, int64_t first_row,
                   int tokens, const Floats* sums) {
  const int64_t row = group * LANES, count = std::min<int64_t>(LANES, part.rows - row);
  const Floats steps = steps_of(part, row, count), bias = bias_of(part.bias, row, count);
  for (int t = 0; t < tokens; ++t)
    add_to_out(step, first_row + t, part.offset + row, count, fma(steps, sums[t], bias));
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

template <int BITS>
void part_block(const Step& step, const SparsePart& part, int64_t first, int64_t last,
                const TokenBlock& block) {
  if (part.by_row) return row_block<BITS>(step, part, first, last, block);
  tile_block<BITS>(step, part, first, last, block);
}

void apply_block(const Step& step, const SparsePart& part, int64_t first, int64_t last,
                 const TokenBlock& block) {
  switch (part.bits) {
    case 1: return part_block<1>(step, part, first, last, block);
    case 2: return part_block<2>(step, part, first, last, block);
    case 4: return part_block<4>(step, part, first, last, block);
    default: return part_block<8>(step, part, first, last, block);
  }
}

inline int width_for(const SparseLinear& linear, int tokens) {
  if (tokens == 1) return 1;
  if (linear.parts[0].by_row) return WIDEST;
  return tokens == 2 ? 2 : tokens <= 4 ? 4 : WIDEST;
}

// Multiply-adds of one group, in vectors. The row form pays for its gathers.
inline int64_t group_cost(const SparsePart& part, int64_t tokens) {
  return part.by_row ? (part.kept + LANES) * 2 * tokens : (part.kept + 4) * (tokens + 1);
}

void sparse_apply(const Step& step, const SparseLinear* const* linears, const Span* spans,
                  int64_t variants) {
  const Tokens tokens(step, spans, variants,
                      [&](int64_t v, int count) { return width_for(*linears[v], count); });
  TaskList list;
  for (int64_t v = 0; v < variants; ++v) {
    if (spans[v].start == spans[v].stop) continue;
    for (int64_t p = 0; p < linears[v]->count; ++p) {
      const SparsePart& part = linears[v]->parts[p];
      list.add(v, p, (part.rows + LANES - 1) / LANES, group_cost(part, tokens.paid(v)));
    }
  }
  list.cut(step.threads);
  parallel_for(int64_t(list.tasks.size()), step.threads, list.worth_forking(), [&](int64_t i) {
    const Task& task = list.tasks[i];
    const SparsePart& part = linears[task.variant]->parts[task.part];
    for (int64_t b = tokens.first[task.variant]; b < tokens.first[task.variant + 1]; ++b)
      apply_block(step, part, task.first_group, task.last_group, tokens.blocks[b]);
  });
}

}  // namespace tsugiki

using namespace tsugiki;

extern "C" void tsugiki_sparse_apply(const Apply* call) {
  sparse_apply(*call, (const SparseLinear* const*)call->linears, call->spans, call->variants);
}
