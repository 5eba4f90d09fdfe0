// W = W_base + scale B A: a warp takes 64 outputs by 32 columns at a time, a lane 8 by 8 of them.

#include "low_rank.cuh"

constexpr int32_t THREADS = LOW_RANK_WARPS * WARP;
constexpr int32_t BLOCK_COLUMNS = 128;

// sums[c / 2][o / 2][2 (o % 2) + c % 2] of the lane's outputs 8 g + o and columns 8 t + c.
using Square = float[4][OUTPUT_TILES][4];

// Two ranks of one column of A, from the lane that has them, and two from the next lane but three.
template <class T>
DEVICE Four<T> ranks_of(const Eight<T>& first, const Eight<T>& second, int32_t pair, bool odd) {
  const uint32_t half = odd ? 0x7632 : 0x5410;
  return Four<T>{__byte_perm(first.words[2 * pair], first.words[2 * pair + 1], half),
                 __byte_perm(second.words[2 * pair], second.words[2 * pair + 1], half)};
}
template <>
DEVICE Four<float> ranks_of<float>(const Eight<float>& first, const Eight<float>& second,
                                   int32_t pair, bool odd) {
  const int32_t place = 4 * pair;
  return Four<float>{odd ? first.words[place + 1] : first.words[place],
                     odd ? first.words[place + 3] : first.words[place + 2],
                     odd ? second.words[place + 1] : second.words[place],
                     odd ? second.words[place + 3] : second.words[place + 2]};
}

// Adds 16 ranks. `a`: the two fragments of A for these ranks and 32 columns, `b`: the four of B.
//
// B is the a operand as it lies. Of A, a lane must hold four ranks of one column: the column it takes
// in turn q = 2 step + pair is 8 (g / 2) + 2 q + g % 2, so that the sums it gets are 8 neighbours.
template <class T>
DEVICE void add_ranks(const T* a, const Eight<T> (&b)[OUTPUT_TILES], Square& sums) {
  const int32_t group = threadIdx.x % WARP / 4, owner = threadIdx.x % 4 * 8 + group / 2;
#pragma unroll
  for (int32_t step = 0; step < 2; ++step) {
    const T* of_step = a + step * WARP * 8;
    const Eight<T> first = load_aligned(of_step + owner * 8);
    const Eight<T> second = load_aligned(of_step + (owner + 4) * 8);
#pragma unroll
    for (int32_t pair = 0; pair < 2; ++pair) {
      const Four<T> ranks = ranks_of(first, second, pair, group % 2 == 1);
#pragma unroll
      for (int32_t tile = 0; tile < OUTPUT_TILES; ++tile)
        multiply_tile(sums[2 * step + pair][tile], b[tile], ranks);
    }
  }
}

template <class T>
DEVICE void rebuild(const T* base, T* out, const LowRankPart& part) {
  const int32_t lane = threadIdx.x % WARP;
  const int32_t group = blockIdx.y * LOW_RANK_WARPS + threadIdx.x / WARP;
  if (group * OUTPUT_ROWS >= part.outputs) return;
  const int32_t panels = part.ranks / RANK_TILE;
  const int32_t column_groups = (part.inputs + COLUMNS_AT_ONCE - 1) / COLUMNS_AT_ONCE;
  const int32_t first_column = blockIdx.x * BLOCK_COLUMNS;
  const int32_t last_column = min(part.inputs, first_column + BLOCK_COLUMNS);
#pragma unroll 1
  for (int32_t from = first_column; from < last_column; from += COLUMNS_AT_ONCE) {
    Square sums = {};
#pragma unroll 1
    for (int32_t panel = 0; panel < panels; ++panel) {
      Eight<T> b[OUTPUT_TILES];
      load_fragments(part.b, (int64_t{group} * panels + panel) * OUTPUT_TILES, b);
      const int64_t place = int64_t{panel} * column_groups + from / COLUMNS_AT_ONCE;
      const T* a = static_cast<const T*>(part.a) + place * 2 * WARP * 8;
      add_ranks(a, b, sums);
    }
    const int32_t column = from + lane % 4 * 8, row = group * OUTPUT_ROWS + lane / 4 * 8;
    const int32_t count = min(8, part.inputs - column);
#pragma unroll
    for (int32_t o = 0; o < 8; ++o) {
      if (row + o >= part.outputs || count <= 0) continue;
      const int64_t at = int64_t{part.offset + row + o} * part.inputs + column;
      const Eight<T> before = load_up_to(base + at, count);
      float values[8];
#pragma unroll
      for (int32_t c = 0; c < 8; ++c)
        values[c] = fmaf(part.scale, sums[c / 2][o / 2][2 * (o % 2) + c % 2], value_at(before, c));
      store_up_to(out + at, count, values);
    }
  }
}

#define REBUILD(NAME, T)                                                                 \
  extern "C" __global__ void __launch_bounds__(THREADS, 1) tsugiki_low_rank_rebuild_##NAME( \
      const T* base, T* out, int64_t part) {                                             \
    rebuild(base, out, *reinterpret_cast<const LowRankPart*>(part));                     \
  }

REBUILD(f16, f16)
REBUILD(bf16, bf16)
REBUILD(f32, float)
