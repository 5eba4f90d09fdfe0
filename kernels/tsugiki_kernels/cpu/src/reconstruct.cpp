// Rebuilding dense weights: out = base + D, one rounding per changed element.
// Rows that no part covers are not touched; the caller has copied them.

#include "dot.h"
#include "sparse.h"

namespace tsugiki {

// Sparse: base rows are copied and only the kept elements rewritten.

template <int BITS>
void decode_group(const SparsePart& part, int64_t group, float* weights) {
  const Decoder<BITS> decode(part.zero);
  const Group where = group_of(part, group);
  for (int64_t j = 0; j < part.kept; ++j)
    store(weights + j * LANES, decode(where.codes + j * part.rows_per_mask * BITS / 8));
}

template <int BITS>
void decode_row(const SparsePart& part, int64_t row, float* weights) {
  const Decoder<BITS> decode(part.zero);
  const uint8_t* codes = part.codes + row * part.code_stride;
  for (int64_t j = 0; j < part.kept; j += LANES) {
    const int64_t count = std::min<int64_t>(LANES, part.kept - j);
    const uint8_t* p = codes + j * BITS / 8;
    store(weights + j, count == LANES ? decode(p) : decode_some(decode, p, count));
  }
}

template <int BITS>
void decode_weights(const SparsePart& part, int64_t group, float* weights) {
  if (!part.by_row) return decode_group<BITS>(part, group, weights);
  for (int64_t i = 0; i < LANES && group * LANES + i < part.rows; ++i)
    decode_row<BITS>(part, group * LANES + i, weights + i * padded(part.kept));
}

void decode_any(const SparsePart& part, int64_t group, float* weights) {
  switch (part.bits) {
    case 1: return decode_weights<1>(part, group, weights);
    case 2: return decode_weights<2>(part, group, weights);
    case 4: return decode_weights<4>(part, group, weights);
    default: return decode_weights<8>(part, group, weights);
  }
}

template <class Element>
void add_row(const SparsePart& part, int64_t row, const float* weights, int64_t stride,
             Element* out) {
  const uint16_t* columns = part.columns + row / part.rows_per_mask * part.kept;
  const float step = step_of(part, row);
  for (int64_t j = 0; j < part.kept; ++j) {
    Element& element = out[columns[j]];
    element = Element::from(element.value() + step * weights[j * stride]);
  }
}

template <class Element>
void rebuild_group(const SparsePart& part, int64_t group, int64_t inputs, const Element* base,
                   Element* out) {
  float* weights = scratch(TILE, padded(part.kept) * LANES);
  decode_any(part, group, weights);
  for (int64_t i = 0; i < LANES && group * LANES + i < part.rows; ++i) {
    const int64_t row = group * LANES + i, place = (part.offset + row) * inputs;
    std::memcpy((void*)(out + place), (const void*)(base + place), inputs * sizeof(Element));
    if (part.by_row)
      add_row(part, row, weights + i * padded(part.kept), 1, out + place);
    else
      add_row(part, row, weights + i, LANES, out + place);
  }
}

void rebuild(const SparsePart& part, int64_t group, int64_t inputs, Dtype dtype, const void* base,
             void* out) {
  if (dtype == BFLOAT16)
    return rebuild_group(part, group, inputs, (const Bfloat16*)base, (Bfloat16*)out);
  if (dtype == FLOAT16)
    return rebuild_group(part, group, inputs, (const Float16*)base, (Float16*)out);
  rebuild_group(part, group, inputs, (const Float32*)base, (Float32*)out);
}

struct SignTarget {
  const SignPart& part;
  int64_t inputs;
  Dtype dtype;
  const void* base;
  void* out;
};

inline void rebuild_signs(const SignTarget& target, int64_t row) {
  const SignPart& part = target.part;
  const Decoder<1> half(0.5f);  // -0.5 or +0.5
  const Floats scale = splat(2.0f * (f16_to_float(part.scale[row]) * part.gain));
  const uint8_t* signs = part.signs + row * part.sign_stride;
  const int64_t place = (part.offset + row) * target.inputs;
  for (int64_t c = 0; c < target.inputs; c += LANES) {
    const int64_t count = std::min<int64_t>(LANES, target.inputs - c);
    const Floats sign = count == LANES ? half(signs + c / 8) : decode_some(half, signs + c / 8, count);
    const Floats old = load_up_to(target.dtype, target.base, place + c, count);
    store_up_to(target.dtype, target.out, place + c, fma(scale, sign, old), count);
  }
}

// Mirrored by records.py.
struct Reconstruct {
  const void* linear;
  const void* base;  // [fused out, inputs]
  void* out;
  int64_t inputs;
  Dtype dtype;
  int32_t threads;

  bool worth_forking(int64_t rows) const { return rows * inputs > 16 * FORK_FROM; }
};

}  // namespace tsugiki

using namespace tsugiki;

extern "C" void tsugiki_sparse_reconstruct(const Reconstruct* call) {
  const SparseLinear& whole = *(const SparseLinear*)call->linear;
  for (int64_t p = 0; p < whole.count; ++p) {
    const SparsePart& part = whole.parts[p];
    const int64_t groups = (part.rows + LANES - 1) / LANES;
    parallel_for(groups, call->threads, call->worth_forking(part.rows), [&](int64_t g) {
      rebuild(part, g, call->inputs, call->dtype, call->base, call->out);
    });
  }
}

extern "C" void tsugiki_sign_reconstruct(const Reconstruct* call) {
  const SignLinear& whole = *(const SignLinear*)call->linear;
  for (int64_t p = 0; p < whole.count; ++p) {
    const SignTarget target{whole.parts[p], call->inputs, call->dtype, call->base, call->out};
    parallel_for(target.part.rows, call->threads, call->worth_forking(target.part.rows),
                 [&](int64_t row) { rebuild_signs(target, row); });
  }
}
