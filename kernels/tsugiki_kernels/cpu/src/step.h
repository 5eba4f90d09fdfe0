// What all delta kernels share: the activations and variants of a call, buffers that outlive it, and
// the addition into `out`.
#pragma once

#include <algorithm>
#include <vector>

#include "decode.h"
#include "team.h"

namespace tsugiki {

struct Span {
  int64_t start, stop;
};

// What is added to the outputs of a linear: float32 values, or packed codes of `bits` bits with
// b[r] = scale * (code_r - 2^(bits - 1)), code r at bit r * bits.
struct Bias {
  const void* values;  // null: nothing
  float scale;
  int32_t bits;  // PLAIN_BITS: float32 values
};

constexpr int32_t PLAIN_BITS = 32;

// What the records of all kinds of deltas begin with.
struct Part {
  int64_t offset;  // first output column in the fused linear
  int64_t rows;    // outputs
  Bias bias;
};

// The activations of one call: x [rows, inputs], out [rows, fused out]; strides in elements.
struct Step {
  const void* x;
  int64_t x_stride;
  int64_t inputs;
  void* out;
  int64_t out_stride;
  Dtype dtype, out_dtype;
  int32_t threads, unused;
};

// One call for all variants of a step; what it points to may differ from run to run. Mirrored by
// records.py.
struct Apply : Step {
  const void* const* linears;  // the first variant's
  int64_t stride;              // to the next variant's: a table holds many linears
  const Span* spans;           // one for each variant
  const int64_t* count;

  int64_t variants() const { return *count; }

  // Whether it is one linear of a table, where the next one's address follows.
  bool in_table() const { return stride > 1; }

  template <class Linear>
  const Linear& following(int64_t v) const {
    return *(const Linear*)linears[v * stride + 1];
  }

  // What variant v changes in the rows of spans[v].
  template <class Linear>
  const Linear& linear(int64_t v) const {
    return *(const Linear*)linears[v * stride];
  }
};

// meet(variant, place of the part, part) for all of them.
template <class Linear, class Meet>
inline void for_parts(const Apply& call, Meet meet) {
  for (int64_t v = 0; v < call.variants(); ++v) {
    const Linear& linear = call.linear<Linear>(v);
    for (int64_t p = 0; p < linear.count; ++p) meet(v, p, linear.parts[p]);
  }
}

// Outputs up to the end of the last part.
template <class Linear>
inline int64_t outputs_of(const Apply& call) {
  int64_t most = 0;
  for_parts<Linear>(call, [&](int64_t, int64_t, const Part& part) {
    most = std::max(most, part.offset + part.rows);
  });
  return most;
}

// Whether ranges that begin at multiples of 16 cut through no group of 16 rows.
template <class Linear>
inline bool all_cut_at_sixteens(const Apply& call) {
  bool all = true;
  for_parts<Linear>(call, [&](int64_t, int64_t, const Part& part) {
    all = all && part.offset % LANES == 0;
  });
  return all;
}

// Work below this many 16-lane multiply-adds (about 25 us) is not worth waking other threads: that
// took 6 us on two idle cores and 10 to 20 us beside other processes.
constexpr int64_t FORK_FROM = 48000;

// A team spins for its work.
inline int64_t fork_from() { return Team::current() ? FORK_FROM / 16 : FORK_FROM; }

inline int64_t padded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

enum Scratch { ROWS, MIDDLE, TILE, SUMS, REST, TOKENS, TURNED, SPARE, SCRATCHES };

// A buffer that outlives the call, so that a step allocates nothing; one per thread and use. It
// begins at a cache line, for no vector to straddle two.
inline float* scratch(int use, int64_t floats) {
  static thread_local std::vector<float> buffers[SCRATCHES];
  if (int64_t(buffers[use].size()) < floats + LANES) buffers[use].resize(floats + LANES);
  const uintptr_t start = (uintptr_t)buffers[use].data();
  return (float*)((start + 63) / 64 * 64);
}


// An empty list that keeps its memory from call to call; one per thread and element type.
template <class Element>
inline std::vector<Element>& reused() {
  static thread_local std::vector<Element> list;
  list.clear();
  return list;
}

// out[row, column .. column + count] += change, rounded once.
inline void add_to_out(const Step& step, int64_t row, int64_t column, int64_t count, Floats change) {
  const int64_t index = row * step.out_stride + column;
  const Floats old = load_up_to(step.out_dtype, step.out, index, count);
  store_up_to(step.out_dtype, step.out, index, old + change, count);
}

// Bias of up to 16 outputs from `row` (a multiple of 16) on. Lanes beyond `count` hold anything.
inline Floats bias_of(const Bias& bias, int64_t row, int64_t count) {
  if (bias.values == nullptr) return zeros();
  if (bias.bits == PLAIN_BITS) return load_up_to(FLOAT32, bias.values, row, count);
  const uint8_t* codes = (const uint8_t*)bias.values + row / 8 * bias.bits;
  const Floats half = splat(float(1 << (bias.bits - 1)));
  return (sixteen_codes(codes, bias.bits) - half) * splat(bias.scale);
}

}  // namespace tsugiki
