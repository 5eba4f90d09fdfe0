// Rebuilding dense weights in their packed order (weight.h), whose lanes are outputs: a column that
// 16 rows keep together is one vector.

#include "reconstruct.h"

namespace tsugiki {

inline Uint8x words(Half16 a) { return (Uint8x)a; }

// One of two values in each lane is replaced.
inline Floats with_value(Floats pairs, Floats value, bool second) {
  const auto half = [&](Half16 pair, Half16 v) {
    return second ? (Half16)((words(v) & 0xffff0000u) | (words(pair) & 0xffffu))
                  : (Half16)((words(v) >> 16) | (words(pair) & 0xffff0000u));
  };
  return join(half(low(pairs), low(value)), half(high(pairs), high(value)));
}

// values += change, of one input of 16 outputs.
inline void add_input(const Rebuilding& where, int64_t group, int64_t input, Floats change) {
  const Dtype dtype = where.shape.dtype;
  const int64_t lanes = where.shape.lanes_of(group);
  const int64_t at = where.shape.place(group, input) - where.first * where.shape.inputs;
  if (where.shape.lane_stride(input) == 1) {
    const Floats old = load_up_to(dtype, where.groups, at, lanes);
    return store_up_to(dtype, where.groups, at, old + change, lanes);
  }
  const bool second = input % 2 != 0;
  float* pairs = (float*)((uint16_t*)where.groups + at - second);
  const Floats both = load_up_to(FLOAT32, pairs, 0, lanes);
  const Floats old = second ? second_of_pair(both) : first_of_pair(both);
  const Floats changed = rounded(dtype, old + change);
  store_up_to(FLOAT32, pairs, 0, with_value(both, changed, second), lanes);
}

// One value.
inline void add_value(const Rebuilding& where, int64_t output, int64_t input, float change) {
  const int64_t at = where.place(output, input);
  const Floats old = load_some(where.shape.dtype, where.groups, at, 1);
  store_some(where.shape.dtype, where.groups, at, old + splat(change), 1);
}

template <int BITS>
void add_tile(const SparsePart& part, int64_t group, const Rebuilding& where) {
  const Decoder<BITS> decode(part.zero);
  const Group tile = group_of(part, group);
  const int64_t stride = part.rows_per_mask * BITS / 8, row = group * LANES;
  const int64_t count = std::min<int64_t>(LANES, part.rows - row);
  const Floats steps = keep_first(steps_of(part, row, count), count);
  const int64_t packed = (part.offset + row) / LANES;
  for (int64_t j = 0; j < part.kept; ++j)
    add_input(where, packed, tile.columns[j], steps * decode(tile.codes + j * stride));
}

inline void add_tile(const SparsePart& part, int64_t group, const Rebuilding& where) {
  switch (part.bits) {
    case 1: return add_tile<1>(part, group, where);
    case 2: return add_tile<2>(part, group, where);
    case 4: return add_tile<4>(part, group, where);
    default: return add_tile<8>(part, group, where);
  }
}

// Codes of one row: in a row of their own, or side by side with those of its tile.
inline void add_row(const SparsePart& part, int64_t row, const Rebuilding& where) {
  const int64_t mask = row / part.rows_per_mask, in_mask = row % part.rows_per_mask;
  const uint8_t* codes = part.codes + (part.by_row ? row : mask) * part.code_stride;
  const int64_t apart = part.by_row ? 1 : part.rows_per_mask, first = part.by_row ? 0 : in_mask;
  const float step = step_of(part, row);
  for (int64_t j = 0; j < part.kept; ++j) {
    const int64_t bit = (first + j * apart) * part.bits;
    const int code = codes[bit / 8] >> bit % 8 & ((1 << part.bits) - 1);
    add_value(where, part.offset + row, part.columns[mask * part.kept + j],
              step * (float(code) - part.zero));
  }
}

template <>
void add_rows(const SparsePart& part, int64_t first, int64_t last, const Rebuilding& where) {
  if (!part.by_row && part.offset % LANES == 0) {
    for (int64_t row = first; row < last; row += LANES)
      add_tile(part, (row - part.offset) / LANES, where);
  } else {
    for (int64_t row = first; row < last; ++row) add_row(part, row - part.offset, where);
  }
}

// -0.5 or +0.5 in each lane: bit `at` of its word.
inline Floats signs_of(const Half16 (&bits)[2], int at) {
  const auto half = [&](Half16 b) {
    return (Half16)(0xbf000000u ^ ((words(b) >> at & 1u) << 31));
  };
  return join(half(bits[0]), half(bits[1]));
}

// 16 rows, whose signs are read 32 columns at a time.
inline void add_signs(const SignPart& part, int64_t group, const Rebuilding& where) {
  const int64_t row = group * LANES, count = std::min<int64_t>(LANES, part.rows - row);
  const int64_t inputs = where.shape.inputs, packed = (part.offset + row) / LANES;
  const Floats scale =
      load_up_to(FLOAT16, part.scale, row, count) * splat(part.gain) * splat(2.0f);
  for (int64_t c = 0; c < inputs; c += 32) {
    const int64_t columns = std::min<int64_t>(32, inputs - c);
    uint32_t lanes[LANES] = {};
    for (int64_t i = 0; i < count; ++i)
      std::memcpy(lanes + i, part.signs + (row + i) * part.sign_stride + c / 8, (columns + 7) / 8);
    Half16 bits[2];
    std::memcpy(bits, lanes, sizeof bits);
    for (int64_t i = 0; i < columns; ++i)
      add_input(where, packed, c + i, scale * signs_of(bits, int(i)));
  }
}

inline void add_row(const SignPart& part, int64_t row, const Rebuilding& where) {
  const float scale = f16_to_float(part.scale[row]) * part.gain;
  const uint8_t* signs = part.signs + row * part.sign_stride;
  for (int64_t c = 0; c < where.shape.inputs; ++c)
    add_value(where, part.offset + row, c, signs[c / 8] >> c % 8 & 1 ? scale : -scale);
}

template <>
void add_rows(const SignPart& part, int64_t first, int64_t last, const Rebuilding& where) {
  if (part.offset % LANES == 0) {
    for (int64_t row = first; row < last; row += LANES)
      add_signs(part, (row - part.offset) / LANES, where);
  } else {
    for (int64_t row = first; row < last; ++row) add_row(part, row - part.offset, where);
  }
}

// Mirrored by records.py.
struct Reconstruct {
  const void* linear;
  const void* base;  // [fused out, inputs], packed
  void* out;
  int64_t outputs, inputs;
  Dtype dtype;
  int32_t threads;
};

template <class Whole>
void reconstruct(const Reconstruct& call) {
  const Whole& whole = *(const Whole*)call.linear;
  const int64_t group_bytes = LANES * call.inputs * dtype_size(call.dtype);
  const int64_t groups = (call.outputs + LANES - 1) / LANES;
  parallel_for(groups, call.threads, call.outputs * call.inputs > 16 * FORK_FROM, [&](int64_t group) {
    rebuild(whole, (const char*)call.base + group * group_bytes,
            {(char*)call.out + group * group_bytes, group * LANES,
             {call.outputs, call.inputs, call.dtype}},
            std::min(call.outputs, (group + 1) * LANES));
  });
}

}  // namespace tsugiki

using namespace tsugiki;

extern "C" void tsugiki_sparse_reconstruct(const Reconstruct* call) {
  reconstruct<SparseLinear>(*call);
}

extern "C" void tsugiki_sign_reconstruct(const Reconstruct* call) {
  reconstruct<SignLinear>(*call);
}
