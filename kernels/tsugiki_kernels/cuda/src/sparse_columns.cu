// The kept columns of seeded masks, as docs/format.md 5.2 draws them: bit for bit the CPU's.
//
// A warp draws one group of columns of one tile: a word each (Philox-4x32-10: Salmon, Moraes, Dror,
// Shaw, SC'11), then the `kept` smallest words, the lower column where words are equal. The largest
// word kept is found bit by bit: how many words are below a bound is counted 32 times.

#include "sparse.cuh"

constexpr int32_t CACHED = 1024;  // words of a group in shared memory; the others are drawn anew

struct Words {
  uint32_t of[4];

  // Without an index that is only known at run time, which would send the words to local memory.
  DEVICE uint32_t at(uint32_t i) const {
    const uint32_t low = i & 1 ? of[1] : of[0], high = i & 1 ? of[3] : of[2];
    return i & 2 ? high : low;
  }
};

// Columns 4 block .. 4 block + 3 of a tile.
DEVICE Words draw_words(uint64_t seed, uint64_t identity, uint32_t tile, uint32_t block) {
  Words x = {{block, tile, static_cast<uint32_t>(identity), static_cast<uint32_t>(identity >> 32)}};
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
#pragma unroll
  for (int32_t round = 0; round < 10; ++round) {
    const uint32_t p = 0xD2511F53u * x.of[0], p_high = __umulhi(0xD2511F53u, x.of[0]);
    const uint32_t q = 0xCD9E8D57u * x.of[2], q_high = __umulhi(0xCD9E8D57u, x.of[2]);
    x = Words{{q_high ^ x.of[1] ^ key0, q, p_high ^ x.of[3] ^ key1, p}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return x;
}

struct Draw {
  uint64_t seed, identity;
  int32_t tile;
  int32_t first, size;  // columns of the group
  uint32_t* cache;      // the words of the first CACHED

  DEVICE uint32_t word(int32_t i) const {
    if (i < CACHED) return cache[i];
    const uint32_t column = first + i;
    const Words words = draw_words(seed, identity, tile, column / 4);
    return words.at(column % 4);
  }

  // All lanes of the warp must call.
  DEVICE void fill() const {
    const int32_t end = first + min(size, CACHED);
    for (int32_t block = first / 4 + threadIdx.x % WARP; block * 4 < end; block += WARP) {
      const Words words = draw_words(seed, identity, tile, block);
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) {
        const int32_t column = block * 4 + i;
        if (column >= first && column < end) cache[column - first] = words.of[i];
      }
    }
    __syncwarp();
  }

  // How many words are below the bound, the same in all lanes.
  DEVICE int32_t count_below(uint32_t bound) const {
    int32_t count = 0;
    for (int32_t i = threadIdx.x % WARP; i < size; i += WARP) count += word(i) < bound;
#pragma unroll
    for (int32_t step = WARP / 2; step > 0; step /= 2)
      count += __shfl_xor_sync(FULL_WARP, count, step);
    return count;
  }

  // The largest word with fewer than `kept` below it.
  DEVICE uint32_t largest_kept(int32_t kept) const {
    uint32_t bound = 0;
    for (uint32_t bit = 1u << 31; bit != 0; bit >>= 1)
      if (count_below(bound | bit) < kept) bound |= bit;
    return bound;
  }

  // Writes the columns in order: all below the last word, and of those equal to it the lowest.
  DEVICE void select(int32_t kept, uint16_t* out) const {
    const uint32_t last = largest_kept(kept), before = (1u << threadIdx.x % WARP) - 1u;
    int32_t room = kept - count_below(last);  // for words that are equal to the last
    for (int32_t base = 0; base < size; base += WARP) {
      const int32_t i = base + threadIdx.x % WARP;
      const bool present = i < size;
      const uint32_t mine = present ? word(i) : 0;
      const uint32_t equal = __ballot_sync(FULL_WARP, present && mine == last);
      const bool chosen = present && (mine < last || (mine == last && __popc(equal & before) < room));
      const uint32_t all = __ballot_sync(FULL_WARP, chosen);
      if (chosen) out[__popc(all & before)] = static_cast<uint16_t>(first + i);
      out += __popc(all);
      room -= __popc(equal);
    }
  }
};

// out: [tiles, kept columns of all groups]. The groups of `group_size` columns keep `kept` each, the
// rest of the columns `kept_of_rest`. Grid: (tiles, groups / 8, rounded up).
extern "C" __global__ void __launch_bounds__(SPARSE_THREADS) tsugiki_sparse_draw_columns(
    uint16_t* __restrict__ out, int64_t seed, int64_t identity, int32_t columns,
    int32_t group_size, int32_t kept, int32_t kept_of_rest) {
  SHARED_ARRAY(uint32_t, words, SPARSE_WARPS * CACHED);
  const int32_t groups = columns / group_size, rest = columns % group_size;
  const int32_t warp = warp_number(), group = blockIdx.y * SPARSE_WARPS + warp;
  const int32_t kept_in_tile = groups * kept + (rest > 0 ? kept_of_rest : 0);
  const bool whole = group < groups;
  if (!whole && (group > groups || rest == 0)) return;
  const Draw draw{static_cast<uint64_t>(seed), static_cast<uint64_t>(identity),
                  static_cast<int32_t>(blockIdx.x), group * group_size, whole ? group_size : rest,
                  words + warp * CACHED};
  draw.fill();
  draw.select(whole ? kept : kept_of_rest,
              out + int64_t{blockIdx.x} * kept_in_tile + int64_t{group} * kept);
}
