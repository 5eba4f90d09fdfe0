// Low-rank deltas in two passes over all variants: shrink t = A x (one dot product per rank), then
// expand y += scale * B t with B stored [rank, out], so that 16 outputs are one vector and the sum
// over the ranks is a plain chain.

#include "dot.h"

namespace tsugiki {

struct LowRankPart : Part {
  int64_t rank;
  int64_t dtype;  // of a and b
  float scale;
  int32_t unused;
  const void* a;  // [rank, inputs]
  const void* b;  // [rank, rows], transposed when staged
};

struct LowRankLinear {
  int64_t count;
  LowRankPart parts[1];
};

constexpr int64_t RANKS_AT_ONCE = 8;

// The shrunk tokens of each part of each variant: [tokens, rank] each.
struct Middle {
  std::vector<int64_t> start;         // where each part begins, parts in order
  std::vector<int64_t> first_of;      // index of variant v's first part
  float* data;

  Middle(const LowRankLinear* const* linears, int64_t variants, const Rows& rows) {
    int64_t floats = 0;
    for (int64_t v = 0; v < variants; ++v) {
      first_of.push_back(int64_t(start.size()));
      for (int64_t p = 0; p < linears[v]->count; ++p) {
        start.push_back(floats);
        floats += linears[v]->parts[p].rank * rows.count(v);
      }
    }
    data = scratch(MIDDLE, floats);
  }

  float* of(int64_t variant, int64_t part) const { return data + start[first_of[variant] + part]; }
};

template <Dtype dtype, int TOKENS, bool WHOLE>
inline void expand_tokens(const LowRankPart& part, int64_t row, int64_t count, const float* middle,
                          Floats* sums) {
  Floats total[TOKENS];
  for (int t = 0; t < TOKENS; ++t) total[t] = zeros();
  for (int64_t k = 0; k < part.rank; ++k) {
    const int64_t place = k * part.rows + row;
    const Floats weights =
        WHOLE ? load_as(dtype, part.b, place) : load_some(dtype, part.b, place, count);
    for (int t = 0; t < TOKENS; ++t)
      total[t] = fma(weights, splat(middle[t * part.rank + k]), total[t]);
  }
  for (int t = 0; t < TOKENS; ++t) sums[t] = total[t];
}

template <Dtype dtype, bool WHOLE>
void expand_group(const Step& step, const LowRankPart& part, int64_t group, const Span& span,
                  const float* middle) {
  const int64_t row = group * LANES, count = std::min<int64_t>(LANES, part.rows - row);
  const Floats scale = splat(part.scale), bias = bias_of(part.bias, row, count);
  for (int64_t t = span.start; t < span.stop;) {
    const bool four = t + 4 <= span.stop;
    Floats sums[4];
    const float* from = middle + (t - span.start) * part.rank;
    if (four)
      expand_tokens<dtype, 4, WHOLE>(part, row, count, from, sums);
    else
      expand_tokens<dtype, 1, WHOLE>(part, row, count, from, sums);
    for (int i = 0; i < (four ? 4 : 1); ++i, ++t)
      add_to_out(step, t, part.offset + row, count, fma(scale, sums[i], bias));
  }
}

template <Dtype dtype>
void expand_any(const Step& step, const LowRankPart& part, int64_t group, const Span& span,
                const float* middle) {
  if ((group + 1) * LANES <= part.rows)
    expand_group<dtype, true>(step, part, group, span, middle);
  else
    expand_group<dtype, false>(step, part, group, span, middle);
}

void expand(const Step& step, const LowRankPart& part, int64_t group, const Span& span,
            const float* middle) {
  if (part.dtype == BFLOAT16) return expand_any<BFLOAT16>(step, part, group, span, middle);
  if (part.dtype == FLOAT16) return expand_any<FLOAT16>(step, part, group, span, middle);
  expand_any<FLOAT32>(step, part, group, span, middle);
}

// Tasks over groups of rows or of ranks: groups(part) of them, cost(part) each and token.
template <class Groups, class Cost>
TaskList tasks_of(const LowRankLinear* const* linears, int64_t variants, const Rows& rows,
                  int threads, Groups groups, Cost cost) {
  TaskList list;
  for (int64_t v = 0; v < variants; ++v)
    for (int64_t p = 0; p < linears[v]->count; ++p) {
      const LowRankPart& part = linears[v]->parts[p];
      list.add(v, p, groups(part), cost(part) * rows.count(v));
    }
  list.cut(threads);
  return list;
}

void shrink_all(const Step& step, const LowRankLinear* const* linears, int64_t variants,
                const Rows& rows, const Middle& middle) {
  const TaskList list = tasks_of(
      linears, variants, rows, step.threads,
      [](const LowRankPart& part) { return (part.rank + RANKS_AT_ONCE - 1) / RANKS_AT_ONCE; },
      [&](const LowRankPart&) { return RANKS_AT_ONCE * (step.inputs / LANES + 4); });
  parallel_for(int64_t(list.tasks.size()), step.threads, list.worth_forking(), [&](int64_t i) {
    const Task& task = list.tasks[i];
    const LowRankPart& part = linears[task.variant]->parts[task.part];
    const int64_t first = task.first_group * RANKS_AT_ONCE;
    const int64_t last = std::min(part.rank, task.last_group * RANKS_AT_ONCE);
    dot_dense(Dtype(part.dtype), part.a, first, last - first, step.inputs, rows.of(task.variant),
              rows.stride, rows.count(task.variant),
              middle.of(task.variant, task.part) + first, part.rank);
  });
}

void expand_all(const Step& step, const LowRankLinear* const* linears, const Span* spans,
                int64_t variants, const Rows& rows, const Middle& middle) {
  const TaskList list = tasks_of(
      linears, variants, rows, step.threads,
      [](const LowRankPart& part) { return (part.rows + LANES - 1) / LANES; },
      [](const LowRankPart& part) { return part.rank + 4; });
  parallel_for(int64_t(list.tasks.size()), step.threads, list.worth_forking(), [&](int64_t i) {
    const Task& task = list.tasks[i];
    const LowRankPart& part = linears[task.variant]->parts[task.part];
    for (int64_t g = task.first_group; g < task.last_group; ++g)
      expand(step, part, g, spans[task.variant], middle.of(task.variant, task.part));
  });
}

}  // namespace tsugiki

using namespace tsugiki;

extern "C" void tsugiki_low_rank_apply(const Apply* call) {
  const auto* all = (const LowRankLinear* const*)call->linears;
  const Rows rows(*call, call->spans, call->variants);
  const Middle middle(all, call->variants, rows);
  shrink_all(*call, all, call->variants, rows, middle);
  expand_all(*call, all, call->spans, call->variants, rows, middle);
}
