// Paged attention: where things stand in one call, and how its rows are shared among the warps.
//
// The cache is [2, blocks, kv_heads, block_size * dim] elements. Keys of a block lie position by
// position, [block_size, dim]; values lie dimension by dimension, [dim, block_size], so that both
// are what a lane multiplies with one 16-byte load. block_size and dim are multiples of 8.
#pragma once

#include "eight.cuh"

constexpr int32_t UNIT = 32;           // positions that are softmaxed together, counted from 0
constexpr int32_t SPLIT = 16 * UNIT;   // positions that are summed up on their own, counted from 0
constexpr int32_t TILE_ROWS = 16;      // (row, head) pairs of a warp
constexpr int32_t PART = 128;          // dimensions of the values that a warp adds up, at most
constexpr int32_t STATE_PADDING = 4;   // of a state in scratch memory: see States

struct Sequences {
  const int32_t* query_start;  // [count + 1]
  const int32_t* context;      // [count]
  int32_t count, group;        // group: query heads of a KV head
  int32_t kv_heads, parts;     // parts: of the values' dimensions, each for a warp of its own
  int32_t window;              // positions that a row sees, itself included; 0: all

  DEVICE int32_t group_tiles() const { return (group + TILE_ROWS - 1) / TILE_ROWS; }
  // Rows of a sequence that one warp takes, each with all the heads of a group.
  DEVICE int32_t rows_at_once() const { return group < TILE_ROWS ? TILE_ROWS / group : 1; }
  DEVICE int32_t first_seen(int32_t position) const {
    return window > 0 && position >= window ? position - window + 1 : 0;
  }
};

// What one warp does: one tile of rows and heads, over some splits of the context.
struct AttentionItem {
  int32_t sequence, first_row, rows;  // rows of the step
  int32_t kv_head, first_head, part;  // first_head: within the group
  int32_t first_split, splits;
  bool alone;  // a row by itself, whose splits are taken by several warps
};

// Tiles of rows that a sequence has, and the splits that are items of their own. A sequence of one row
// (decode) is split over its context; where there are more, a warp walks all splits in order.
DEVICE int2 items_of(const Sequences& s, int32_t sequence) {
  const int32_t rows = s.query_start[sequence + 1] - s.query_start[sequence];
  if (rows <= 0) return make_int2(0, 0);
  if (rows > 1) return make_int2((rows + s.rows_at_once() - 1) / s.rows_at_once(), 1);
  const int32_t position = s.context[sequence] - 1;
  return make_int2(1, position / SPLIT - s.first_seen(position) / SPLIT + 1);
}

// The item of this index; splits == 0 when there are fewer. All lanes of the warp must call.
DEVICE AttentionItem find_attention_item(const Sequences& s, int32_t index) {
  const int32_t lane = threadIdx.x % WARP, heads = s.kv_heads * s.group_tiles() * s.parts;
  int32_t left = index;
  for (int32_t base = 0; base < s.count; base += WARP) {
    const int2 own = base + lane < s.count ? items_of(s, base + lane) : make_int2(0, 0);
    const int32_t count = own.x * own.y * heads;
    int32_t until = count;  // items of this sequence and those before it
#pragma unroll
    for (int32_t step = 1; step < WARP; step *= 2) {
      const int32_t before = __shfl_up_sync(FULL_WARP, until, step);
      if (lane >= step) until += before;
    }
    const int32_t total = __shfl_sync(FULL_WARP, until, WARP - 1);
    if (left >= total) {
      left -= total;
      continue;
    }
    const int32_t owner = __popc(__ballot_sync(FULL_WARP, until <= left));
    left -= __shfl_sync(FULL_WARP, until - count, owner);
    const int32_t splits = __shfl_sync(FULL_WARP, own.y, owner);
    const int32_t sequence = base + owner, first = s.query_start[sequence];
    const int32_t head = left / splits % heads, tile = left / splits / heads;
    const int32_t rows = s.query_start[sequence + 1] - first;
    const int32_t row = tile * s.rows_at_once(), taken = min(s.rows_at_once(), rows - row);
    const int32_t newest = s.context[sequence] - rows + row + taken - 1;
    const int32_t oldest = s.first_seen(newest - taken + 1) / SPLIT;
    const bool alone = rows == 1;
    return AttentionItem{sequence,
                         first + row,
                         taken,
                         head / s.parts / s.group_tiles(),
                         head / s.parts % s.group_tiles() * TILE_ROWS,
                         head % s.parts,
                         alone ? oldest + left % splits : oldest,
                         alone ? 1 : newest / SPLIT - oldest + 1,
                         alone};
  }
  return AttentionItem{0, 0, 0, 0, 0, 0, 0, 0, false};
}

// Where the softmax of one row and head stands: sums of values weighted by 2^(score - largest).
// Rows of several splits have one state for each; they are merged in the order of the splits. A state
// is [dim] sums, then for each part of them its largest score and its weight.
struct States {
  float* scratch;
  int32_t rows, sequences, heads, dim;

  DEVICE float* at(int64_t slot) const { return scratch + slot * (dim + STATE_PADDING); }
  // Of a row in a sequence of several.
  DEVICE float* of_row(int32_t row, int32_t head) const { return at(int64_t{row} * heads + head); }
  // Of the row that is all there is of a sequence.
  DEVICE float* of_split(int32_t sequence, int32_t split, int32_t head) const {
    return at((rows + int64_t{split} * sequences + sequence) * heads + head);
  }
};

// How much two states count beside each other.
struct Merge {
  float largest, first, second;
};

DEVICE Merge merge_of(float first, float second) {
  const float largest = fmaxf(first, second);
  const float from = largest == -INFINITY ? 0.0f : largest;  // neither has seen anything
  return Merge{largest, exp2f(first - from), exp2f(second - from)};
}
