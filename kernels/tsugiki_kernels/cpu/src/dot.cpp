// Deltas whose rows are read along the inputs: sign bits (bitdelta), dense weights or biases.

#include "dot.h"

namespace tsugiki {

struct DensePart : Part {
  int64_t dtype;
  const void* weight;  // [rows, inputs], null when only the bias differs
};

struct DenseLinear {
  int64_t count;
  DensePart parts[1];
};

constexpr int64_t TOKENS_AT_ONCE = 16;

inline void group_sums(const SignPart& part, int64_t inputs, int64_t row, int64_t count,
                       const float* x, int64_t stride, int64_t tokens, float* sums) {
  const SignRows rows{part.signs, part.sign_stride, inputs};
  dot(rows, row, count, inputs, x, stride, tokens, sums, LANES);
}

inline void group_sums(const DensePart& part, int64_t inputs, int64_t row, int64_t count,
                       const float* x, int64_t stride, int64_t tokens, float* sums) {
  if (part.weight == nullptr) return;
  dot_dense(Dtype(part.dtype), part.weight, row, count, inputs, x, stride, tokens, sums, LANES);
}

// Signs come as halves, hence the 2.
inline Floats scale_of(const SignPart& part, int64_t row, int64_t count) {
  return splat(2.0f) * (load_up_to(FLOAT16, part.scale, row, count) * splat(part.gain));
}

inline Floats scale_of(const DensePart&, int64_t, int64_t) { return splat(1.0f); }

inline int64_t cost_of(const SignPart&, int64_t inputs) { return inputs; }
inline int64_t cost_of(const DensePart& part, int64_t inputs) { return part.weight ? inputs : 1; }

// Sixteen outputs of one part for all tokens of its variant.
template <class Part>
void apply_group(const Step& step, const Part& part, int64_t group, const Span& span,
                 const float* x, int64_t stride) {
  const int64_t row = group * LANES, count = std::min<int64_t>(LANES, part.rows - row);
  const Floats scale = scale_of(part, row, count), bias = bias_of(part.bias, row, count);
  for (int64_t t = span.start; t < span.stop; t += TOKENS_AT_ONCE) {
    const int64_t tokens = std::min(TOKENS_AT_ONCE, span.stop - t);
    float sums[TOKENS_AT_ONCE * LANES] = {};
    group_sums(part, step.inputs, row, count, x + (t - span.start) * stride, stride, tokens, sums);
    for (int64_t i = 0; i < tokens; ++i)
      add_to_out(step, t + i, part.offset + row, count, fma(scale, load(sums + i * LANES), bias));
  }
}

template <class Linear>
void apply(const Apply& call) {
  const Rows rows(call, call.spans, call.variants());
  TaskList list;
  for (int64_t v = 0; v < call.variants(); ++v)
    for (int64_t p = 0; p < call.linear<Linear>(v).count; ++p) {
      const auto& part = call.linear<Linear>(v).parts[p];
      list.add(v, p, (part.rows + LANES - 1) / LANES, cost_of(part, call.inputs) * rows.count(v));
    }
  list.cut(call.threads);
  parallel_for(int64_t(list.tasks.size()), call.threads, list.worth_forking(), [&](int64_t i) {
    const Task& task = list.tasks[i];
    const auto& part = call.linear<Linear>(task.variant).parts[task.part];
    for (int64_t g = task.first_group; g < task.last_group; ++g)
      apply_group(call, part, g, call.spans[task.variant], rows.of(task.variant), rows.stride);
  });
}

// out [fused out] += the biases of all parts, whatever their kind.
void add_biases(const char* parts, int64_t count, int64_t part_bytes, float* out) {
  for (int64_t p = 0; p < count; ++p) {
    const Part& part = *(const Part*)(parts + p * part_bytes);
    for (int64_t row = 0; row < part.rows; row += LANES) {
      const int64_t rows = std::min<int64_t>(LANES, part.rows - row), place = part.offset + row;
      const Floats sum = load_up_to(FLOAT32, out, place, rows) + bias_of(part.bias, row, rows);
      store_up_to(FLOAT32, out, place, sum, rows);
    }
  }
}

}  // namespace tsugiki

using namespace tsugiki;

// Mirrored by records.py.
struct AddBiases {
  const void* linear;
  int64_t part_bytes;
  float* out;  // [fused out]
};

extern "C" void tsugiki_bias(const AddBiases* call) {
  const char* linear = (const char*)call->linear;
  add_biases(linear + sizeof(int64_t), *(const int64_t*)linear, call->part_bytes, call->out);
}

extern "C" void tsugiki_sign_apply(const Apply* call) { apply<SignLinear>(*call); }

extern "C" void tsugiki_dense_apply(const Apply* call) { apply<DenseLinear>(*call); }
