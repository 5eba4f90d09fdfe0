// W = W_base + T + E: a warp takes a row, WINDOW columns at a time. The change is put together in
// shared memory, the train's part first, and meets the base in one rounding.

#include "tensor_train.cuh"

constexpr int32_t WARPS = 8;
constexpr int32_t THREADS = WARPS * WARP;
constexpr int32_t WINDOW = 512;
constexpr int32_t LANE_COLUMNS = 8;
constexpr int32_t AT_ONCE = 4;  // columns of a lane

// T[o, i] = sum over t < ranks of last[m, k0 + t dk] first[m0 + t dm, k]: what o says of it ...
template <class T>
struct TrainRow {
  const T* last;  // of its output of the last core
  int32_t first_output, output_step;

  DEVICE TrainRow(const TensorTrainPart& part, int32_t row) {
    const TrainStage& stage = part.last_stage;
    const StagePlace at(stage, row);
    last = static_cast<const T*>(part.last) + int64_t{at.output} * stage.inputs;
    first_output = at.outer * part.ranks * stage.inner + at.inner;
    output_step = stage.inner;
  }
};

// ... and what i says.
struct TrainColumn {
  int32_t input, first_rank, rank_step;

  DEVICE TrainColumn() {}
  DEVICE TrainColumn(const TensorTrainPart& part, int32_t column) {
    const TrainStage& stage = part.first_stage;
    input = column / stage.inner % stage.inputs;
    rank_step = stage.inner;
    first_rank = column / stage.inner / stage.inputs * part.ranks * stage.inner +
                 column % stage.inner;
  }
};

// T[row, columns] into the warp's shared memory.
template <class T>
DEVICE void write_train(const TensorTrainPart& part, const TrainRow<T>& row, int32_t column,
                        int32_t end, float* change) {
  const T* first = static_cast<const T*>(part.first) + int64_t{row.first_output} * part.first_stride;
  const int64_t step = int64_t{row.output_step} * part.first_stride;
  for (int32_t c = column + threadIdx.x % WARP; c < end; c += AT_ONCE * WARP) {
    TrainColumn at[AT_ONCE];
    float sums[AT_ONCE] = {};
#pragma unroll
    for (int32_t i = 0; i < AT_ONCE; ++i) at[i] = TrainColumn(part, min(c + i * WARP, end - 1));
#pragma unroll 1
    for (int32_t t = 0; t < part.ranks; ++t)
#pragma unroll
      for (int32_t i = 0; i < AT_ONCE; ++i)
        sums[i] = fmaf(to_float(row.last[at[i].first_rank + t * at[i].rank_step]),
                       to_float(first[t * step + at[i].input]), sums[i]);
#pragma unroll
    for (int32_t i = 0; i < AT_ONCE; ++i)
      if (c + i * WARP < end) change[c - column + i * WARP] = sums[i];
  }
}

// Adds the entries of a row from `entry` on whose columns lie below `end`; the first one that does not.
DEVICE int32_t add_entries(const TensorTrainPart& part, int32_t row, int32_t entry, int32_t column,
                           int32_t end, float* change) {
  const int32_t lane = threadIdx.x % WARP, last = part.row_start[row + 1];
  const float scale = entry_scale(part, row);
  while (true) {
    const int32_t own = entry + lane;
    const bool here = own < last && part.column[own] < end;
    if (here) {
      float& to = change[part.column[own] - column];
      to = fmaf(scale, entry_value(part, own), to);
    }
    const int32_t found = __popc(__ballot_sync(FULL_WARP, here));
    entry += found;
    if (found < WARP) return entry;
  }
}

template <class T>
DEVICE void rebuild(const T* base, T* out, const TensorTrainPart& part, float* change) {
  const int32_t lane = threadIdx.x % WARP, row = blockIdx.x * WARPS + threadIdx.x / WARP;
  if (row >= part.outputs) return;
  const TrainRow<T> train(part, row);
  const int64_t first = int64_t{part.offset + row} * part.inputs;
  int32_t entry = part.row_start[row];
  for (int32_t column = 0; column < part.inputs; column += WINDOW) {
    const int32_t end = min(part.inputs, column + WINDOW);
    write_train(part, train, column, end, change);
    __syncwarp();
    entry = add_entries(part, row, entry, column, end, change);
    __syncwarp();
    for (int32_t c = column + lane * LANE_COLUMNS; c < end; c += WARP * LANE_COLUMNS) {
      const int32_t count = min(LANE_COLUMNS, end - c);
      const Eight<T> before = load_up_to(base + first + c, count);
      float values[LANE_COLUMNS];
#pragma unroll
      for (int32_t i = 0; i < LANE_COLUMNS; ++i)
        values[i] = i < count ? value_at(before, i) + change[c - column + i] : 0.0f;
      store_up_to(out + first + c, count, values);
    }
    __syncwarp();
  }
}

#define REBUILD(NAME, T)                                                                         \
  extern "C" __global__ void __launch_bounds__(THREADS) tsugiki_tensor_train_rebuild_##NAME(     \
      const T* base, T* out, int64_t part) {                                                     \
    SHARED_ARRAY(float, changes, WARPS* WINDOW);                                                 \
    rebuild(base, out, *reinterpret_cast<const TensorTrainPart*>(part),                          \
            changes + threadIdx.x / WARP * WINDOW);                                              \
  }

REBUILD(f16, f16)
REBUILD(bf16, bf16)
REBUILD(f32, float)
