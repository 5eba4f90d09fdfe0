// Tensor trains with sparse entries beside them (saten): y += T x + E x.
//
// First every token is led through the cores: a stage reads a state [outer, inputs, inner] and writes
// [outer, outputs, inner], float32, in two buffers in turn. Where `inner` has whole vectors an output is
// a plain chain over the inputs, 16 of `inner` side by side; else lane l sums the inputs k = l (mod 16)
// and the lanes are summed at the end. Then outputs are taken 16 at a time: what the train left for
// them, the sparse entries of their rows (lane l sums entries i = l (mod 16) of a row), the bias.
// All orders are the weight's own; a token's bits do not depend on others.

#include "slices.h"
#include "tasks.h"
#include "tokens.h"

namespace tsugiki {

constexpr int MAX_STAGES = 8;
constexpr int32_t BYTES_OF_CODES = 3;  // a value_dtype

struct Stage {
  int64_t outer, inputs, outputs, inner;

  int64_t read() const { return outer * inputs * inner; }
  int64_t written() const { return outer * outputs * inner; }
};

// Mirrored by records.py.
struct TensorTrainPart : Part {
  int64_t stages;
  Stage stage[MAX_STAGES];
  int32_t core_dtype, value_dtype;
  float zero, gain;
  int64_t rows_per_step;
  int64_t entries;
  const void* cores;
  const int32_t* row_start;  // [rows + 1]
  const uint16_t* column;    // [entries]
  const void* value;         // [entries], float16 or codes of a byte
  const uint16_t* step;      // float16 [ceil(rows / rows_per_step)]
};

struct TensorTrainLinear {
  int64_t count;
  TensorTrainPart parts[1];
};

constexpr int64_t TOKENS_AT_ONCE = 4;

inline int64_t cost_of(const Stage& stage) {
  return stage.outer * stage.outputs * stage.inputs * padded(stage.inner) / LANES;
}

inline int64_t cost_of(const TensorTrainPart& part) {
  int64_t total = 0;
  for (int64_t s = 0; s < part.stages; ++s) total += cost_of(part.stage[s]);
  return total;
}

// Floats of one of the two buffers.
inline int64_t largest_state(const TensorTrainPart& part) {
  int64_t most = 0;
  for (int64_t s = 0; s < part.stages; ++s)
    most = std::max({most, padded(part.stage[s].read()), padded(part.stage[s].written())});
  return most + LANES;
}

// `OUTPUTS` outputs side by side, 16 of the inner elements.
template <int OUTPUTS>
inline void chains(const float* core, int64_t inputs, const float* in, int64_t inner, int64_t count,
                   float* out) {
  Floats sums[OUTPUTS];
  for (int m = 0; m < OUTPUTS; ++m) sums[m] = zeros();
  for (int64_t k = 0; k < inputs; ++k) {
    const Floats values = load_up_to(FLOAT32, in, k * inner, count);
    for (int m = 0; m < OUTPUTS; ++m)
      sums[m] = fma(splat(core[m * inputs + k]), values, sums[m]);
  }
  for (int m = 0; m < OUTPUTS; ++m) store_up_to(FLOAT32, out, m * inner, sums[m], count);
}

inline void stage_by_chains(const Stage& stage, const float* core, const float* in, float* out) {
  for (int64_t q = 0; q < stage.inner; q += LANES) {
    const int64_t count = std::min<int64_t>(LANES, stage.inner - q);
    int64_t m = 0;
    for (; m + 8 <= stage.outputs; m += 8)
      chains<8>(core + m * stage.inputs, stage.inputs, in + q, stage.inner, count,
                out + m * stage.inner + q);
    for (; m < stage.outputs; ++m)
      chains<1>(core + m * stage.inputs, stage.inputs, in + q, stage.inner, count,
                out + m * stage.inner + q);
  }
}

// For inner 1: the inputs of an output are neighbours.
inline void stage_by_dots(const Stage& stage, const float* core, const float* in, float* out) {
  for (int64_t m = 0; m < stage.outputs; ++m) {
    Floats total = zeros();
    for (int64_t k = 0; k < stage.inputs; k += LANES) {
      const int64_t count = std::min<int64_t>(LANES, stage.inputs - k);
      total = fma(load_up_to(FLOAT32, core, m * stage.inputs + k, count),
                  load_up_to(FLOAT32, in, k, count), total);
    }
    out[m] = sum(total);
  }
}

inline void meet_core(const Stage& stage, const float* core, const float* in, float* out) {
  const auto meet = stage.inner == 1 ? stage_by_dots : stage_by_chains;
  for (int64_t p = 0; p < stage.outer; ++p)
    meet(stage, core, in + p * stage.inputs * stage.inner, out + p * stage.outputs * stage.inner);
}

inline const float* in_float32(const TensorTrainPart& part, int64_t first, int64_t count) {
  if (part.core_dtype == FLOAT32) return (const float*)part.cores + first;
  float* core = scratch(REST, count);
  for (int64_t i = 0; i < count; i += LANES) {
    const int64_t some = std::min<int64_t>(LANES, count - i);
    store_up_to(FLOAT32, core, i, load_up_to(Dtype(part.core_dtype), part.cores, first + i, some),
                some);
  }
  return core;
}

// to [tokens, rows] = x [tokens, inputs] T^T; every core is made float32 once for all these tokens.
void lead_through(const TensorTrainPart& part, const float* x, int64_t x_stride, int64_t inputs,
                  int64_t tokens, float* to) {
  const int64_t state = largest_state(part);
  float* in = scratch(TILE, tokens * state);
  float* out = scratch(SUMS, tokens * state);
  for (int64_t t = 0; t < tokens; ++t)
    std::memcpy(in + t * state, x + t * x_stride, inputs * sizeof(float));
  int64_t first = 0;
  for (int64_t s = 0; s < part.stages; ++s) {
    const Stage& stage = part.stage[s];
    const float* core = in_float32(part, first, stage.outputs * stage.inputs);
    for (int64_t t = 0; t < tokens; ++t) meet_core(stage, core, in + t * state, out + t * state);
    std::swap(in, out);
    first += stage.outputs * stage.inputs;
  }
  for (int64_t t = 0; t < tokens; ++t)
    std::memcpy(to + t * part.rows, in + t * state, part.rows * sizeof(float));
}

// What trains give every token: [tokens, rows] for each part of each variant, one behind the other.
class Trains {
 public:
  Trains(const Apply& call, const Rows& rows) : call_(call) {
    int64_t floats = 0;
    for (int64_t v = 0; v < call.variants(); ++v) {
      places_.push_back({floats});
      for (int64_t p = 0; p < linear(v).count; ++p) floats += linear(v).parts[p].rows * tokens(v);
    }
    data_ = scratch(MIDDLE, floats);
    lead_all(rows);
  }

  const float* of(int64_t variant, int64_t part) const {
    return data_ + places_[variant].first + before(variant, part);
  }

 private:
  const TensorTrainLinear& linear(int64_t v) const { return call_.linear<TensorTrainLinear>(v); }
  int64_t tokens(int64_t v) const { return call_.spans[v].stop - call_.spans[v].start; }

  int64_t before(int64_t variant, int64_t part) const {
    int64_t floats = 0;
    for (int64_t p = 0; p < part; ++p) floats += linear(variant).parts[p].rows * tokens(variant);
    return floats;
  }

  // Tasks are some tokens of one part.
  void lead_all(const Rows& rows) {
    TaskList list;
    for_parts<TensorTrainLinear>(call_, [&](int64_t v, int64_t p, const TensorTrainPart& part) {
      const int64_t blocks = (tokens(v) + TOKENS_AT_ONCE - 1) / TOKENS_AT_ONCE;
      if (part.stages) list.add(v, p, blocks, cost_of(part) * TOKENS_AT_ONCE);
    });
    list.cut(call_.threads);
    parallel_for(int64_t(list.tasks.size()), call_.threads, list.worth_forking(), [&](int64_t i) {
      const Task& task = list.tasks[i];
      const TensorTrainPart& part = linear(task.variant).parts[task.part];
      float* to = data_ + places_[task.variant].first + before(task.variant, task.part);
      const int64_t last = std::min(task.last_group * TOKENS_AT_ONCE, tokens(task.variant));
      for (int64_t t = task.first_group * TOKENS_AT_ONCE; t < last; t += TOKENS_AT_ONCE)
        lead_through(part, rows.of(task.variant) + t * rows.stride, rows.stride, call_.inputs,
                     std::min(TOKENS_AT_ONCE, last - t), to + t * part.rows);
    });
  }

  struct Place {
    int64_t first;  // float, of the variant's first part
  };
  const Apply& call_;
  std::vector<Place>& places_ = reused<Place>();
  float* data_;
};

// Sixteen values of entries less zero; `count` of them, zeros beyond.
inline Floats values_at(const TensorTrainPart& part, int64_t first, int64_t count) {
  if (part.value_dtype == FLOAT16)
    return load_up_to(FLOAT16, part.value, first, count) - keep_first(splat(part.zero), count);
  uint8_t codes[LANES] = {};
  std::memcpy(codes, (const uint8_t*)part.value + first, count);
  const Floats found = sixteen_codes(codes, 8) - splat(part.zero);
  return count < LANES ? keep_first(found, count) : found;
}

// sums[t * LANES] = E[row] . x[t] before the step.
template <int TOKENS>
inline void sparse_row(const TensorTrainPart& part, int64_t row, const float* x, int64_t stride,
                       float* sums) {
  Floats total[TOKENS];
  for (int t = 0; t < TOKENS; ++t) total[t] = zeros();
  const int64_t last = part.row_start[row + 1];
  for (int64_t i = part.row_start[row]; i < last; i += LANES) {
    const int64_t count = std::min<int64_t>(LANES, last - i);
    uint16_t some[LANES] = {};
    const uint16_t* columns = part.column + i;
    if (count < LANES) columns = (const uint16_t*)std::memcpy(some, columns, count * 2);
    const Floats values = values_at(part, i, count);
    for (int t = 0; t < TOKENS; ++t)
      total[t] = fma(values, gather(x + t * stride, columns), total[t]);
  }
  for (int t = 0; t < TOKENS; ++t) sums[t * LANES] = sum(total[t]);
}

inline Floats steps_of(const TensorTrainPart& part, int64_t row, int64_t count) {
  float steps[LANES] = {};
  for (int64_t i = 0; i < count; ++i)
    steps[i] = f16_to_float(part.step[(row + i) / part.rows_per_step]) * part.gain;
  return load(steps);
}

// Sixteen outputs for up to TOKENS tokens from `token` on.
template <int TOKENS>
inline void add_group(const Step& step, const TensorTrainPart& part, int64_t row, int64_t token,
                      const float* x, int64_t stride, const float* train) {
  const int64_t count = std::min<int64_t>(LANES, part.rows - row);
  float sums[TOKENS * LANES] = {};
  for (int64_t r = 0; r < count; ++r) sparse_row<TOKENS>(part, row + r, x, stride, sums + r);
  const Floats scale = steps_of(part, row, count), bias = bias_of(part.bias, row, count);
  for (int t = 0; t < TOKENS; ++t) {
    Floats change = fma(scale, load(sums + t * LANES), bias);
    if (part.stages) change = load_up_to(FLOAT32, train, t * part.rows + row, count) + change;
    add_to_out(step, token + t, part.offset + row, count, change);
  }
}

void add_rows(const Apply& call, const TensorTrainPart& part, int64_t row, const Span& span,
              const float* x, int64_t stride, const float* train) {
  int64_t t = 0;
  const int64_t tokens = span.stop - span.start;
  for (; t + 4 <= tokens; t += 4)
    add_group<4>(call, part, row, span.start + t, x + t * stride, stride, train + t * part.rows);
  for (; t < tokens; ++t)
    add_group<1>(call, part, row, span.start + t, x + t * stride, stride, train + t * part.rows);
}

void apply(const Apply& call) {
  const Rows rows(call, call.spans, call.variants());
  const Trains trains(call, rows);
  TaskList list;
  for_parts<TensorTrainLinear>(call, [&](int64_t v, int64_t p, const TensorTrainPart& part) {
    const int64_t groups = (part.rows + LANES - 1) / LANES;
    const int64_t entries = groups ? part.entries / groups / 4 + LANES : 0;  // gathers cost more
    list.add(v, p, groups, entries * rows.count(v));
  });
  list.cut(call.threads);
  parallel_for(int64_t(list.tasks.size()), call.threads, list.worth_forking(), [&](int64_t i) {
    const Task& task = list.tasks[i];
    const TensorTrainPart& part = call.linear<TensorTrainLinear>(task.variant).parts[task.part];
    for (int64_t g = task.first_group; g < task.last_group; ++g)
      add_rows(call, part, g * LANES, call.spans[task.variant], rows.of(task.variant), rows.stride,
               trains.of(task.variant, task.part));
  });
}

}  // namespace tsugiki

using namespace tsugiki;

extern "C" void tsugiki_tensor_train_apply(const Apply* call) { apply(*call); }
