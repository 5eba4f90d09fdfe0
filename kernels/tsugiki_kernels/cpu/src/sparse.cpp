// Sparse quantized deltas: y[r] += S[r] * sum_j (code(r, j) - zero) * x[column(r, j)] + bias[r].

#include "sparse_apply.h"
#include "sparse_pairs.h"
#include "sparse_rows.h"
#include "sparse_tiles.h"

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

// For a block of several variants, which is of pairs.
void apply_shared(const Step& step, const SparsePart* const* parts, int64_t first, int64_t last,
                  const TokenBlock& block) {
#if defined(TSUGIKI_PAIRS)
  switch (parts[0]->bits) {
    case 1: return shared_pairs<1>(step, parts, first, last, block);
    case 2: return shared_pairs<2>(step, parts, first, last, block);
    default: return shared_pairs<4>(step, parts, first, last, block);
  }
#endif
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

inline const SparseLinear& linear_of(const Apply& call, int64_t variant) {
  return call.linear<SparseLinear>(variant);
}

// Whether the variants' codes differ and nothing else: what becomes of one seed and layout.
bool alike(const SparseLinear& a, const SparseLinear& b) {
  bool same = a.count == b.count;
  for (int64_t p = 0; same && p < a.count; ++p) {
    const SparsePart &one = a.parts[p], &two = b.parts[p];
    same = one.columns == two.columns && one.offset == two.offset && one.rows == two.rows &&
           one.rows_per_mask == LANES && two.rows_per_mask == LANES && one.bits == two.bits &&
           one.zero == two.zero;
  }
  return same;
}

// How many variants from `v` on share a block: 8 tokens of theirs, or 4, one or two each.
int64_t together(const Apply& call, int64_t v) {
  const auto tokens = [&](int64_t i) { return call.spans[i].stop - call.spans[i].start; };
  const int64_t each = tokens(v);
  if (each < 1 || each > 2 || !form_for(call, linear_of(call, v), int(each)).words) return 1;
  const int64_t most = std::min(v + 8 / each, call.variants());
  int64_t last = v + 1;
  while (last < most && tokens(last) == each && call.spans[last].start == call.spans[last - 1].stop &&
         alike(linear_of(call, v), linear_of(call, last)))
    ++last;
  const int64_t found = (last - v) * each;
  return found >= 8 ? 8 / each : found >= 4 ? 4 / each : 1;
}

SparseApply::SparseApply(const Apply& call) : call_(call), number_(++calls()) {}

int64_t SparseApply::cost() const {
  int64_t total = 0;
  for_parts<SparseLinear>(call_, [&](int64_t v, int64_t, const SparsePart& part) {
    total += groups_of(part) * group_cost(part, call_.spans[v].stop - call_.spans[v].start);
  });
  return total;
}

int64_t SparseApply::outputs() const { return outputs_of<SparseLinear>(call_); }

bool SparseApply::cuts_at_sixteens() const { return all_cut_at_sixteens<SparseLinear>(call_); }

// Columns that the variant before has too are on their way.
void request_groups(const SparsePart& part, const GroupRange& groups, bool columns,
                    Requests& requests) {
  const Group from = group_of(part, groups.first);
  const int64_t rows = (groups.last - groups.first) * LANES;
  const int64_t lists = part.rows_per_mask == LANES
                            ? groups.last - groups.first  // divisions take long
                            : rows / std::max<int64_t>(LANES, part.rows_per_mask);
  if (columns) requests.add(from.columns, lists * part.kept * 2);
  requests.add(from.codes, lists * part.code_stride);
  requests.add(part.step + (part.rows_per_step == LANES ? groups.first
                                                       : groups.first * LANES / part.rows_per_step),
              2);
  if (part.bias.values != nullptr && part.bias.bits != PLAIN_BITS)
    requests.add((const char*)part.bias.values + groups.first * 2 * part.bias.bits,
                (groups.last - groups.first) * 2 * part.bias.bits);
}

// Records of the linear that comes next: each variant's lie apart, and all memory is passed by before
// they are read again.
constexpr int64_t RECORD_BYTES = sizeof(SparseLinear) + 2 * sizeof(SparsePart);

void SparseApply::request(const OutputRange& outputs, Requests& requests) const {
  const SparseLinear* before = nullptr;
  for (int64_t v = 0; v < call_.variants(); ++v) {
    const SparseLinear& linear = linear_of(call_, v);
    for (int64_t p = 0; p < linear.count; ++p) {
      const SparsePart& part = linear.parts[p];
      const GroupRange groups(part, outputs);
      const bool columns = before == nullptr || p >= before->count ||
                           before->parts[p].columns != part.columns;
      if (groups.first < groups.last && !part.by_row) request_groups(part, groups, columns, requests);
    }
    before = &linear;
    if (call_.in_table()) requests.add(&call_.following<SparseLinear>(v), RECORD_BYTES);
  }
}

void SparseApply::apply(const OutputRange& outputs) const {
  Tokens& tokens = Tokens::of(
      number_, call_, [&](int64_t v) { return together(call_, v); },
      [&](int64_t v, int count) { return form_for(call_, linear_of(call_, v), count); });
  tokens.for_blocks(call_, [&](const TokenBlock& block) {
    for (int64_t p = 0; p < linear_of(call_, block.variant).count; ++p) {
      const SparsePart* parts[WIDEST];
      for (int64_t v = 0; v < block.variants; ++v)
        parts[v] = &linear_of(call_, block.variant + v).parts[p];
      const GroupRange groups(*parts[0], outputs);
      if (groups.first == groups.last) continue;
      if (block.variants > 1)
        apply_shared(call_, parts, groups.first, groups.last, block);
      else
        apply_block(call_, *parts[0], groups.first, groups.last, block);
    }
  });
}

}  // namespace tsugiki

using namespace tsugiki;

extern "C" void tsugiki_sparse_apply(const Apply* call) {
  apply_in_slices(SparseApply(*call), *call);
}
