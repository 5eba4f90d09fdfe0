// Weights that are looked up (sketch): the linears of a base, and what variants add to its codebooks,
// by one kernel over a list of parts; and a part rebuilt into a dense weight.
//
// An item is 64 outputs of one part for up to 64 rows. A warp takes an output at a time: its codebooks
// go to shared memory as floats, sixteen entries in sixteen banks, so that lanes that look up different
// entries do not meet. A lane has eight neighbouring columns, whose codes are one word and whose x is
// one 16-byte load; the weights that it looked up meet up to four rows. Lanes are summed in one order,
// so a row's bits depend on the row and the part alone.

#include "bias.cuh"
#include "eight.cuh"
#include "work_list.cuh"

constexpr int32_t WARPS = 8;
constexpr int32_t THREADS = WARPS * WARP;
constexpr int32_t OUTPUTS_PER_ITEM = 64;
constexpr int32_t MOST_ENTRIES = 256;  // of all codebooks of an output
constexpr int32_t TOKENS = 4;
constexpr int32_t COLUMNS = 8;  // of a lane at a time, all in one stretch

// W[o, c] = entry code(o, c) of codebook (o, c / width), times step[o] * gain. Mirrored by
// cuda/records.py.
struct CodebookPart {
  const uint8_t* codes;   // column c of a row at bit c * bits
  const void* values;     // [outputs][groups][2^bits]: f16, or int8 with steps
  const uint16_t* step;   // f16 [outputs]; null: 1
  Bias bias;
  int32_t offset, outputs, inputs;
  int32_t groups, bits;
  int32_t is_base;  // the product is the output; else it is added to one
  float gain;
  int32_t unused;
};

// The codebooks of an output into the warp's shared memory.
DEVICE void load_entries(const CodebookPart& part, int32_t output, float* entries) {
  const int32_t count = part.groups << part.bits;
  const int64_t first = int64_t{output} * count;
  const float scale =
      part.step == nullptr ? part.gain : float_of_f16(part.step[output]) * part.gain;
  __syncwarp();  // all lanes are done with the output before
  for (int32_t e = threadIdx.x % WARP; e < count; e += WARP) {
    const float value = part.step == nullptr
                            ? float_of_f16(static_cast<const uint16_t*>(part.values)[first + e])
                            : static_cast<float>(static_cast<const int8_t*>(part.values)[first + e]);
    entries[e] = value * scale;
  }
  __syncwarp();
}

// Eight neighbouring codes from a multiple of eight on.
DEVICE uint32_t codes_at(const CodebookPart& part, int32_t output, int32_t column) {
  const int64_t code = int64_t{output} * part.inputs + column;
  const uint8_t* from = part.codes + code / 8 * part.bits;
  if (part.bits == 4) return *reinterpret_cast<const uint32_t*>(from);
  uint32_t word = from[0] | uint32_t{from[1]} << 8;
  return part.bits == 2 ? word : word | uint32_t{from[2]} << 16;
}

DEVICE void weights_at(const CodebookPart& part, int32_t output, int32_t column, int32_t width,
                       const float* entries, float (&weights)[COLUMNS]) {
  const float* own = entries + (column / width << part.bits);
  const uint32_t mask = (1u << part.bits) - 1u;
  uint32_t codes = codes_at(part, output, column);
#pragma unroll
  for (int32_t i = 0; i < COLUMNS; ++i) {
    weights[i] = own[codes & mask];
    codes >>= part.bits;
  }
}

template <class Out>
DEVICE void put_out(const CodebookPart& part, int32_t output, float sum, Out* out) {
  const float value = sum + bias_at(part.bias, output);
  Out* to = out + part.offset + output;
  *to = from_float<Out>(part.is_base ? value : to_float(*to) + value);
}

// Up to COUNT rows of x against one output.
template <class T, class Out, int32_t COUNT>
DEVICE void meet_rows(const CodebookPart& part, int32_t output, const float* entries, const T* x,
                      int64_t x_stride, Out* out, int64_t out_stride, int32_t rows) {
  const int32_t lane = threadIdx.x % WARP, width = part.inputs / part.groups;
  float sums[COUNT] = {};
  for (int32_t column = lane * COLUMNS; column < part.inputs; column += WARP * COLUMNS) {
    float weights[COLUMNS];
    weights_at(part, output, column, width, entries, weights);
#pragma unroll
    for (int32_t row = 0; row < COUNT; ++row) {
      if (row >= rows) continue;
      const Eight<T> eight = load_up_to(x + row * x_stride + column, part.inputs - column);
#pragma unroll
      for (int32_t i = 0; i < COLUMNS; ++i)
        sums[row] = fmaf(weights[i], value_at(eight, i), sums[row]);
    }
  }
#pragma unroll
  for (int32_t row = 0; row < COUNT; ++row) {
    const float sum = warp_sum(sums[row]);
    if (lane == row && row < rows) put_out(part, output, sum, out + row * out_stride);
  }
}

template <class T, class Out>
DEVICE void apply_item(const CodebookPart& part, const Item& item, const T* x, int64_t x_stride,
                       Out* out, int64_t out_stride, float* entries) {
  for (int32_t i = threadIdx.x / WARP; i < OUTPUTS_PER_ITEM; i += WARPS) {
    const int32_t output = item.tile * OUTPUTS_PER_ITEM + i;
    if (output >= part.outputs) return;
    load_entries(part, output, entries);
    for (int32_t row = 0; row < item.rows; row += TOKENS) {
      const T* own = x + (item.start + row) * x_stride;
      Out* to = out + (item.start + row) * out_stride;
      const int32_t rows = min(TOKENS, item.rows - row);
      if (rows == 1)
        meet_rows<T, Out, 1>(part, output, entries, own, x_stride, to, out_stride, rows);
      else
        meet_rows<T, Out, TOKENS>(part, output, entries, own, x_stride, to, out_stride, rows);
    }
  }
}

template <class T, class Out>
DEVICE void apply(const T* x, int64_t x_stride, Out* out, int64_t out_stride,
                  const Segment* segments, int32_t capacity) {
  SHARED_ARRAY(float, entries, WARPS * MOST_ENTRIES);
  float* own = entries + threadIdx.x / WARP * MOST_ENTRIES;
  const int64_t items = segments[capacity].first[0];
  for (int64_t index = blockIdx.x; index < items; index += gridDim.x) {
    const Segment* segment = find_segment(segments, capacity, 0, index);
    const CodebookPart part = *static_cast<const CodebookPart*>(segment->part);
    const int32_t tiles = (part.outputs + OUTPUTS_PER_ITEM - 1) / OUTPUTS_PER_ITEM;
    apply_item(part, item_of(segment, 0, index, tiles), x, x_stride, out, out_stride, own);
  }
}

// out = base + W in the rows of the part; a warp takes a row.
template <class T>
DEVICE void rebuild(const T* base, T* out, const CodebookPart& part, float* entries) {
  const int32_t lane = threadIdx.x % WARP, width = part.inputs / part.groups;
  const int32_t output = blockIdx.x * WARPS + threadIdx.x / WARP;
  if (output >= part.outputs) return;
  load_entries(part, output, entries);
  const int64_t row = int64_t{part.offset + output} * part.inputs;
  for (int32_t column = lane * COLUMNS; column < part.inputs; column += WARP * COLUMNS) {
    float weights[COLUMNS];
    weights_at(part, output, column, width, entries, weights);
    const Eight<T> before = load_up_to(base + row + column, COLUMNS);
#pragma unroll
    for (int32_t i = 0; i < COLUMNS; ++i) weights[i] += value_at(before, i);
    store_up_to(out + row + column, COLUMNS, weights);
  }
}

#define APPLY(NAME, T, Out)                                                                   \
  extern "C" __global__ void __launch_bounds__(THREADS, 1) tsugiki_codebook_apply_##NAME(     \
      const T* __restrict__ x, int64_t x_stride, Out* __restrict__ out, int64_t out_stride,   \
      const Segment* __restrict__ segments, int32_t capacity) {                               \
    apply<T, Out>(x, x_stride, out, out_stride, segments, capacity);                          \
  }

APPLY(f16, f16, f16)
APPLY(bf16, bf16, bf16)
APPLY(f32, float, float)
APPLY(f16_f32, f16, float)
APPLY(bf16_f32, bf16, float)

#define REBUILD(NAME, T)                                                                      \
  extern "C" __global__ void __launch_bounds__(THREADS, 1) tsugiki_codebook_rebuild_##NAME(   \
      const T* base, T* out, int64_t part) {                                                  \
    SHARED_ARRAY(float, entries, WARPS * MOST_ENTRIES);                                       \
    rebuild(base, out, *reinterpret_cast<const CodebookPart*>(part),                          \
            entries + threadIdx.x / WARP * MOST_ENTRIES);                                     \
  }

REBUILD(f16, f16)
REBUILD(bf16, bf16)
REBUILD(f32, float)
