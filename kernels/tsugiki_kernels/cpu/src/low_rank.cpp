// Low-rank deltas in two passes over all variants: shrink t = A x (one dot product per rank), then
// expand y += scale * B t with B stored [rank, out], so that 16 outputs are one vector and the sum
// over the ranks is a plain chain.

#include "dot.h"
#include "low_rank_apply.h"
#include "low_rank_shrink.h"

namespace tsugiki {

struct LowRankPart : Part {
  int64_t rank;
  int64_t inputs;
  int32_t dtype;  // of a and b
  float scale;
  const void* a;  // [rank, inputs]
  const void* b;  // [rank, rows], transposed when staged
};

struct LowRankLinear {
  int64_t count;
  LowRankPart parts[1];
};

#if defined(TSUGIKI_AVX512)
constexpr int EXPANDED_AT_ONCE = 8;  // tokens: with three groups of outputs 24 sums of 32 registers
#else
constexpr int EXPANDED_AT_ONCE = 2;
#endif

inline const LowRankLinear& linear_of(const Apply& call, int64_t variant) {
  return call.linear<LowRankLinear>(variant);
}

Middle::Middle(const Apply& call) : call_(call) {
  int64_t floats = 0;
  for (int64_t v = 0; v < call.variants(); ++v) {
    places_.push_back({floats});
    for (int64_t p = 0; p < linear_of(call, v).count; ++p) floats += size_of(v, p);
  }
  data_ = scratch(MIDDLE, floats);
}

float* Middle::of(int64_t variant, int64_t part) const {
  int64_t at = places_[variant].first;
  for (int64_t p = 0; p < part; ++p) at += size_of(variant, p);
  return data_ + at;
}

int64_t Middle::size_of(int64_t variant, int64_t part) const {
  const Span& span = call_.spans[variant];
  return linear_of(call_, variant).parts[part].rank * (span.stop - span.start);
}

#if defined(TSUGIKI_AVX512) && defined(__AVX512BF16__)

// The ranks first .. last of one part for the tokens of its span.
inline void shrink_pairs(const Step& step, const LowRankPart& part, int64_t first, int64_t last,
                         const Span& span, float* middle) {
  const uint16_t* x = (const uint16_t*)step.x + span.start * step.x_stride;
  const uint16_t* a = (const uint16_t*)part.a;
  const int64_t tokens = span.stop - span.start;
  int64_t k = first;
  for (; k + RANKS_AT_ONCE <= last; k += RANKS_AT_ONCE)
    shrink_rows<RANKS_AT_ONCE>(a + k * step.inputs, x, step.x_stride, step.inputs, tokens,
                               middle + k, part.rank);
  for (; k < last; ++k)
    shrink_rows<1>(a + k * step.inputs, x, step.x_stride, step.inputs, tokens, middle + k,
                   part.rank);
}

inline bool has_pairs(const Step& step, const LowRankPart& part) {
  return step.dtype == BFLOAT16 && part.dtype == BFLOAT16;
}

#else

inline void shrink_pairs(const Step&, const LowRankPart&, int64_t, int64_t, const Span&, float*) {}
inline bool has_pairs(const Step&, const LowRankPart&) { return false; }

#endif

// GROUPS groups of 16 outputs side by side: memory comes in longer runs, and what is read of the
// middle serves all of them. Only a single one may be incomplete.
template <Dtype dtype, int TOKENS, int GROUPS>
inline void expand_tile(const LowRankPart& part, int64_t row, const float* middle,
                        Floats (&sums)[TOKENS][GROUPS]) {
  const int64_t count = GROUPS > 1 ? LANES : std::min<int64_t>(LANES, part.rows - row);
  Floats total[TOKENS][GROUPS];
  for (int t = 0; t < TOKENS; ++t)
    for (int g = 0; g < GROUPS; ++g) total[t][g] = zeros();
  for (int64_t k = 0; k < part.rank; ++k) {
    const int64_t place = k * part.rows + row;
    Floats weights[GROUPS];
    for (int g = 0; g < GROUPS; ++g)
      weights[g] = load_up_to(dtype, part.b, place + g * LANES, count);
    for (int t = 0; t < TOKENS; ++t) {
      const Floats value = splat(middle[t * part.rank + k]);
      for (int g = 0; g < GROUPS; ++g) total[t][g] = fma(weights[g], value, total[t][g]);
    }
  }
  for (int t = 0; t < TOKENS; ++t)
    for (int g = 0; g < GROUPS; ++g) sums[t][g] = total[t][g];
}

template <Dtype dtype, int TOKENS, int GROUPS>
inline void expand_tokens(const Step& step, const LowRankPart& part, int64_t group, int64_t token,
                          const float* middle) {
  Floats sums[TOKENS][GROUPS], biases[GROUPS];
  const int64_t row = group * LANES;
  expand_tile<dtype, TOKENS, GROUPS>(part, row, middle, sums);
  const int64_t count = GROUPS > 1 ? LANES : std::min<int64_t>(LANES, part.rows - row);
  for (int g = 0; g < GROUPS; ++g) biases[g] = bias_of(part.bias, row + g * LANES, count);
  const Floats scale = splat(part.scale);
  if (GROUPS > 1 && step.out_dtype == BFLOAT16) {  // the same with nothing left to ask
    uint16_t* out = (uint16_t*)step.out + token * step.out_stride + part.offset + row;
    for (int t = 0; t < TOKENS; ++t, out += step.out_stride)
      for (int g = 0; g < GROUPS; ++g)
        store_bf16_flushed(out + g * LANES,
                           load_bf16(out + g * LANES) + fma(scale, sums[t][g], biases[g]));
    return;
  }
  for (int t = 0; t < TOKENS; ++t)
    for (int g = 0; g < GROUPS; ++g)
      add_to_out(step, token + t, part.offset + row + g * LANES, count,
                 fma(scale, sums[t][g], biases[g]));
}

template <Dtype dtype, int GROUPS, int TOKENS = EXPANDED_AT_ONCE>
void expand_groups(const Step& step, const LowRankPart& part, int64_t group, int64_t token,
                   int64_t stop, const float* middle) {
  for (; token + TOKENS <= stop; token += TOKENS, middle += TOKENS * part.rank)
    expand_tokens<dtype, TOKENS, GROUPS>(step, part, group, token, middle);
  if constexpr (TOKENS > 1)
    expand_groups<dtype, GROUPS, TOKENS / 2>(step, part, group, token, stop, middle);
}

template <Dtype dtype>
void expand_as(const Step& step, const LowRankPart& part, int64_t first, int64_t last,
               const Span& span, const float* middle) {
  for (; first + 3 <= last && (first + 3) * LANES <= part.rows; first += 3)
    expand_groups<dtype, 3>(step, part, first, span.start, span.stop, middle);
  for (; first < last; ++first)
    expand_groups<dtype, 1>(step, part, first, span.start, span.stop, middle);
}

void expand(const Step& step, const LowRankPart& part, const GroupRange& groups, const Span& span,
            const float* middle) {
  const auto expand = part.dtype == BFLOAT16  ? expand_as<BFLOAT16>
                      : part.dtype == FLOAT16 ? expand_as<FLOAT16>
                                              : expand_as<FLOAT32>;
  expand(step, part, groups.first, groups.last, span, middle);
}

void shrink(const Apply& call, const LowRankPart& part, const Task& task, const Rows* rows,
            float* middle) {
  const int64_t first = task.first_group * RANKS_AT_ONCE;
  const int64_t last = std::min(part.rank, task.last_group * RANKS_AT_ONCE);
  if (has_pairs(call, part))
    return shrink_pairs(call, part, first, last, call.spans[task.variant], middle);
  dot_dense(Dtype(part.dtype), part.a, first, last - first, call.inputs, rows->of(task.variant),
            rows->stride, rows->count(task.variant), middle + first, part.rank);
}

inline void fetch_a(const LowRankPart& part, const Task& task, int64_t inputs) {
  const int64_t first = task.first_group * RANKS_AT_ONCE;
  const int64_t last = std::min(part.rank, task.last_group * RANKS_AT_ONCE);
  const int64_t row = inputs * dtype_size(Dtype(part.dtype));
  fetch_bytes((const char*)part.a + first * row, (last - first) * row);
}

// `rows`: x in float32; null when no part reads it. Rows of A come from memory while those before
// them are met.
void shrink_all(const Apply& call, const Rows* rows, const Middle& middle) {
  TaskList list;
  for_parts<LowRankLinear>(call, [&](int64_t v, int64_t p, const LowRankPart& part) {
    const int64_t tokens = call.spans[v].stop - call.spans[v].start;
    list.add(v, p, (part.rank + RANKS_AT_ONCE - 1) / RANKS_AT_ONCE,
             RANKS_AT_ONCE * (call.inputs / LANES + 4) * tokens);
  });
  list.cut(call.threads);
  const std::vector<Task>& tasks = list.tasks;
  const auto part_of = [&](const Task& task) -> const LowRankPart& {
    return linear_of(call, task.variant).parts[task.part];
  };
  parallel_for(int64_t(tasks.size()), call.threads, list.worth_forking(), [&](int64_t i) {
    if (i + 1 < int64_t(tasks.size())) fetch_a(part_of(tasks[i + 1]), tasks[i + 1], call.inputs);
    shrink(call, part_of(tasks[i]), tasks[i], rows, middle.of(tasks[i].variant, tasks[i].part));
  });
}

bool all_have_pairs(const Apply& call) {
  bool all = true;
  for_parts<LowRankLinear>(call, [&](int64_t, int64_t, const LowRankPart& part) {
    all = all && has_pairs(call, part);
  });
  return all;
}

LowRankApply::LowRankApply(const Apply& call) : call_(call), middle_(call) {
  if (all_have_pairs(call)) {
    shrink_all(call, nullptr, middle_);
  } else {
    const Rows rows(call, call.spans, call.variants());
    shrink_all(call, &rows, middle_);
  }
}

int64_t LowRankApply::cost() const {
  int64_t total = 0;
  for_parts<LowRankLinear>(call_, [&](int64_t v, int64_t, const LowRankPart& part) {
    const int64_t tokens = call_.spans[v].stop - call_.spans[v].start;
    total += (part.rows + LANES - 1) / LANES * (part.rank + 4) * tokens;
  });
  return total;
}

int64_t LowRankApply::outputs() const { return outputs_of<LowRankLinear>(call_); }

bool LowRankApply::cuts_at_sixteens() const { return all_cut_at_sixteens<LowRankLinear>(call_); }

// All of A is met before the linear that it belongs to: it comes from memory during the one before.
// Of the variants one after the other, the share that these outputs are of the linear: so much of the
// work will be this thread's then, too.
void request_following(const Apply& call, const OutputRange& outputs, int64_t width,
                       Requests& requests) {
  const int64_t variants = call.variants();
  for (int64_t v = 0; v < variants; ++v) {
    const LowRankLinear& next = call.following<LowRankLinear>(v);
    const int64_t first = std::max<int64_t>(0, outputs.first * variants - v * width);
    const int64_t last = std::min(width, outputs.last * variants - v * width);
    for (int64_t p = 0; p < next.count && first < last; ++p) {
      const LowRankPart& part = next.parts[p];
      const int64_t bytes = part.rank * part.inputs * dtype_size(Dtype(part.dtype));
      requests.add((const char*)part.a + bytes * first / width, bytes * (last - first) / width);
    }
  }
}

void LowRankApply::request(const OutputRange& outputs, Requests& requests) const {
  if (call_.in_table()) request_following(call_, outputs, this->outputs(), requests);
  for_parts<LowRankLinear>(call_, [&](int64_t, int64_t, const LowRankPart& part) {
    const GroupRange groups(part, outputs);
    const int64_t size = dtype_size(Dtype(part.dtype)), row = groups.first * LANES;
    const int64_t count = std::min(groups.last * LANES, part.rows) - row;
    for (int64_t k = 0; k < part.rank && count > 0; ++k)
      requests.add((const char*)part.b + (k * part.rows + row) * size, count * size);
  });
}

void LowRankApply::apply(const OutputRange& outputs) const {
  for_parts<LowRankLinear>(call_, [&](int64_t v, int64_t p, const LowRankPart& part) {
    const GroupRange groups(part, outputs);
    if (groups.first < groups.last)
      expand(call_, part, groups, call_.spans[v], middle_.of(v, p));
  });
}

}  // namespace tsugiki

using namespace tsugiki;

extern "C" void tsugiki_low_rank_apply(const Apply* call) {
  apply_in_slices(LowRankApply(*call), *call);
}
