// out += x D^T + bias for many variants in tile form: what is the same with and without tensor cores.
//
// A block takes 256 outputs of an item, a warp 16 of them at a time. They share a window of x, which
// holds up to `Sums::TOKENS` tokens; more take turns. `Sums` are those of a warp's 16 outputs:
//   Sums::Place               what the window holds of one column
//   add_window<BITS>(...)     adds the kept columns that are in the window
//   add_to(...)               adds to the outputs
// Their order depends on the weight alone.
#pragma once

#include "column_window.cuh"
#include "sparse_tiles.cuh"
#include "work_list.cuh"

template <class Sums>
DEVICE void add_window_of(Sums& sums, const SparsePart& part, int32_t group,
                          const PaddedColumns& window, const typename Sums::Place* places) {
  switch (part.bits) {
    case 1: return sums.template add_window<1>(part, group, window, places);
    case 2: return sums.template add_window<2>(part, group, window, places);
    case 4: return sums.template add_window<4>(part, group, window, places);
    default: return sums.template add_window<8>(part, group, window, places);
  }
}

// Up to Sums::TOKENS tokens of an item.
template <class Sums, class T>
DEVICE void apply_tiles(const SparsePart& part, int32_t first_group, const StepRows<T>& rows,
                        int32_t window_columns, const Outputs& out, int64_t start) {
  DYN_SHARED(typename Sums::Place, places);
  const int32_t groups = ceil_div(part.outputs, GROUP), warp = warp_number();
  Sums sums[GROUPS_OF_WARP] = {};
#pragma unroll 1
  for (int32_t first = 0; first < part.inputs; first += window_columns) {
    const PaddedColumns window{first, window_columns};
    __syncthreads();
    stage_window(rows, window, places);
    __syncthreads();
#pragma unroll
    for (int32_t turn = 0; turn < GROUPS_OF_WARP; ++turn) {
      const int32_t group = first_group + turn * SPARSE_WARPS + warp;
      if (group < groups) add_window_of(sums[turn], part, group, window, places);
    }
  }
#pragma unroll
  for (int32_t turn = 0; turn < GROUPS_OF_WARP; ++turn) {
    const int32_t group = first_group + turn * SPARSE_WARPS + warp;
    if (group < groups) sums[turn].add_to(part, group, out, start, rows.count);
  }
}

template <class Sums, class T>
DEVICE void apply(const T* x, int64_t x_stride, const Outputs& out, const Segment* segments,
                  int32_t capacity, int32_t window_columns) {
  const int64_t items = segments[capacity].first[0];
  for (int64_t index = blockIdx.x; index < items; index += gridDim.x) {
    const Segment* segment = find_segment(segments, capacity, 0, index);
    const SparsePart& part = *static_cast<const SparsePart*>(segment->part);
    const Item item = item_of(segment, 0, index, ceil_div(part.outputs, GROUP * GROUPS_OF_ITEM));
#pragma unroll 1
    for (int32_t row = 0; row < item.rows; row += Sums::TOKENS) {
      const int64_t start = item.start + row;
      const StepRows<T> rows{x + start * x_stride, x_stride, min(Sums::TOKENS, item.rows - row),
                             part.inputs};
      apply_tiles<Sums>(part, item.tile * GROUPS_OF_ITEM, rows, window_columns, out, start);
    }
  }
}

// BLOCKS to a multiprocessor: of two, one stages while the other multiplies.
#define APPLY(NAME, T, SUMS, BLOCKS)                                                            \
  extern "C" __global__ void __launch_bounds__(SPARSE_THREADS, BLOCKS) NAME(                    \
      const T* __restrict__ x, int64_t x_stride, void* __restrict__ out, int64_t out_stride,    \
      int32_t float_out, const Segment* __restrict__ segments, int32_t capacity,                \
      int32_t window_columns) {                                                                 \
    apply<SUMS>(x, x_stride, Outputs{out, out_stride, float_out != 0}, segments, capacity,      \
                window_columns);                                                                \
  }
