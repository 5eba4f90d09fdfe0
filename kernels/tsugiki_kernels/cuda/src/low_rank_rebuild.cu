// W = W_base + scale B A: a warp takes 64 outputs by 32 columns at a time, a lane 8 by 8 of them.

#include "low_rank.cuh"

constexpr int32_t THREADS = LOW_RANK_WARPS * WARP;
constexpr int32_t BLOCK_COLUMNS = 128;

// sums[o][c] of the lane's outputs 8 g + o and columns 8 t + c.
using Square = float[8][8];

// Adds 16 ranks. `a`: the two fragments of A for these ranks and 32 columns, `b`: the four of B.
//
// On tensor cores B is the A operand as it lies. Of A, a lane must hold four ranks of one column: the
// column it takes for tile q is 8 (g / 2) + 2 q + g % 2, so that the sums it gets are 8 neighbours.
// The values lie with two lanes, ranks in pairs, each pair in two words.
template <class T>
DEVICE void add_ranks_on_tensor_cores(const T* a, const Eight<T> (&b)[OUTPUT_TILES], Square& sums) {
  const int32_t lane = threadIdx.x % WARP, group = lane / 4, place = lane % 4;
  const uint32_t half = group % 2 == 0 ? 0x5410 : 0x7632;
#pragma unroll
  for (int32_t step = 0; step < 2; ++step) {
    const T* of_step = a + step * WARP * 8;
    const int32_t owner = 8 * place + group / 2;
    const Eight<T> low = load_aligned(of_step + owner * 8);
    const Eight<T> high = load_aligned(of_step + (owner + 4) * 8);
#pragma unroll
    for (int32_t pair = 0; pair < 2; ++pair) {
      const uint32_t ranks[2] = {
          __byte_perm(low.words[2 * pair], low.words[2 * pair + 1], half),
          __byte_perm(high.words[2 * pair], high.words[2 * pair + 1], half)};
      const int32_t column = 4 * step + 2 * pair;
#pragma unroll
      for (int32_t tile = 0; tile < OUTPUT_TILES; ++tile) {
        float(&upper)[8] = sums[2 * tile], (&lower)[8] = sums[2 * tile + 1];
        float d[4] = {upper[column], upper[column + 1], lower[column], lower[column + 1]};
        mma_m16n8k16<T>(d, b[tile].words, ranks);
        upper[column] = d[0];
        upper[column + 1] = d[1];
        lower[column] = d[2];
        lower[column + 1] = d[3];
      }
    }
  }
}

// The ordinary units walk the ranks, whose values of B lie with the four lanes of a group.
template <class T>
DEVICE void add_ranks_in_turn(const T* a, const Eight<T> (&b)[OUTPUT_TILES], Square& sums) {
  const int32_t lane = threadIdx.x % WARP, place = lane % 4;
#pragma unroll 1
  for (int32_t quad = 0; quad < 4; ++quad) {
#pragma unroll
    for (int32_t i = 0; i < 4; ++i) {
      const int32_t rank = 4 * quad + i;
      float columns[8];
#pragma unroll
      for (int32_t c = 0; c < 8; ++c) {
        const int32_t owner = rank / 2 * 4 + place;
        columns[c] =
            to_float(a[(c / 4 * WARP + owner) * 8 + fragment_place(rank % 2, c % 4)]);
      }
#pragma unroll
      for (int32_t o = 0; o < 8; ++o) {
        const float own = value_at(b[o / 2], fragment_place(o % 2, i));
        const float value = __shfl_sync(FULL_WARP, own, lane / 4 * 4 + quad);
#pragma unroll
        for (int32_t c = 0; c < 8; ++c) sums[o][c] = fmaf(value, columns[c], sums[o][c]);
      }
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
      if constexpr (Product<T, 1>::ON_TENSOR_CORES)
        add_ranks_on_tensor_cores(a, b, sums);
      else
        add_ranks_in_turn(a, b, sums);
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
        values[c] = fmaf(part.scale, sums[o][c], value_at(before, c));
      store_up_to(out + at, count, values);
    }
  }
}

#define REBUILD(NAME, T)                                                                 \
  extern "C" __global__ void __launch_bounds__(THREADS) tsugiki_low_rank_rebuild_##NAME( \
      const T* base, T* out, int64_t part) {                                             \
    rebuild(base, out, *reinterpret_cast<const LowRankPart*>(part));                     \
  }

REBUILD(f16, f16)
REBUILD(bf16, bf16)
REBUILD(f32, float)
