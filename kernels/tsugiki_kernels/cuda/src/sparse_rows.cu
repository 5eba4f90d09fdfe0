// Sparse deltas whose rows keep columns of their own: out += x D^T + bias for many variants.
//
// A warp takes four rows at a time. Lane l owns a block of columns of the window and a list of entries
// of each row: a place in the block (8 bits) and a code. What it gathers from shared memory is always
// in its own bank. The lanes' sums meet in a tree that halves the number of values at each level,
// so that four rows of four tokens take 16 shuffles. Its order, and that of
// entries and windows, depends on the weight alone. Up to four tokens (two of floats) share what was decoded.

#include "column_window.cuh"
#include "sparse.cuh"
#include "work_list.cuh"

constexpr int32_t QUADS_OF_WARP = 4;
constexpr int32_t QUADS_OF_ITEM = SPARSE_WARPS * QUADS_OF_WARP;
template <class T>
constexpr int32_t TOKENS_AT_ONCE = 8 / sizeof(T);
constexpr int32_t STEP = 4;  // entries of each of the four rows that are loaded at once

// The sixteen codes of a lane's step, four to a row.
template <int32_t BITS>
struct StepCodes {
  static constexpr int32_t WORDS = BITS == 1 ? 1 : BITS / 2;
  uint32_t words[WORDS];

  DEVICE void load(const void* codes, int64_t step) {
    if constexpr (BITS == 1) {
      words[0] = static_cast<const uint16_t*>(codes)[step];
    } else if constexpr (BITS == 2) {
      words[0] = static_cast<const uint32_t*>(codes)[step];
    } else if constexpr (BITS == 4) {
      const uint2 loaded = static_cast<const uint2*>(codes)[step];
      words[0] = loaded.x;
      words[1] = loaded.y;
    } else {
      const uint4 loaded = load_stream(static_cast<const uint4*>(codes) + step);
      words[0] = loaded.x;
      words[1] = loaded.y;
      words[2] = loaded.z;
      words[3] = loaded.w;
    }
  }

  // 2^BITS + code `index`: the code becomes the highest bits of the fraction.
  DEVICE float raised(int32_t index) const {
    constexpr uint32_t MASK = ((1u << BITS) - 1u) << (23 - BITS), POWER = (127u + BITS) << 23;
    const uint32_t word = words[index * BITS / 32];
    const int32_t up = 23 - BITS - index * BITS % 32;
    return __uint_as_float(masked_xor<MASK, POWER>(up > 0 ? word << up : word >> -up));
  }
};

// Sums of VALUES over the lanes of a warp. Lane l gets number l >> (5 - log2 VALUES). Lanes that are
// STEP apart share out their values between them, and add up the only one when there is one left.
template <int32_t VALUES, int32_t STEP = WARP / 2>
DEVICE float scattered_sum(float (&values)[VALUES]) {
  constexpr int32_t HALF = VALUES > 1 ? VALUES / 2 : 1;
  const bool upper = (threadIdx.x & STEP) != 0;
  float sums[HALF];
#pragma unroll
  for (int32_t i = 0; i < HALF; ++i) {
    const float low = values[i], high = values[i + VALUES - HALF];
    sums[i] = (upper ? high : low) + __shfl_xor_sync(FULL_WARP, upper ? low : high, STEP);
  }
  if constexpr (STEP == 1)
    return sums[0];
  else
    return scattered_sum<HALF, STEP / 2>(sums);
}

template <int32_t BITS>
struct RowStep {
  uint32_t places[QUAD];
  StepCodes<BITS> codes;

  DEVICE void load(const SparsePart& part, int64_t step) {
    const uint4 loaded = load_stream(part.places + step);
    places[0] = loaded.x;
    places[1] = loaded.y;
    places[2] = loaded.z;
    places[3] = loaded.w;
    codes.load(part.codes, step);
  }
};

// Four rows by one window. Returns what `scattered_sum` does of [row][token].
template <int32_t BITS, class Value, int32_t TOKENS>
DEVICE float sum_quad(const SparsePart& part, int32_t quad, int32_t window, const Value* staged) {
  const char* const base = reinterpret_cast<const char*>(staged);
  const uint32_t lane = threadIdx.x % WARP, lane_bytes = lane * sizeof(Value);
  const int32_t steps = part.entries / STEP;
  const float raise = static_cast<float>(1 << BITS) + part.zero;
  float sums[QUAD * TOKENS];
#pragma unroll
  for (int32_t i = 0; i < QUAD * TOKENS; ++i) sums[i] = 0.0f;
  int64_t at = (int64_t{quad} * part.windows + window) * steps * WARP + lane;
  RowStep<BITS> next;
  next.load(part, at);
#pragma unroll 1
  for (int32_t step = 0; step < steps; ++step) {
    const RowStep<BITS> now = next;
    at += WARP;
    if (step + 1 < steps) next.load(part, at);
#pragma unroll
    for (int32_t row = 0; row < QUAD; ++row)
#pragma unroll
      for (int32_t e = 0; e < STEP; ++e) {
        const uint32_t offset = entry_offset<sizeof(Value)>(now.places[row], e, lane_bytes);
        const Value x = load_words(reinterpret_cast<const Value*>(base + offset));
        const float value = now.codes.raised(row * STEP + e) - raise;
#pragma unroll
        for (int32_t token = 0; token < TOKENS; ++token)
          sums[row * TOKENS + token] = fmaf(value, x.value(token), sums[row * TOKENS + token]);
      }
  }
  return scattered_sum(sums);
}

template <class Value, int32_t TOKENS>
DEVICE float sum_quad_of(const SparsePart& part, int32_t quad, int32_t window,
                         const Value* staged) {
  switch (part.bits) {
    case 1: return sum_quad<1, Value, TOKENS>(part, quad, window, staged);
    case 2: return sum_quad<2, Value, TOKENS>(part, quad, window, staged);
    case 4: return sum_quad<4, Value, TOKENS>(part, quad, window, staged);
    default: return sum_quad<8, Value, TOKENS>(part, quad, window, staged);
  }
}

// Adds the value that this lane has of [row][token].
template <class T, int32_t TOKENS>
DEVICE void add_quad(float sum, const SparsePart& part, int32_t quad, const Outputs& out,
                     int64_t start, int32_t tokens) {
  constexpr int32_t SHARING = WARP / (QUAD * TOKENS);  // lanes that have the same value
  const int32_t lane = threadIdx.x % WARP, value = lane / SHARING;
  const int32_t row = quad * QUAD + value / TOKENS, token = value % TOKENS;
  if (lane % SHARING != 0 || row >= part.outputs || token >= tokens) return;
  const int64_t at = (start + token) * out.stride + part.offset + row;
  add_output<T>(out, at, fmaf(step_of(part, row), sum, bias_at(part.bias, row)));
}

// Up to TOKENS rows of x. `window_sums`: one float for each lane and turn.
template <class Stored, int32_t TOKENS, class T>
DEVICE void apply_rows(const SparsePart& part, int32_t first_quad, const StepRows<T>& rows,
                       const Outputs& out, int64_t start, float* window_sums) {
  using Value = Tokens<Stored, TOKENS>;
  DYN_SHARED(Value, staged);
  const int32_t quads = ceil_div(part.outputs, QUAD), warp = warp_number();
#pragma unroll 1
  for (int32_t window = 0; window < part.windows; ++window) {
    __syncthreads();
    stage_window(rows, LaneBlocks{window * part.block * WARP, part.block}, staged);
    __syncthreads();
#pragma unroll 1
    for (int32_t turn = 0; turn < QUADS_OF_WARP; ++turn) {
      const int32_t quad = first_quad + turn * SPARSE_WARPS + warp;
      if (quad >= quads) break;
      float* const before = window_sums + turn * SPARSE_THREADS + threadIdx.x;
      float sum = sum_quad_of<Value, TOKENS>(part, quad, window, staged);
      if (window > 0) sum += *before;
      if (window + 1 < part.windows)
        *before = sum;
      else
        add_quad<T, TOKENS>(sum, part, quad, out, start, rows.count);
    }
  }
}

template <class T>
DEVICE void apply(const T* x, int64_t x_stride, const Outputs& out, const Segment* segments,
                  int32_t capacity) {
  SHARED_ARRAY(float, window_sums, QUADS_OF_WARP * SPARSE_THREADS);
  const int64_t items = segments[capacity].first[1];
  for (int64_t index = blockIdx.x; index < items; index += gridDim.x) {
    const Segment* segment = find_segment(segments, capacity, 1, index);
    const SparsePart& part = *static_cast<const SparsePart*>(segment->part);
    const Item item = item_of(segment, 1, index, ceil_div(part.outputs, QUAD * QUADS_OF_ITEM));
    int32_t row = 0;
#pragma unroll 1
    for (; item.rows - row > 1; row += TOKENS_AT_ONCE<T>) {
      const int64_t start = item.start + row;
      const StepRows<T> rows{x + start * x_stride, x_stride,
                             min(TOKENS_AT_ONCE<T>, item.rows - row), part.inputs};
      apply_rows<T, TOKENS_AT_ONCE<T>>(part, item.tile * QUADS_OF_ITEM, rows, out, start,
                                       window_sums);
    }
    if (row < item.rows) {
      const int64_t start = item.start + row;
      const StepRows<T> rows{x + start * x_stride, x_stride, 1, part.inputs};
      apply_rows<float, 1>(part, item.tile * QUADS_OF_ITEM, rows, out, start, window_sums);
    }
  }
}

#define APPLY(NAME, T)                                                                        \
  extern "C" __global__ void __launch_bounds__(SPARSE_THREADS, 2) tsugiki_sparse_rows_##NAME( \
      const T* __restrict__ x, int64_t x_stride, void* __restrict__ out, int64_t out_stride,  \
      int32_t float_out, const Segment* __restrict__ segments, int32_t capacity) {            \
    apply(x, x_stride, Outputs{out, out_stride, float_out != 0}, segments, capacity);         \
  }

APPLY(f16, f16)
APPLY(bf16, bf16)
APPLY(f32, float)
