// The columns of x that a block works on, in shared memory, in an order that suits their readers.
//
// A place holds one column of x for several tokens. Two orders: for each, threads write and read
// without two lanes of a request meeting in one bank, as far as the order can see to it
// (tests/kernels/cuda/test_sparse_banks.py). One place more is zeros, for what does not exist.
#pragma once

#include "eight.cuh"

// 32 blocks of `block` neighbouring columns (8 .. 128, a multiple of 8), one to a lane. Column `slot`
// of block `lane` lies at slot * 32 + lane: whatever lane l reads of its own block is in bank l.
struct LaneBlocks {
  int32_t first;  // column of x
  int32_t block;

  DEVICE int32_t columns() const { return block * WARP; }
  DEVICE int32_t zero() const { return block * WARP; }
  DEVICE static constexpr int32_t place(int32_t slot, int32_t lane) { return slot * WARP + lane; }

  // Threads copy eight columns at once: warp by warp, `unit` counts from 0 to units().
  DEVICE int32_t units() const { return block / 8; }
  DEVICE int32_t unit_column(int32_t unit, int32_t lane) const { return lane * block + unit * 8; }
  DEVICE int32_t unit_place(int32_t unit, int32_t lane, int32_t i) const {
    return place(unit * 8 + i, lane);
  }
  DEVICE int32_t place_of(int32_t column) const { return place(column % block, column / block); }
};

// Columns in their order, one place left out after each eight: the eights that neighbouring lanes
// write at once then lie in different banks. Their readers gather any columns.
struct PaddedColumns {
  int32_t first;  // column of x
  int32_t count;  // a multiple of 256

  DEVICE int32_t columns() const { return count; }
  DEVICE int32_t zero() const { return place(count); }
  DEVICE static constexpr int32_t place(int32_t column) { return column + column / 8; }

  DEVICE int32_t units() const { return count / (8 * WARP); }
  DEVICE int32_t unit_column(int32_t unit, int32_t lane) const { return (unit * WARP + lane) * 8; }
  DEVICE int32_t unit_place(int32_t unit, int32_t lane, int32_t i) const {
    return place(unit_column(unit, lane)) + i;
  }
  DEVICE int32_t place_of(int32_t column) const { return place(column); }

  // Bytes from the start of the window, whose places have BYTES each, to that of a column of x; to
  // the zeros for a column outside, ~0u among them. As `place`, in three instructions.
  template <int32_t BYTES>
  DEVICE uint32_t offset_of(uint32_t column) const {
    constexpr uint32_t EACH = BYTES + BYTES / 8;
    return min(multiply_add<EACH>(column, 0u - first * EACH), count * EACH) & ~(BYTES - 1u);
  }
};

// The place of a window that lies so many bytes from its start.
template <class Value>
DEVICE const Value* place_at(const Value* places, uint32_t offset) {
  return reinterpret_cast<const Value*>(reinterpret_cast<const char*>(places) + offset);
}

constexpr int32_t log2_of(int32_t power) { return power == 1 ? 0 : 1 + log2_of(power / 2); }

// Bytes from the start of a window of lane blocks, whose places have BYTES each, to the place that
// byte `e` of a word names: a slot of the lane's own block.
// `lane_bytes`: lane * BYTES.
template <int32_t BYTES>
DEVICE uint32_t entry_offset(uint32_t word, int32_t e, uint32_t lane_bytes) {
  constexpr int32_t SHIFT = log2_of(BYTES * WARP);
  const int32_t up = SHIFT - 8 * e;
  return ((up > 0 ? word << up : word >> -up) & (0xffu << SHIFT)) | lane_bytes;
}

// What a place holds: TOKENS values of one column.
template <class T, int32_t TOKENS>
struct Tokens {
  static constexpr int32_t WORDS = sizeof(T) * TOKENS / 4;
  uint32_t words[WORDS];

  DEVICE float value(int32_t token) const {
    if constexpr (sizeof(T) == 4) {
      return __uint_as_float(words[token]);
    } else {
      const uint32_t pair = words[token / 2];
      return token % 2 == 0 ? low_float<T>(pair) : high_float<T>(pair);
    }
  }

  // Column i of eight columns of each token.
  DEVICE static Tokens of(const Eight<T> (&x)[TOKENS], int32_t i) {
    Tokens tokens;
#pragma unroll
    for (int32_t word = 0; word < WORDS; ++word) {
      if constexpr (sizeof(T) == 4) {
        tokens.words[word] = x[word].words[i];
      } else {
        const uint32_t low = x[2 * word].words[i / 2], high = x[2 * word + 1].words[i / 2];
        tokens.words[word] = __byte_perm(low, high, i % 2 == 0 ? 0x5410 : 0x7632);
      }
    }
    return tokens;
  }

  DEVICE static Tokens zero() {
    Tokens tokens;
#pragma unroll
    for (int32_t word = 0; word < WORDS; ++word) tokens.words[word] = 0;
    return tokens;
  }
};

template <class Value>
DEVICE void store_words(Value* to, const Value& value) {
  constexpr int32_t WORDS = sizeof(Value) / 4;
  if constexpr (WORDS == 4)
    *reinterpret_cast<uint4*>(to) =
        make_uint4(value.words[0], value.words[1], value.words[2], value.words[3]);
  else if constexpr (WORDS == 2)
    *reinterpret_cast<uint2*>(to) = make_uint2(value.words[0], value.words[1]);
  else
    *reinterpret_cast<uint32_t*>(to) = value.words[0];
}

template <class Value>
DEVICE Value load_words(const Value* from) {
  constexpr int32_t WORDS = sizeof(Value) / 4;
  Value value;
  if constexpr (WORDS == 4) {
    const uint4 words = *reinterpret_cast<const uint4*>(from);
    value.words[0] = words.x;
    value.words[1] = words.y;
    value.words[2] = words.z;
    value.words[3] = words.w;
  } else if constexpr (WORDS == 2) {
    const uint2 words = *reinterpret_cast<const uint2*>(from);
    value.words[0] = words.x;
    value.words[1] = words.y;
  } else {
    value.words[0] = *reinterpret_cast<const uint32_t*>(from);
  }
  return value;
}

// Rows of the step that an item works on. Rows beyond `count` and columns beyond `width` are zeros.
template <class T>
struct StepRows {
  const T* first;
  int64_t stride;
  int32_t count, width;

  // Whether eight columns from a multiple of eight are one aligned load, or all absent.
  DEVICE bool aligned() const {
    return is_aligned(first) && stride * sizeof(T) % 16 == 0 && width % 8 == 0;
  }
  DEVICE Eight<T> eight(int32_t row, int32_t column) const {
    if (row >= count || column >= width) return zero_eight<T>();
    return load_aligned(first + row * stride + column);
  }
  DEVICE T one(int32_t row, int32_t column) const {
    if (row >= count || column >= width) return from_float<T>(0.0f);
    return first[row * stride + column];
  }
};

template <class Stored, class T>
DEVICE Eight<Stored> converted(const Eight<T>& eight) {
  if constexpr (sizeof(Stored) == sizeof(T)) {
    return eight;
  } else {
    Eight<Stored> floats;
#pragma unroll
    for (int32_t i = 0; i < 8; ++i) floats.words[i] = __float_as_uint(value_at(eight, i));
    return floats;
  }
}

template <class Stored, class T>
DEVICE Stored converted(T value) {
  if constexpr (sizeof(Stored) == sizeof(T))
    return value;
  else
    return to_float(value);
}

template <class Stored, int32_t TOKENS, class T, class Window>
DEVICE void stage_aligned(const StepRows<T>& rows, const Window& window,
                          Tokens<Stored, TOKENS>* places) {
  const int32_t lane = threadIdx.x % WARP;
#pragma unroll 1
  for (int32_t unit = threadIdx.x / WARP; unit < window.units(); unit += blockDim.x / WARP) {
    const int32_t column = window.first + window.unit_column(unit, lane);
    Eight<Stored> x[TOKENS];
#pragma unroll
    for (int32_t token = 0; token < TOKENS; ++token)
      x[token] = converted<Stored>(rows.eight(token, column));
#pragma unroll
    for (int32_t i = 0; i < 8; ++i)
      store_words(places + window.unit_place(unit, lane, i), Tokens<Stored, TOKENS>::of(x, i));
  }
}

// Rows of any alignment and width, value by value.
template <class Stored, int32_t TOKENS, class T, class Window>
DEVICE void stage_unaligned(const StepRows<T>& rows, const Window& window,
                            Tokens<Stored, TOKENS>* places) {
  Stored* values = reinterpret_cast<Stored*>(places);
#pragma unroll 1
  for (int32_t i = threadIdx.x; i < window.columns() * TOKENS; i += blockDim.x) {
    const int32_t column = i % window.columns(), token = i / window.columns();
    values[window.place_of(column) * TOKENS + token] =
        converted<Stored>(rows.one(token, window.first + column));
  }
}

// Copies the window to shared memory, and zeros after it. All threads of the block must call; the
// barriers before and after are the caller's.
template <class Stored, int32_t TOKENS, class T, class Window>
DEVICE void stage_window(const StepRows<T>& rows, const Window& window,
                         Tokens<Stored, TOKENS>* places) {
  if (rows.aligned())
    stage_aligned(rows, window, places);
  else
    stage_unaligned(rows, window, places);
  if (threadIdx.x < WARP)
    store_words(places + window.zero() + threadIdx.x, Tokens<Stored, TOKENS>::zero());
}
