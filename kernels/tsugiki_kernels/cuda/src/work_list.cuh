// Which rows of a step meet which part of which variant, as one list in device memory.
//
// The grid is fixed and blocks walk the items of the list, so a captured graph serves every step:
// only the list changes. Mirrored by cuda/work_list.py, which writes it.
#pragma once

#include "prelude.cuh"

constexpr int32_t CHUNK_ROWS = 64;  // rows of a segment that one item takes

// One part of one variant and its rows. Entry `capacity` of a list holds the totals of `first` and
// nothing else; entries without rows hold what follows them.
struct Segment {
  const void* part;   // its record
  int64_t start;      // first row of the step
  int64_t rows;
  int64_t first[2];   // its first item in the first and in the second pass
  int64_t scratch;    // where its floats begin in the scratch memory
};

// The rows of one item. `tile`: which of the segment's tiles of outputs.
struct Item {
  const Segment* segment;
  int64_t start;  // first row in the step
  int32_t rows;   // 1 .. CHUNK_ROWS
  int32_t row;    // first row in the segment
  int32_t tile;
};

// The segment of an item. All lanes of the warp must call. A list of a table has room for more than
// it holds: the search ends where items begin beyond this one.
DEVICE const Segment* find_segment(const Segment* segments, int32_t capacity, int32_t pass,
                                   int64_t item) {
  const int32_t lane = threadIdx.x % WARP;
  int32_t begun = 0;  // segments whose first item is not beyond this one
  for (int32_t base = 0; base < capacity; base += WARP) {
    const bool counts = base + lane < capacity && segments[base + lane].first[pass] <= item;
    const uint32_t ballot = __ballot_sync(FULL_WARP, counts);
    begun += __popc(ballot);
    if (ballot != FULL_WARP) break;
  }
  return segments + begun - 1;
}

// Items of a segment: its tiles for the first chunk of rows, then for the next.
DEVICE Item item_of(const Segment* segment, int32_t pass, int64_t item, int32_t tiles) {
  const int32_t local = static_cast<int32_t>(item - segment->first[pass]);
  const int32_t row = local / tiles * CHUNK_ROWS;
  const int32_t left = static_cast<int32_t>(segment->rows) - row;
  return Item{segment, segment->start + row, left < CHUNK_ROWS ? left : CHUNK_ROWS, row,
              local % tiles};
}
