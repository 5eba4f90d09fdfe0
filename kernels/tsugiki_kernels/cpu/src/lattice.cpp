// A linear on the E8P lattice (tsugiki_kernels/lattice.py): 16 bits of code for eight weights.
//
//     out[row, r] = scale_r * sum over c of w[r, c] (x U)[row, c] + bias_r
//
// A code's magnitudes are eight floats of a table of 8 KiB, its signs a mask of eight lanes. Sixteen
// weights cost two loads of magnitudes, a masked exclusive or, the addition of two shifts, and a
// multiply-add for each token. Rows of weights that more than `FEW` tokens meet are decoded once for
// up to `PANEL` of them.
//
// Lane l of a row sums its inputs c = l (mod 16) in order; the lanes are summed at the end, whatever
// the number of tokens. Factors that come next are added by the thread that wrote the outputs.
#include "codebook_units.h"
#include "low_rank_apply.h"
#include "rotation.h"

namespace tsugiki {

constexpr int64_t GROUP = 8;
constexpr int64_t FEW = 4;     // tokens that are met while rows are decoded
constexpr int64_t PANEL = 16;  // tokens whose sums are kept at once
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

// Which lanes of eight are negative, by the upper byte of a code: its lower seven bits and their
// parity.
struct SignTable {
  uint8_t lanes[256];
  constexpr SignTable() : lanes() {
    for (int bits = 0; bits < 256; ++bits) {
      int odd = 0;
      for (int i = 0; i < 7; ++i) odd ^= bits >> i & 1;
      lanes[bits] = uint8_t((bits & 0x7f) | odd << 7);
    }
  }
};

constexpr SignTable SIGNS;

// The rows of a call, rotated and padded with zeros.
struct Turned {
  std::vector<int64_t>& rows = reused<int64_t>();
  int64_t width;
  float* data;

  explicit Turned(const LatticeLinear& call) : width(padded(call.step.inputs)) {
    for (int64_t s = 0; s < call.span_count; ++s)
      for (int64_t row = call.spans[s].start; row < call.spans[s].stop; ++row) rows.push_back(row);
    data = scratch(TURNED, width * int64_t(rows.size()));
    const int64_t cost = int64_t(rows.size()) * width / LANES * (call.rotation.order + 32);
    parallel_for(int64_t(rows.size()), call.step.threads, cost >= fork_from(), [&](int64_t i) {
      float* to = data + i * width;
      std::memset(to, 0, width * sizeof(float));
      convert_row(call.step, rows[i], to);
      rotate_row(call.rotation, to, scratch(SPARE, call.rotation.block()));
    });
  }

  const float* of(int64_t i) const { return data + i * width; }
};

// The shifts of two codes, by their top bits.
struct ShiftTable {
  alignas(64) float lanes[4][LANES];
  constexpr ShiftTable() : lanes() {
    for (int bits = 0; bits < 4; ++bits)
      for (int i = 0; i < LANES; ++i) lanes[bits][i] = bits >> (i / GROUP) & 1 ? -SHIFT : SHIFT;
  }
};

constexpr ShiftTable SHIFTS;

// Sixteen weights: two codes of 16 bits.
inline Floats weights_of(const float* words, uint32_t first, uint32_t second) {
  const Half16 low = load8(words + (first & 0xff) * GROUP);
  const Half16 high = load8(words + (second & 0xff) * GROUP);
  const uint32_t signs = SIGNS.lanes[first >> 8] | uint32_t(SIGNS.lanes[second >> 8]) << 8;
  const Floats shift = load(SHIFTS.lanes[first >> 15 | (second >> 15) << 1]);
#if defined(TSUGIKI_AVX512)
  const __m512 all = join(low, high).v;
  return Floats{_mm512_mask_xor_ps(all, __mmask16(signs), all, _mm512_set1_ps(-0.0f))} + shift;
#else
  const Uint8x bit = {1, 2, 4, 8, 16, 32, 64, 128}, top = {~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u};
  const auto flip = [&](uint32_t eight) {
    const Uint8x set = (Uint8x{eight, eight, eight, eight, eight, eight, eight, eight} & bit) == bit;
    return (set & top) << 31;
  };
  const Half16 first_half = (Half16)((Uint8x)low ^ flip(signs & 0xff));
  const Half16 second_half = (Half16)((Uint8x)high ^ flip(signs >> 8));
  return join(first_half, second_half) + shift;
#endif
}

// One row of codes of 16 bits.
struct Wide {
  const float* words;
  const uint16_t* codes;
  Wide() = default;
  Wide(const Stage& stage, int64_t row, int64_t groups)
      : words(stage.words), codes((const uint16_t*)stage.codes + row * groups) {}

  Floats at(int64_t p) const { return weights_of(words, codes[2 * p], codes[2 * p + 1]); }
  // Where the row ends after one code: x is zero beyond.
  Floats half(int64_t p) const { return weights_of(words, codes[2 * p], codes[2 * p]); }
};

// One row of codes of 8 bits, points as they are.
struct Narrow {
  const float* words;
  const uint8_t* codes;
  Narrow() = default;
  Narrow(const Stage& stage, int64_t row, int64_t groups)
      : words(stage.words), codes((const uint8_t*)stage.codes + row * groups) {}

  Floats at(int64_t p) const {
    return join(load8(words + codes[2 * p] * GROUP), load8(words + codes[2 * p + 1] * GROUP));
  }
  Floats half(int64_t p) const {
    return join(load8(words + codes[2 * p] * GROUP), load8(words + codes[2 * p] * GROUP));
  }
};

// Weights that were decoded before.
struct Decoded {
  const float* weights;
  Floats at(int64_t p) const { return load(weights + p * LANES); }
  Floats half(int64_t p) const { return at(p); }
};

// sums[t * LANES + r] = the lanes of row r of weights . token t
template <class Row, int ROWS, int TOKENS>
inline void multiply(const Row* rows, int64_t groups, const float* x, int64_t stride, Floats* sums) {
  Floats total[ROWS][TOKENS];
  for (int r = 0; r < ROWS; ++r)
    for (int t = 0; t < TOKENS; ++t) total[r][t] = zeros();
  const auto meet = [&](int64_t p, auto weights_of_row) {
    Floats tokens[TOKENS];
    for (int t = 0; t < TOKENS; ++t) tokens[t] = load(x + t * stride + p * LANES);
    for (int r = 0; r < ROWS; ++r) {
      const Floats weights = weights_of_row(rows[r]);
      for (int t = 0; t < TOKENS; ++t) total[r][t] = fma(weights, tokens[t], total[r][t]);
    }
  };
  const int64_t pairs = groups / 2;
  for (int64_t p = 0; p < pairs; ++p) meet(p, [p](const Row& row) { return row.at(p); });
  if (groups % 2) meet(pairs, [pairs](const Row& row) { return row.half(pairs); });
  for (int r = 0; r < ROWS; ++r)
    for (int t = 0; t < TOKENS; ++t) sums[t * LANES + r] = total[r][t];
}

template <class Row, int ROWS>
inline void multiply(const Row* rows, int64_t groups, const float* x, int64_t stride,
                     int64_t tokens, Floats* sums) {
  for (; tokens >= FEW; tokens -= FEW, x += FEW * stride, sums += FEW * LANES)
    multiply<Row, ROWS, FEW>(rows, groups, x, stride, sums);
  switch (tokens) {
    case 1: return multiply<Row, ROWS, 1>(rows, groups, x, stride, sums);
    case 2: return multiply<Row, ROWS, 2>(rows, groups, x, stride, sums);
    case 3: return multiply<Row, ROWS, 3>(rows, groups, x, stride, sums);
  }
}

// ROWS rows of weights from `output` on, for some tokens. More than a few meet them decoded.
template <class Row, int ROWS>
inline void meet_rows(const LatticeLinear& call, const Stage& stage, int64_t output, const float* x,
                      int64_t width, int64_t tokens, Floats* sums) {
  const int64_t groups = call.groups();
  Row coded[ROWS];
  for (int r = 0; r < ROWS; ++r) coded[r] = Row(stage, output + r, groups);
  if (tokens <= FEW) return multiply<Row, ROWS>(coded, groups, x, width, tokens, sums);
  float* weights = scratch(TILE, ROWS * width);
  Decoded decoded[ROWS];
  for (int r = 0; r < ROWS; ++r) {
    decoded[r] = {weights + r * width};
    for (int64_t p = 0; p < groups / 2; ++p) store(weights + r * width + p * LANES, coded[r].at(p));
    if (groups % 2) store(weights + r * width + groups / 2 * LANES, coded[r].half(groups / 2));
  }
  multiply<Decoded, ROWS>(decoded, groups, x, width, tokens, sums);
}

template <class Row>
void meet_stage(const LatticeLinear& call, const Stage& stage, int64_t output, int64_t count,
                const float* x, int64_t width, int64_t tokens, Floats* sums) {
  int64_t r = 0;
  for (; r + 2 <= count; r += 2) meet_rows<Row, 2>(call, stage, output + r, x, width, tokens, sums + r);
  if (r < count) meet_rows<Row, 1>(call, stage, output + r, x, width, tokens, sums + r);
}

// Up to sixteen outputs, for all rows of the call.
void meet_outputs(const LatticeLinear& call, const Turned& turned, int64_t output, int64_t count) {
  const int64_t rows = int64_t(turned.rows.size()), width = turned.width;
  const Floats scale = load_up_to(BFLOAT16, call.scales, output, count);
  const Floats bias = call.bias == nullptr ? zeros() : load_up_to(FLOAT32, call.bias, output, count);
  Floats sums[PANEL * LANES], found[PANEL];
  if (count < LANES) std::fill(sums, sums + PANEL * LANES, zeros());  // of rows that there are not
  for (int64_t i = 0; i < rows; i += PANEL) {
    const int64_t tokens = std::min(PANEL, rows - i);
    for (int64_t s = 0; s < call.stage_count; ++s) {
      const Stage& stage = call.stages[s];
      const auto meet = stage.wide ? meet_stage<Wide> : meet_stage<Narrow>;
      meet(call, stage, output, count, turned.of(i), width, tokens, sums);
      for (int64_t t = 0; t < tokens; ++t) {
        const Floats all = sum_each((const Floats(&)[LANES])sums[t * LANES]);
        found[t] = s == 0 ? all : fma(all, splat(stage.factor), found[t]);
      }
    }
    for (int64_t t = 0; t < tokens; ++t) {
      const int64_t at = turned.rows[i + t] * call.step.out_stride + output;
      store_up_to(call.step.out_dtype, call.step.out, at, fma(found[t], scale, bias), count);
    }
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
    for (int64_t output = first; output < last; output += LANES)
      meet_outputs(call, turned, output, std::min<int64_t>(LANES, last - output));
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
