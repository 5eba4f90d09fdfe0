// What the index functions of column_window.cuh yield for each lane, for test_sparse_banks.py.

#include "column_window.cuh"

// Byte offsets [entry, lane] of the entries that lane l has in words[l]. Block: a warp.
extern "C" __global__ void probe_entries(const uint32_t* words, int32_t place_bytes, int32_t* out) {
  const int32_t lane = threadIdx.x;
  for (int32_t e = 0; e < 4; ++e)
    out[e * WARP + lane] = place_bytes == 4 ? entry_offset<4>(words[lane], e, lane * 4)
                                            : entry_offset<8>(words[lane], e, lane * 8);
}

// Places [unit, i, lane] that lane l writes at once. Block: a warp. block 0: padded columns.
extern "C" __global__ void probe_units(int32_t block, int32_t columns, int32_t* out) {
  const int32_t lane = threadIdx.x;
  const LaneBlocks blocks{0, block};
  const PaddedColumns padded{0, columns};
  const int32_t units = block > 0 ? blocks.units() : padded.units();
  for (int32_t unit = 0; unit < units; ++unit)
    for (int32_t i = 0; i < 8; ++i)
      out[(unit * 8 + i) * WARP + lane] = block > 0 ? blocks.unit_place(unit, lane, i)
                                                    : padded.unit_place(unit, lane, i);
}

// Byte offsets of columns of x in a window from column `first` on, in places of 16 bytes. Grid: a
// thread to a column.
extern "C" __global__ void probe_offsets(const int32_t* columns, int32_t first, int32_t count,
                                         int32_t* out) {
  const PaddedColumns window{first, count};
  out[threadIdx.x] = window.offset_of<16>(columns[threadIdx.x]);
}
