// Rebuilding dense weights: out = base + D, one rounding per changed element.
// Rows that no part covers are not touched; the caller has copied them.

#include "reconstruct.h"

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
void rebuild_as(const SparsePart& part, int64_t group, const Rebuilding& where) {
  float* weights = scratch(TILE, padded(part.kept) * LANES);
  decode_any(part, group, weights);
  for (int64_t i = 0; i < LANES && group * LANES + i < part.rows; ++i) {
    const int64_t row = part.offset + group * LANES + i, inputs = where.inputs;
    Element* out = (Element*)where.out + (row - where.first) * inputs;
    std::memcpy((void*)out, (const Element*)where.base + row * inputs, inputs * sizeof(Element));
    if (part.by_row)
      add_row(part, group * LANES + i, weights + i * padded(part.kept), 1, out);
    else
      add_row(part, group * LANES + i, weights + i, LANES, out);
  }
}

void rebuild_group(const SparsePart& part, int64_t group, const Rebuilding& where) {
  switch (where.dtype) {
    case BFLOAT16: return rebuild_as<Bfloat16>(part, group, where);
    case FLOAT16: return rebuild_as<Float16>(part, group, where);
    default: return rebuild_as<Float32>(part, group, where);
  }
}

inline void rebuild_signs(const SignPart& part, int64_t row, const Rebuilding& where) {
  const Decoder<1> half(0.5f);  // -0.5 or +0.5
  const Floats scale = splat(2.0f * (f16_to_float(part.scale[row]) * part.gain));
  const uint8_t* signs = part.signs + row * part.sign_stride;
  const int64_t from = (part.offset + row) * where.inputs;
  const int64_t to = from - where.first * where.inputs;
  for (int64_t c = 0; c < where.inputs; c += LANES) {
    const int64_t count = std::min<int64_t>(LANES, where.inputs - c);
    const Floats sign = count == LANES ? half(signs + c / 8) : decode_some(half, signs + c / 8, count);
    const Floats old = load_up_to(where.dtype, where.base, from + c, count);
    store_up_to(where.dtype, where.out, to + c, fma(scale, sign, old), count);
  }
}

void rebuild_group(const SignPart& part, int64_t group, const Rebuilding& where) {
  for (int64_t row = group * LANES; row < std::min(part.rows, (group + 1) * LANES); ++row)
    rebuild_signs(part, row, where);
}

// Mirrored by records.py.
struct Reconstruct {
  const void* linear;
  const void* base;  // [fused out, inputs]
  void* out;
  int64_t inputs;
  Dtype dtype;
  int32_t threads;
};

template <class Whole>
void reconstruct(const Reconstruct& call) {
  const Whole& whole = *(const Whole*)call.linear;
  const Rebuilding where{call.base, call.out, 0, call.inputs, call.dtype};
  for (int64_t p = 0; p < whole.count; ++p) {
    const auto& part = whole.parts[p];
    const bool fork = part.rows * call.inputs > 16 * FORK_FROM;
    parallel_for((part.rows + LANES - 1) / LANES, call.threads, fork,
                 [&](int64_t group) { rebuild_group(part, group, where); });
  }
}

}  // namespace tsugiki

using namespace tsugiki;

extern "C" void tsugiki_sparse_reconstruct(const Reconstruct* call) {
  reconstruct<SparseLinear>(*call);
}

extern "C" void tsugiki_sign_reconstruct(const Reconstruct* call) {
  reconstruct<SignLinear>(*call);
}
