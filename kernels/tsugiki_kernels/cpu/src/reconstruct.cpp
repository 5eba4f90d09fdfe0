// Rebuilding dense weights: out = base + D, one rounding per changed element.
// Rows that no part covers are not touched; the caller has copied them.

#include "reconstruct.h"

namespace tsugiki {

// Sparse: what changes in each of 16 rows, kept column by kept column, [row][stride] float32; room
// for four rows more.
struct Changes {
  int64_t stride;
  float* values;

  explicit Changes(const SparsePart& part)
      : stride(padded(part.kept)), values(scratch(TILE, stride * (LANES + 4))) {}
  float* of(int64_t row) const { return values + row * stride; }
};

// lanes[j]: 16 rows of column j. Written row by row.
inline void transpose_into(Floats (&lanes)[LANES], const Changes& changes, int64_t j) {
  Half16 block[2][2][8];  // rows half, columns half
  for (int i = 0; i < LANES; ++i) {
    block[0][i / 8][i % 8] = low(lanes[i]);
    block[1][i / 8][i % 8] = high(lanes[i]);
  }
  for (int half = 0; half < 2; ++half) {
    transpose8(block[half][0]), transpose8(block[half][1]);
    for (int r = 0; r < 8; ++r)
      store(changes.of(half * 8 + r) + j, join(block[half][0][r], block[half][1][r]));
  }
}

template <int BITS>
void decode_tile(const SparsePart& part, int64_t group, const Changes& changes) {
  const Decoder<BITS> decode(part.zero);
  const Group where = group_of(part, group);
  const int64_t stride = part.rows_per_mask * BITS / 8, row = group * LANES;
  const Floats steps = steps_of(part, row, std::min<int64_t>(LANES, part.rows - row));
  for (int64_t j = 0; j < part.kept; j += LANES) {
    const int64_t last = part.kept - 1;  // columns that do not exist repeat the last one
    Floats lanes[LANES];
    for (int i = 0; i < LANES; ++i)
      lanes[i] = steps * decode(where.codes + std::min(j + i, last) * stride);
    transpose_into(lanes, changes, j);
  }
}

template <int BITS>
void decode_row(const SparsePart& part, int64_t row, float* values) {
  const Decoder<BITS> decode(part.zero);
  const uint8_t* codes = part.codes + row * part.code_stride;
  const Floats step = splat(step_of(part, row));
  for (int64_t j = 0; j < part.kept; j += LANES) {
    const int64_t count = std::min<int64_t>(LANES, part.kept - j);
    const uint8_t* p = codes + j * BITS / 8;
    store(values + j, step * (count == LANES ? decode(p) : decode_some(decode, p, count)));
  }
}

template <int BITS>
void decode_group(const SparsePart& part, int64_t group, const Changes& changes) {
  if (!part.by_row) return decode_tile<BITS>(part, group, changes);
  for (int64_t i = 0; i < LANES && group * LANES + i < part.rows; ++i)
    decode_row<BITS>(part, group * LANES + i, changes.of(i));
}

void decode_any(const SparsePart& part, int64_t group, const Changes& changes) {
  switch (part.bits) {
    case 1: return decode_group<1>(part, group, changes);
    case 2: return decode_group<2>(part, group, changes);
    case 4: return decode_group<4>(part, group, changes);
    default: return decode_group<8>(part, group, changes);
  }
}

template <class Word>
inline void collect(const uint16_t* columns, int64_t kept, const Word* row, Word* elements) {
#pragma GCC unroll 4
  for (int64_t j = 0; j < kept; ++j) elements[j] = row[columns[j]];
}

template <class Word>
inline void put_back(const uint16_t* columns, int64_t kept, const Word* elements, Word* row) {
#pragma GCC unroll 4
  for (int64_t j = 0; j < kept; ++j) row[columns[j]] = elements[j];
}

// A few rows at a time, which stay in the first-level cache: the elements at kept columns are
// collected, changed as vectors, and put into copies of the base's rows. (Row by row the vectors would
// wait for the words just written.) Word: an integer of the element's size.
template <class Word>
void rebuild_as(const SparsePart& part, int64_t group, const Rebuilding& where) {
  constexpr int64_t FEW = 4;
  const Changes changes(part);
  decode_any(part, group, changes);
  const int64_t rows = std::min<int64_t>(LANES, part.rows - group * LANES);
  const int64_t first = (part.offset + group * LANES) * where.inputs;
  const Word* base = (const Word*)where.base + first;
  Word* out = (Word*)where.out + first - where.first * where.inputs;
  Word* elements = (Word*)changes.of(LANES);  // [FEW][stride]
  const auto columns = [&](int64_t i) {
    return part.columns + (group * LANES + i) / part.rows_per_mask * part.kept;
  };
  for (int64_t from = 0; from < rows; from += FEW) {
    const int64_t few = std::min(FEW, rows - from), place = from * where.inputs;
    for (int64_t i = 0; i < few; ++i)
      collect(columns(from + i), part.kept, base + place + i * where.inputs,
              elements + i * changes.stride);
    std::memcpy(out + place, base + place, few * where.inputs * sizeof(Word));
    const float* change = changes.of(from);
    for (int64_t j = 0; j < few * changes.stride; j += LANES)
      store_as(where.dtype, elements, j, load_as(where.dtype, elements, j) + load(change + j));
    for (int64_t i = 0; i < few; ++i)
      put_back(columns(from + i), part.kept, elements + i * changes.stride,
               out + place + i * where.inputs);
  }
}

void rebuild_group(const SparsePart& part, int64_t group, const Rebuilding& where) {
  if (where.dtype == FLOAT32) return rebuild_as<uint32_t>(part, group, where);
  rebuild_as<uint16_t>(part, group, where);
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
