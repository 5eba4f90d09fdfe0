// Sparse quantized deltas: y[r] += S[r] * sum_j (code(r, j) - zero) * x[column(r, j)] + bias[r].

#include "sparse_pairs.h"
#include "sparse_rows.h"
#include "sparse_tiles.h"
#include "tasks.h"

namespace tsugiki {

template <int BITS>
void part_block(const Step& step, const SparsePart& part, int64_t first, int64_t last,
                const TokenBlock& block) {
  if (part.by_row) return row_block<BITS>(step, part, first, last, block);
#if defined(TSUGIKI_PAIRS)
  if constexpr (BITS <= 4)
    if (block.words) return pair_block<BITS>(step, part, first, last, block);
#endif
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

// The same for every part of a linear, and so for every token of a variant.
inline Form form_for(const Step& step, const SparseLinear& linear, int tokens) {
  bool words = step.dtype == BFLOAT16 && HAS_PAIRS, by_row = false;
  for (int64_t p = 0; p < linear.count; ++p) {
    words = words && pairs_are_exact(linear.parts[p]);
    by_row = by_row || linear.parts[p].by_row;
  }
  if (by_row) return {tokens == 1 ? 1 : WIDEST, false};
  return {tokens <= 2 ? tokens : tokens <= 4 ? 4 : WIDEST, words};
}

// Multiply-adds of one group, in vectors. The row form pays for its gathers.
inline int64_t group_cost(const SparsePart& part, int64_t tokens) {
  return part.by_row ? (part.kept + LANES) * 2 * tokens : (part.kept + 4) * (tokens + 1);
}

void sparse_apply(const Step& step, const SparseLinear* const* linears, const Span* spans,
                  int64_t variants) {
  const Tokens tokens(step, spans, variants,
                      [&](int64_t v, int count) { return form_for(step, *linears[v], count); });
  TaskList list;
  for (int64_t v = 0; v < variants; ++v) {
    if (spans[v].start == spans[v].stop) continue;
    for (int64_t p = 0; p < linears[v]->count; ++p) {
      const SparsePart& part = linears[v]->parts[p];
      list.add(v, p, groups_of(part), group_cost(part, tokens.paid(v)));
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
