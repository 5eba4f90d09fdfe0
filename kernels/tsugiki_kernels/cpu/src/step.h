// What all delta kernels share: the rows of a step, their float32 copies in blocks of tokens, the
// addition into `out`, and the split of the work over threads.
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

// One call for all variants of a step; linears[v] changes the rows of spans[v]. Mirrored by
// records.py.
struct Apply : Step {
  const void* const* linears;
  const Span* spans;
  int64_t variants;
};

// Up to `width` tokens of one variant as float32, interleaved: value c of token t stands at
// data[c * width + t]. Tokens beyond `tokens` are zero. width is 1, 2, 4 or 8.
struct TokenBlock {
  int64_t first_row;
  int tokens;
  int width;
  const float* data;
};

constexpr int WIDEST = 8;

// Work below this many 16-lane multiply-adds (about 25 us) is not worth waking other threads: that
// took 6 us on two idle cores and 10 to 20 us beside other processes.
constexpr int64_t FORK_FROM = 48000;

inline int64_t padded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

// Rows as they are, in float32, zero-padded to whole vectors.
inline void convert_row(const Step& step, int64_t row, float* to) {
  for (int64_t c = 0; c < step.inputs; c += LANES) {
    const int64_t count = std::min<int64_t>(LANES, step.inputs - c);
    store(to + c, load_up_to(step.dtype, step.x, row * step.x_stride + c, count));
  }
}

inline void transpose8(Half16 (&r)[8]) {
  Half16 s[8];
  for (int i = 0; i < 4; ++i) {
    s[2 * i] = __builtin_shuffle(r[2 * i], r[2 * i + 1], Uint8x{0, 8, 2, 10, 4, 12, 6, 14});
    s[2 * i + 1] = __builtin_shuffle(r[2 * i], r[2 * i + 1], Uint8x{1, 9, 3, 11, 5, 13, 7, 15});
  }
  for (int i : {0, 1, 4, 5}) {
    r[i] = __builtin_shuffle(s[i], s[i + 2], Uint8x{0, 1, 8, 9, 4, 5, 12, 13});
    r[i + 2] = __builtin_shuffle(s[i], s[i + 2], Uint8x{2, 3, 10, 11, 6, 7, 14, 15});
  }
  for (int i = 0; i < 4; ++i) {
    s[i] = __builtin_shuffle(r[i], r[i + 4], Uint8x{0, 1, 2, 3, 8, 9, 10, 11});
    s[i + 4] = __builtin_shuffle(r[i], r[i + 4], Uint8x{4, 5, 6, 7, 12, 13, 14, 15});
  }
  for (int i = 0; i < 8; ++i) r[i] = s[i];
}

inline void convert_block(const Step& step, const TokenBlock& block, float* to) {
  for (int64_t c = 0; c < step.inputs; c += LANES) {
    const int64_t count = std::min<int64_t>(LANES, step.inputs - c);
    Half16 first[8], second[8];
    for (int t = 0; t < WIDEST; ++t) {
      const int64_t index = (block.first_row + t) * step.x_stride + c;
      const Floats values =
          t < block.tokens ? load_up_to(step.dtype, step.x, index, count) : zeros();
      first[t] = low(values), second[t] = high(values);
    }
    transpose8(first), transpose8(second);
    for (int i = 0; i < 8; ++i) {
      std::memcpy(to + (c + i) * block.width, &first[i], block.width * sizeof(float));
      std::memcpy(to + (c + 8 + i) * block.width, &second[i], block.width * sizeof(float));
    }
  }
}

// A buffer that outlives the call, so that a step allocates nothing; one per thread and use. It
// begins at a cache line, for no vector to straddle two.
inline float* scratch(int use, int64_t floats) {
  static thread_local std::vector<float> buffers[3];
  if (int64_t(buffers[use].size()) < floats + LANES) buffers[use].resize(floats + LANES);
  const uintptr_t start = (uintptr_t)buffers[use].data();
  return (float*)((start + 63) / 64 * 64);
}

enum Scratch { ROWS = 0, MIDDLE = 1, TILE = 2 };

// The rows of every span as token blocks; those of variant v are blocks[first[v] .. first[v + 1]].
struct Tokens {
  std::vector<TokenBlock> blocks;
  std::vector<int64_t> first;

  // width_for(variant, tokens) in {1, 2, 4, 8} and >= tokens.
  template <class WidthFor>
  Tokens(const Step& step, const Span* spans, int64_t variants, WidthFor width_for) {
    int64_t floats = 0;
    for (int64_t v = 0; v < variants; ++v) {
      first.push_back(int64_t(blocks.size()));
      for (int64_t row = spans[v].start; row < spans[v].stop; row += WIDEST) {
        const int tokens = int(std::min<int64_t>(WIDEST, spans[v].stop - row));
        blocks.push_back({row, tokens, width_for(v, tokens), nullptr});
        floats += padded(step.inputs) * blocks.back().width;
      }
    }
    first.push_back(int64_t(blocks.size()));
    fill(step, floats);
  }

  // Tokens of a variant as the kernels pay for them.
  int64_t paid(int64_t variant) const {
    int64_t total = 0;
    for (int64_t b = first[variant]; b < first[variant + 1]; ++b) total += blocks[b].width;
    return total;
  }

 private:
  void fill(const Step& step, int64_t floats) {
    float* to = scratch(ROWS, floats);
    for (TokenBlock& block : blocks) {
      block.data = to;
      to += padded(step.inputs) * block.width;
    }
    parallel_for(int64_t(blocks.size()), step.threads, floats > 8 * FORK_FROM, [&](int64_t b) {
      float* data = const_cast<float*>(blocks[b].data);
      if (blocks[b].width == 1)
        convert_row(step, blocks[b].first_row, data);
      else
        convert_block(step, blocks[b], data);
    });
  }
};

// The rows of every span one after the other, in float32, each padded to whole vectors.
struct Rows {
  int64_t stride;
  std::vector<int64_t> first;  // number of rows before variant v

  Rows(const Step& step, const Span* spans, int64_t variants) : stride(padded(step.inputs)) {
    std::vector<int64_t> source;
    for (int64_t v = 0; v < variants; ++v) {
      first.push_back(int64_t(source.size()));
      for (int64_t row = spans[v].start; row < spans[v].stop; ++row) source.push_back(row);
    }
    first.push_back(int64_t(source.size()));
    data = scratch(ROWS, stride * int64_t(source.size()));
    const bool fork = stride * int64_t(source.size()) > 8 * FORK_FROM;
    parallel_for(int64_t(source.size()), step.threads, fork,
                 [&](int64_t i) { convert_row(step, source[i], data + i * stride); });
  }

  int64_t count(int64_t variant) const { return first[variant + 1] - first[variant]; }
  const float* of(int64_t variant) const { return data + first[variant] * stride; }

 private:
  float* data;
};

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

// Consecutive 16-row groups of one part of one variant: what one thread takes at a time.
struct Task {
  int64_t variant;
  int64_t part;
  int64_t first_group;
  int64_t last_group;  // exclusive
};

// Cuts (variant, part) pairs into tasks of about equal cost. `cost(variant, part)` is the number of
// 16-lane multiply-adds of one group.
class TaskList {
 public:
  std::vector<Task> tasks;
  int64_t total = 0;

  void add(int64_t variant, int64_t part, int64_t groups, int64_t group_cost) {
    if (groups == 0 || group_cost == 0) return;
    wholes.push_back({{variant, part, 0, groups}, group_cost});
    total += groups * group_cost;
  }

  bool worth_forking() const { return total >= FORK_FROM; }

  void cut(int threads) {
    const int64_t target = worth_forking() ? std::max<int64_t>(FORK_FROM / 8, total / (threads * 6))
                                           : total + 1;
    for (const auto& [whole, cost] : wholes) {
      const int64_t groups = std::max<int64_t>(1, target / cost);
      for (int64_t g = 0; g < whole.last_group; g += groups)
        tasks.push_back({whole.variant, whole.part, g, std::min(g + groups, whole.last_group)});
    }
  }

 private:
  std::vector<std::pair<Task, int64_t>> wholes;
};

}  // namespace tsugiki
