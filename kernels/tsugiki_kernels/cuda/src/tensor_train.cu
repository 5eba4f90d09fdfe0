// Tensor trains with sparse entries beside them (saten), of many variants, in two launches: the first
// leads x to the state between two cores, the second meets the last core and the entries of each row.
//
// First pass: an item is some elements of the state of one part for up to 64 rows. An element is
// shared by so many lanes that each has eight inputs at a time; four rows meet what was loaded.
// Second pass: an item is 32 outputs, an output is shared by eight lanes, which take turns over the
// ranks of the train and over the entries of the row. Lanes are summed in one order, so a row's bits
// depend on the row and the part alone. The state is float, as on the CPU.

#include "tensor_train.cuh"
#include "work_list.cuh"

constexpr int32_t LEAD_THREADS = 128;
constexpr int32_t ADD_THREADS = 256;
constexpr int32_t OUTPUT_LANES = 8;
constexpr int32_t OUTPUTS_PER_ITEM = ADD_THREADS / OUTPUT_LANES;
constexpr int32_t TOKENS = 4;
constexpr int32_t COLUMNS = 8;  // of a lane at a time

// Every one of `lanes` neighbouring lanes gets their sum. All lanes of the warp must call.
DEVICE float sum_of_lanes(float value, int32_t lanes) {
  for (int32_t step = lanes / 2; step > 0; step >>= 1)
    value += __shfl_xor_sync(FULL_WARP, value, step);
  return value;
}

// `count` inputs that are `inner` apart, zeros after them.
template <class T>
DEVICE void read_inputs(const T* from, int32_t inner, int32_t count, float (&values)[COLUMNS]) {
  if (inner == 1) {
    const Eight<T> eight = load_up_to(from, count);
#pragma unroll
    for (int32_t i = 0; i < COLUMNS; ++i) values[i] = value_at(eight, i);
  } else {
#pragma unroll
    for (int32_t i = 0; i < COLUMNS; ++i)
      values[i] = i < count ? to_float(from[int64_t{i} * inner]) : 0.0f;
  }
}

// An element of the state for up to COUNT rows; lanes whose element is beyond the state only add up.
template <class T, int32_t COUNT>
DEVICE void lead_rows(const TensorTrainPart& part, int32_t element, const T* x, int64_t x_stride,
                      int32_t rows, float* state) {
  const TrainStage& stage = part.first_stage;
  const StagePlace at(stage, element);
  const int32_t lane = threadIdx.x % part.lanes;
  const T* core = static_cast<const T*>(part.first) + int64_t{at.output} * part.first_stride;
  const bool exists = element < part.state;
  float sums[COUNT] = {};
#pragma unroll 2
  for (int32_t k = lane * COLUMNS; exists && k < stage.inputs; k += part.lanes * COLUMNS) {
    const Eight<T> weights = load_aligned(core + k);
    const T* from = x + (at.outer * stage.inputs + k) * stage.inner + at.inner;
#pragma unroll
    for (int32_t row = 0; row < COUNT; ++row) {
      if (row >= rows) continue;
      float values[COLUMNS];
      read_inputs(from + row * x_stride, stage.inner, min(COLUMNS, stage.inputs - k), values);
#pragma unroll
      for (int32_t i = 0; i < COLUMNS; ++i)
        sums[row] = fmaf(value_at(weights, i), values[i], sums[row]);
    }
  }
#pragma unroll
  for (int32_t row = 0; row < COUNT; ++row) {
    const float sum = sum_of_lanes(sums[row], part.lanes);
    if (exists && lane == 0 && row < rows) state[int64_t{row} * part.state + element] = sum;
  }
}

template <class T>
DEVICE void lead(const T* x, int64_t x_stride, float* scratch, const Segment* segments,
                 int32_t capacity) {
  const int64_t items = segments[capacity].first[0];
  for (int64_t index = blockIdx.x; index < items; index += gridDim.x) {
    const Segment* segment = find_segment(segments, capacity, 0, index);
    const TensorTrainPart& part = *static_cast<const TensorTrainPart*>(segment->part);
    const int32_t tiles = (part.state + part.elements - 1) / part.elements;
    const Item item = item_of(segment, 0, index, tiles);
    const int32_t groups = LEAD_THREADS / part.lanes, own = threadIdx.x / part.lanes;
    for (int32_t i = 0; i < part.elements; i += groups) {
      const int32_t element = item.tile * part.elements + i + own;
      for (int32_t row = 0; row < item.rows; row += TOKENS) {
        const T* from = x + (item.start + row) * x_stride;
        float* state = scratch + segment->scratch + int64_t{item.row + row} * part.state;
        const int32_t rows = min(TOKENS, item.rows - row);
        if (rows == 1)
          lead_rows<T, 1>(part, element, from, x_stride, rows, state);
        else
          lead_rows<T, TOKENS>(part, element, from, x_stride, rows, state);
      }
    }
  }
}

// The lane's share of the last core's product.
template <class T, int32_t COUNT>
DEVICE void meet_last_core(const TensorTrainPart& part, int32_t output, int32_t lane,
                           const float* state, int32_t rows, float (&sums)[COUNT]) {
  const TrainStage& stage = part.last_stage;
  const StagePlace at(stage, output);
  const T* core = static_cast<const T*>(part.last) + int64_t{at.output} * stage.inputs;
  const float* from = state + at.outer * stage.inputs * stage.inner + at.inner;
#pragma unroll 2
  for (int32_t k = lane; k < stage.inputs; k += OUTPUT_LANES) {
    const float weight = to_float(core[k]);
#pragma unroll
    for (int32_t row = 0; row < COUNT; ++row)
      if (row < rows)
        sums[row] = fmaf(weight, from[int64_t{row} * part.state + k * stage.inner], sums[row]);
  }
}

// The lane's share of a row of entries.
template <class T, int32_t COUNT>
DEVICE void meet_entries(const TensorTrainPart& part, int32_t output, int32_t lane, const T* x,
                         int64_t x_stride, int32_t rows, float (&sums)[COUNT]) {
  const int32_t last = part.row_start[output + 1];
#pragma unroll 4
  for (int32_t entry = part.row_start[output] + lane; entry < last; entry += OUTPUT_LANES) {
    const float value = entry_value(part, entry);
    const T* from = x + part.column[entry];
#pragma unroll
    for (int32_t row = 0; row < COUNT; ++row)
      if (row < rows) sums[row] = fmaf(value, to_float(from[row * x_stride]), sums[row]);
  }
}

// The rows of one turn: where x, the state and the outputs of the first of them are.
template <class T, class Out>
struct AddedRows {
  const T* x;
  int64_t x_stride;
  const float* state;
  Out* out;
  int64_t out_stride;
  int32_t count;
};

template <class T, class Out, int32_t COUNT>
DEVICE void add_rows(const TensorTrainPart& part, int32_t output,
                     const AddedRows<T, Out>& rows) {
  const int32_t lane = threadIdx.x % OUTPUT_LANES;
  const bool exists = output < part.outputs;
  float train[COUNT] = {}, entries[COUNT] = {};
  if (exists) {
    if (part.state > 0)
      meet_last_core<T>(part, output, lane, rows.state, rows.count, train);
    meet_entries(part, output, lane, rows.x, rows.x_stride, rows.count, entries);
  }
  const float scale = exists ? entry_scale(part, output) : 0.0f;
#pragma unroll
  for (int32_t row = 0; row < COUNT; ++row) {
    const float sum = sum_of_lanes(fmaf(scale, entries[row], train[row]), OUTPUT_LANES);
    if (!exists || lane != row || row >= rows.count) continue;
    Out* to = rows.out + row * rows.out_stride + part.offset + output;
    *to = from_float<Out>(to_float(*to) + (sum + bias_at(part.bias, output)));
  }
}

template <class T, class Out>
DEVICE void add(const T* x, int64_t x_stride, const float* scratch, Out* out, int64_t out_stride,
                const Segment* segments, int32_t capacity) {
  const int64_t items = segments[capacity].first[1];
  for (int64_t index = blockIdx.x; index < items; index += gridDim.x) {
    const Segment* segment = find_segment(segments, capacity, 1, index);
    const TensorTrainPart& part = *static_cast<const TensorTrainPart*>(segment->part);
    const int32_t tiles = (part.outputs + OUTPUTS_PER_ITEM - 1) / OUTPUTS_PER_ITEM;
    const Item item = item_of(segment, 1, index, tiles);
    const int32_t output = item.tile * OUTPUTS_PER_ITEM + threadIdx.x / OUTPUT_LANES;
    for (int32_t row = 0; row < item.rows; row += TOKENS) {
      const AddedRows<T, Out> rows{
          x + (item.start + row) * x_stride,
          x_stride,
          scratch + segment->scratch + int64_t{item.row + row} * part.state,
          out + (item.start + row) * out_stride,
          out_stride,
          min(TOKENS, item.rows - row)};
      if (rows.count == 1)
        add_rows<T, Out, 1>(part, output, rows);
      else
        add_rows<T, Out, TOKENS>(part, output, rows);
    }
  }
}

#define LEAD(NAME, T)                                                                          \
  extern "C" __global__ void __launch_bounds__(LEAD_THREADS, 1) tsugiki_tensor_train_lead_##NAME( \
      const T* __restrict__ x, int64_t x_stride, float* __restrict__ scratch,                  \
      const Segment* __restrict__ segments, int32_t capacity) {                                \
    lead<T>(x, x_stride, scratch, segments, capacity);                                         \
  }

#define ADD(NAME, T, Out)                                                                      \
  extern "C" __global__ void __launch_bounds__(ADD_THREADS, 1) tsugiki_tensor_train_add_##NAME( \
      const T* __restrict__ x, int64_t x_stride, const float* __restrict__ scratch,            \
      Out* __restrict__ out, int64_t out_stride, const Segment* __restrict__ segments,         \
      int32_t capacity) {                                                                      \
    add<T, Out>(x, x_stride, scratch, out, out_stride, segments, capacity);                    \
  }

LEAD(f16, f16)
LEAD(bf16, bf16)
LEAD(f32, float)
ADD(f16, f16, f16)
ADD(bf16, bf16, bf16)
ADD(f32, float, float)
ADD(f16_f32, f16, float)
ADD(bf16_f32, bf16, float)
