// A linear on the E8P lattice (tsugiki_kernels/lattice.py): 16 bits of code for eight weights.
//
//     out[row, r] = scale_r * sum over c of w[r, c] (x U)[row, c] + bias_r
//
// A code's magnitudes are eight floats of a table of 8 KiB, its signs a mask of eight lanes, and its
// shift of +-1/4 is one number for all eight: it meets the sum of the eight inputs, sixteen codes at a
// time. So sixteen weights cost two loads of magnitudes, a masked exclusive or and a multiply-add for
// each token. Rows of weights that more than `FEW` tokens meet are decoded once.
//
// Lane l of a row sums its inputs c = l (mod 16) in order; the lanes are summed at the end, whatever
// the number of tokens. Factors that come next are added by the thread that wrote the outputs.
#include "low_rank_apply.h"
#include "rotation.h"

namespace tsugiki {

constexpr int64_t GROUP = 8;
constexpr int64_t FEW = 4;            // tokens that are met while rows are decoded
constexpr int64_t ROWS_AT_ONCE = 2;   // of weights
constexpr float SHIFT = 0.25f;

// Codes of one stage. Mirrored by lattice.py.
struct Stage {
  const void* codes;   // [outputs, groups]: uint16, or uint8 without signs and shift
  const float* words;  // [256, 8]: magnitudes, the last one negative where their sum is odd
  float factor;        // the stage's values are multiplied with it
  int32_t wide;        // whether codes have 16 bits
};

// Mirrored by lattice.py.
struct LatticeLinear {
  Step step;
  const Span* spans;
  int64_t span_count;
  int64_t outputs;
  const uint16_t* scales;  // bfloat16 [outputs]
  const float* bias;       // null: none
  Rotation rotation;
  Stage stages[2];
  int64_t stage_count;
  const Apply* deltas;  // low-rank ones that are added next; or null

  int64_t groups() const { return step.inputs / GROUP; }
};

// Which lanes of eight are negative: seven bits of a code, and their parity.
struct SignTable {
  uint8_t lanes[128];
  constexpr SignTable() : lanes() {
    for (int bits = 0; bits < 128; ++bits) {
      int odd = 0;
      for (int i = 0; i < 7; ++i) odd ^= bits >> i & 1;
      lanes[bits] = uint8_t(bits | odd << 7);
    }
  }
};

constexpr SignTable SIGNS;

// The rows of a call: rotated, and after each the sums of its groups, both padded with zeros.
struct Turned {
  std::vector<int64_t>& rows = reused<int64_t>();
  int64_t width, stride;
  float* data;

  explicit Turned(const LatticeLinear& call) : width(padded(call.step.inputs)) {
    stride = width + padded(call.groups());
    for (int64_t s = 0; s < call.span_count; ++s)
      for (int64_t row = call.spans[s].start; row < call.spans[s].stop; ++row) rows.push_back(row);
    data = scratch(TURNED, stride * int64_t(rows.size()));
    const int64_t cost = int64_t(rows.size()) * stride * 4 / LANES * (call.rotation.order + 8) / 4;
    parallel_for(int64_t(rows.size()), call.step.threads, cost >= fork_from(),
                 [&](int64_t i) { turn(call, rows[i], data + i * stride); });
  }

  const float* of(int64_t i) const { return data + i * stride; }

 private:
  void turn(const LatticeLinear& call, int64_t row, float* to) const {
    std::memset(to, 0, stride * sizeof(float));
    convert_row(call.step, row, to);
    rotate_row(call.rotation, to, scratch(SPARE, call.rotation.block()));
    for (int64_t g = 0; g < call.groups(); ++g) {
      float sum = 0;
      for (int64_t i = 0; i < GROUP; ++i) sum += to[g * GROUP + i];
      to[width + g] = sum;
    }
  }
};

// Sixteen weights without shift: two codes of 16 bits.
inline Floats weights_of(const float* words, uint16_t first, uint16_t second) {
  const Half16 low = load8(words + (first & 0xff) * GROUP);
  const Half16 high = load8(words + (second & 0xff) * GROUP);
  const uint32_t signs =
      SIGNS.lanes[first >> 8 & 0x7f] | uint32_t(SIGNS.lanes[second >> 8 & 0x7f]) << 8;
#if defined(TSUGIKI_AVX512)
  const __m512 all = join(low, high).v;
  return {_mm512_mask_xor_ps(all, __mmask16(signs), all, _mm512_set1_ps(-0.0f))};
#else
  const Uint8x bit = {1, 2, 4, 8, 16, 32, 64, 128}, top = {~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u};
  const auto flip = [&](uint32_t eight) {
    const Uint8x set = (Uint8x{eight, eight, eight, eight, eight, eight, eight, eight} & bit) == bit;
    return (set & top) << 31;
  };
  return join((Half16)((Uint8x)low ^ flip(signs & 0xff)), (Half16)((Uint8x)high ^ flip(signs >> 8)));
#endif
}

// Sixteen values, negated where the top bit of their code is set.
inline Floats signed_by_top(const uint16_t* codes, const float* values) {
#if defined(TSUGIKI_AVX512)
  const __mmask16 set = _mm256_movepi16_mask(_mm256_loadu_si256((const __m256i*)codes));
  const __m512 all = _mm512_loadu_ps(values);
  return {_mm512_mask_xor_ps(all, set, all, _mm512_set1_ps(-0.0f))};
#else
  float found[LANES];
  for (int i = 0; i < LANES; ++i) found[i] = codes[i] >> 15 ? -values[i] : values[i];
  return load(found);
#endif
}

// One row of codes of a stage.
struct Codes {
  const Stage& stage;
  const uint16_t* wide;
  const uint8_t* narrow;
  int64_t groups;

  Codes(const Stage& stage, int64_t row, int64_t groups)
      : stage(stage),
        wide((const uint16_t*)stage.codes + row * groups),
        narrow((const uint8_t*)stage.codes + row * groups),
        groups(groups) {}

  // Inputs 16 p .. 16 p + 15; those beyond the row are whatever, for x is zero there.
  Floats at(int64_t p) const {
    const int64_t last = std::min(2 * p + 1, groups - 1);
    if (stage.wide) return weights_of(stage.words, wide[2 * p], wide[last]);
    return join(load8(stage.words + narrow[2 * p] * GROUP), load8(stage.words + narrow[last] * GROUP));
  }

  // The sum over groups of +-sums, the shift's sign in front of each.
  float shifted(const float* sums) const {
    if (!stage.wide) return 0;
    Floats total = zeros();
    int64_t g = 0;
    for (; g + LANES <= groups; g += LANES) total = total + signed_by_top(wide + g, sums + g);
    if (g < groups) {
      uint16_t rest[LANES] = {};
      std::memcpy(rest, wide + g, (groups - g) * sizeof(uint16_t));
      total = total + signed_by_top(rest, sums + g);
    }
    return sum(total) * SHIFT;
  }
};

// Weights that were decoded before.
struct Decoded {
  const float* weights;
  Floats at(int64_t p) const { return load(weights + p * LANES); }
};

// sums[r][t] = row r of weights . token t
template <class Row, int ROWS, int TOKENS>
inline void multiply(const Row* rows, int64_t pairs, const float* x, int64_t stride,
                     float (*sums)[FEW]) {
  Floats total[ROWS][TOKENS];
  for (int r = 0; r < ROWS; ++r)
    for (int t = 0; t < TOKENS; ++t) total[r][t] = zeros();
  for (int64_t p = 0; p < pairs; ++p) {
    Floats tokens[TOKENS];
    for (int t = 0; t < TOKENS; ++t) tokens[t] = load(x + t * stride + p * LANES);
    for (int r = 0; r < ROWS; ++r) {
      const Floats weights = rows[r].at(p);
      for (int t = 0; t < TOKENS; ++t) total[r][t] = fma(weights, tokens[t], total[r][t]);
    }
  }
  for (int r = 0; r < ROWS; ++r)
    for (int t = 0; t < TOKENS; ++t) sums[r][t] = sum(total[r][t]);
}

template <class Row>
inline void multiply(const Row* rows, int64_t count, int64_t pairs, const float* x, int64_t stride,
                     int64_t tokens, float (*sums)[FEW]) {
  const auto all = [&](auto rows_at_once) {
    constexpr int R = decltype(rows_at_once)::value;
    switch (tokens) {
      case 1: return multiply<Row, R, 1>(rows, pairs, x, stride, sums);
      case 2: return multiply<Row, R, 2>(rows, pairs, x, stride, sums);
      case 3: return multiply<Row, R, 3>(rows, pairs, x, stride, sums);
      default: return multiply<Row, R, 4>(rows, pairs, x, stride, sums);
    }
  };
  if (count == ROWS_AT_ONCE) return all(std::integral_constant<int, ROWS_AT_ONCE>());
  all(std::integral_constant<int, 1>());
}

inline void put(const LatticeLinear& call, int64_t row, int64_t output, float value) {
  const float scale = bf16_to_float(call.scales[output]);
  const float bias = call.bias == nullptr ? 0.0f : call.bias[output];
  const float found = value * scale + bias;
  const Step& step = call.step;
  const int64_t at = row * step.out_stride + output;
  if (step.out_dtype == FLOAT32)
    ((float*)step.out)[at] = found;
  else
    ((uint16_t*)step.out)[at] =
        step.out_dtype == BFLOAT16 ? float_to_bf16(found) : float_to_f16(found);
}

// A few outputs for all rows of the call.
void meet_outputs(const LatticeLinear& call, const Turned& turned, int64_t output, int64_t count) {
  const int64_t rows = int64_t(turned.rows.size()), groups = call.groups();
  const int64_t pairs = turned.width / LANES;
  const bool many = rows > FEW;
  for (int64_t i = 0; i < rows; i += FEW) {
    const int64_t tokens = std::min(FEW, rows - i);
    float found[ROWS_AT_ONCE][FEW] = {};
    for (int64_t s = 0; s < call.stage_count; ++s) {
      const Stage& stage = call.stages[s];
      const Codes coded[ROWS_AT_ONCE] = {{stage, output, groups}, {stage, output + count - 1, groups}};
      float sums[ROWS_AT_ONCE][FEW];
      if (many) {
        float* weights = scratch(TILE, call.stage_count * ROWS_AT_ONCE * turned.width);
        weights += s * ROWS_AT_ONCE * turned.width;
        Decoded decoded[ROWS_AT_ONCE];
        for (int64_t r = 0; r < count; ++r) {
          float* own = weights + r * turned.width;
          for (int64_t p = 0; i == 0 && p < pairs; ++p) store(own + p * LANES, coded[r].at(p));
          decoded[r] = {own};
        }
        multiply(decoded, count, pairs, turned.of(i), turned.stride, tokens, sums);
      } else {
        multiply(coded, count, pairs, turned.of(i), turned.stride, tokens, sums);
      }
      for (int64_t r = 0; r < count; ++r)
        for (int64_t t = 0; t < tokens; ++t) {
          const float shift = coded[r].shifted(turned.of(i + t) + turned.width);
          found[r][t] += (sums[r][t] + shift) * stage.factor;
        }
    }
    for (int64_t r = 0; r < count; ++r)
      for (int64_t t = 0; t < tokens; ++t) put(call, turned.rows[i + t], output + r, found[r][t]);
  }
}

void run(const LatticeLinear& call, const LowRankApply* factors) {
  const Turned turned(call);
  const int64_t lines = (call.outputs + OUTPUTS_IN_LINE - 1) / OUTPUTS_IN_LINE;
  const int64_t cost = call.outputs * turned.width / LANES * (int64_t(turned.rows.size()) + 3);
  const bool fork = cost >= fork_from();
  const int64_t slices = fork ? std::min<int64_t>(call.step.threads * SLICES_PER_THREAD, lines) : 1;
  parallel_for(slices, call.step.threads, fork, [&](int64_t i) {
    const int64_t first = lines * i / slices * OUTPUTS_IN_LINE;
    const int64_t last = std::min(lines * (i + 1) / slices * OUTPUTS_IN_LINE, call.outputs);
    for (int64_t output = first; output < last; output += ROWS_AT_ONCE)
      meet_outputs(call, turned, output, std::min(ROWS_AT_ONCE, last - output));
    if (factors != nullptr) factors->apply({first, last});
  });
}

}  // namespace tsugiki

using namespace tsugiki;

extern "C" void tsugiki_lattice_linear(const LatticeLinear* call) {
  if (call->deltas == nullptr) return run(*call, nullptr);
  const LowRankApply factors(*call->deltas);
  const bool together = factors.cuts_at_sixteens();
  run(*call, together ? &factors : nullptr);
  if (!together) apply_in_slices(factors, *call->deltas);
}
