// Paged causal attention with an online softmax (Milakov & Gimelshein 2018; FlashAttention's loop)
// on tensor cores. A warp works on its own: 16 pairs of a row and a head of one KV head.
//
// Keys are taken in units of 32 positions and summed up over splits of 512, both counted from
// position 0; a unit that a row does not see leaves its state untouched, and splits are merged in
// their order. So the arithmetic of a row depends on its position and its own context only: alone or
// in a chunk, split over many warps or walked by one. attention_finish.cu merges and divides.

#include "attention.cuh"
#include "tile_mma.cuh"

constexpr int32_t WARPS = 4;
constexpr int32_t THREADS = WARPS * WARP;
constexpr float LOG2_E = 1.44269504f;

template <class T>
struct Cache {
  const T* keys;
  int64_t side;  // elements from the keys to the values
  const int32_t* block_tables;
  int64_t table_stride;
  int32_t kv_heads, block_size, dim;

  // The block of a KV head that holds a position.
  DEVICE int64_t block(int32_t sequence, int32_t kv_head, int32_t position) const {
    const int64_t block = block_tables[sequence * table_stride + position / block_size];
    return (block * kv_heads + kv_head) * block_size * dim;
  }
};

template <class T>
struct Queries {
  const T* first;
  int64_t row_stride, head_stride;
  float scale;  // of scores whose exponentials are powers of 2
};

// One split of the context for the 16 pairs of a warp, in VALUES dimensions of one part; the lane's
// pairs are g and g + 8.
template <class T, int32_t VALUES>
struct Attended {
  float sums[VALUES / 8][4];  // dimensions 8 n + 2 t, + 1 of pair g, then of pair g + 8
  float largest[2], weight[2];  // weight: of the positions that this lane saw

  DEVICE void clear() {
#pragma unroll
    for (int32_t n = 0; n < VALUES / 8; ++n)
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) sums[n][i] = 0.0f;
#pragma unroll
    for (int32_t side = 0; side < 2; ++side) {
      largest[side] = -INFINITY;
      weight[side] = 0.0f;
    }
  }

  // scores: of the lane's positions 8 t + 2 j + i in the unit at [j][2 side + i], masked; they
  // become the weights.
  DEVICE void soften(float (&scores)[4][4]) {
#pragma unroll
    for (int32_t side = 0; side < 2; ++side) {
      float top = largest[side];
#pragma unroll
      for (int32_t j = 0; j < 4; ++j)
        top = fmaxf(top, fmaxf(scores[j][2 * side], scores[j][2 * side + 1]));
      top = fmaxf(top, __shfl_xor_sync(FULL_WARP, top, 1));
      top = fmaxf(top, __shfl_xor_sync(FULL_WARP, top, 2));
      const float from = top == -INFINITY ? 0.0f : top;  // nothing seen yet
      const float kept = exp2f(largest[side] - from);
      largest[side] = top;
      weight[side] *= kept;
#pragma unroll
      for (int32_t j = 0; j < 4; ++j)
#pragma unroll
        for (int32_t i = 2 * side; i < 2 * side + 2; ++i) {
          scores[j][i] = exp2f(scores[j][i] - from);
          weight[side] += scores[j][i];
        }
#pragma unroll
      for (int32_t n = 0; n < VALUES / 8; ++n) {
        sums[n][2 * side] *= kept;
        sums[n][2 * side + 1] *= kept;
      }
    }
  }

  // The weight over all positions of the split.
  DEVICE float whole_weight(int32_t side) const {
    float sum = weight[side];
    sum += __shfl_xor_sync(FULL_WARP, sum, 1);
    sum += __shfl_xor_sync(FULL_WARP, sum, 2);
    return sum;
  }
};

// One of the 16 pairs: a row of the step and a query head.
struct Pair {
  int32_t row, head, position;  // row < 0: there is no such pair
};

DEVICE Pair pair_of(const Sequences& s, const AttentionItem& item, int32_t place) {
  const int32_t heads = min(TILE_ROWS, s.group - item.first_head);  // of a row in this tile
  const int32_t row = place / heads;
  if (row >= item.rows) return Pair{-1, 0, -1};
  const int32_t position = s.context[item.sequence] -
                           (s.query_start[item.sequence + 1] - (item.first_row + row));
  return Pair{item.first_row + row, item.kv_head * s.group + item.first_head + place % heads,
              position};
}

template <class T>
DEVICE Eight<T> load_query(const Queries<T>& q, const Pair& pair, int32_t d, int32_t dim) {
  if (pair.row < 0 || d >= dim) return zero_eight<T>();
  return load_aligned(q.first + pair.row * q.row_stride + pair.head * q.head_stride + d);
}

// scores[j] of the unit's positions. Column g of tile j is position 8 (g / 2) + 2 j + g % 2, so that
// a lane's four columns become eight neighbours.
template <class T>
DEVICE void score_unit(const Cache<T>& cache, const Queries<T>& q, const AttentionItem& item,
                       const Pair (&pairs)[2], int32_t unit, int32_t context,
                       float (&scores)[4][4]) {
  const int32_t lane = threadIdx.x % WARP, group = lane / 4, d_of_lane = lane % 4 * 8;
  const int32_t start = unit + group / 2 * 8, first = start + group % 2;
  const T* keys = nullptr;
  if (start < context)
    keys = cache.keys + cache.block(item.sequence, item.kv_head, start) +
           int64_t{first % cache.block_size} * cache.dim;
#pragma unroll
  for (int32_t j = 0; j < 4; ++j)
#pragma unroll
    for (int32_t i = 0; i < 4; ++i) scores[j][i] = 0.0f;
#pragma unroll 1  // 64 bytes of each lane on their way are enough
  for (int32_t at = 0; at < cache.dim; at += 32) {
    const int32_t d = at + d_of_lane;
    const Eight<T> upper = load_query(q, pairs[0], d, cache.dim);
    const Eight<T> lower = load_query(q, pairs[1], d, cache.dim);
#pragma unroll
    for (int32_t j = 0; j < 4; ++j) {
      Eight<T> key = zero_eight<T>();
      if (first + 2 * j < context && d < cache.dim)
        key = load_aligned(keys + int64_t{2 * j} * cache.dim + d);
#pragma unroll
      for (int32_t half = 0; half < 2; ++half)
        multiply_tile<T>(scores[j], tile_of(half_of(upper, half), half_of(lower, half)),
                         half_of(key, half));
    }
  }
}

DEVICE void mask_unit(const Sequences& s, const Pair (&pairs)[2], int32_t unit, float scale,
                      float (&scores)[4][4]) {
#pragma unroll
  for (int32_t j = 0; j < 4; ++j)
#pragma unroll
    for (int32_t i = 0; i < 4; ++i) {
      const int32_t seen_from = pairs[i / 2].position;
      const int32_t position = unit + threadIdx.x % 4 * 8 + 2 * j + i % 2;
      const bool seen = position <= seen_from && position >= s.first_seen(seen_from);
      scores[j][i] = seen ? scores[j][i] * scale : -INFINITY;
    }
}

// Clears what nobody wrote yet: all but the first `count` of eight values.
template <class T>
struct Written {
  uint32_t keep[Eight<T>::WORDS];

  DEVICE explicit Written(int32_t count) {
    constexpr int32_t VALUES = 8 / Eight<T>::WORDS;  // of a word
#pragma unroll
    for (int32_t i = 0; i < Eight<T>::WORDS; ++i) {
      const int32_t inside = count - i * VALUES;
      keep[i] = inside >= VALUES ? 0xffffffffu : inside > 0 ? 0xffffu : 0u;
    }
  }

  DEVICE void clear(Eight<T>& eight) const {
#pragma unroll
    for (int32_t i = 0; i < Eight<T>::WORDS; ++i) eight.words[i] &= keep[i];
  }
};

// Adds the unit's values, weighted.
template <class T, int32_t VALUES>
DEVICE void add_values(const Cache<T>& cache, const AttentionItem& item, int32_t unit,
                       int32_t context, const float (&weights)[4][4], Attended<T, VALUES>& attended) {
  const int32_t lane = threadIdx.x % WARP, start = unit + lane % 4 * 8;
  Eight<T> tiles[2];
#pragma unroll
  for (int32_t half = 0; half < 2; ++half) {
    float values[8];
#pragma unroll
    for (int32_t i = 0; i < 8; ++i) values[i] = weights[2 * half + i / 4][i % 4];
    tiles[half] = pack_eight<T>(values);
  }
  const T* values = nullptr;
  if (start < context)
    values = cache.keys + cache.side + cache.block(item.sequence, item.kv_head, start) +
             start % cache.block_size;
  const Written<T> written(context - start);
#pragma unroll
  for (int32_t n = 0; n < VALUES / 8; ++n) {
    const int32_t d = item.part * VALUES + 8 * n + lane / 4;
    Eight<T> value = zero_eight<T>();
    if (start < context && d < cache.dim)
      value = load_aligned(values + int64_t{d} * cache.block_size);
    written.clear(value);
#pragma unroll
    for (int32_t half = 0; half < 2; ++half)
      multiply_tile<T>(attended.sums[n], tiles[half], half_of(value, half));
  }
}

// Writes the state of a pair, or merges it with what is there. All lanes of the warp must call; a
// null state is nowhere.
template <class T, int32_t VALUES>
DEVICE void store_state(const Attended<T, VALUES>& attended, int32_t side, float* state,
                        int32_t dim, int32_t part, bool merges) {
  float* own = state == nullptr ? nullptr : state + dim + 2 * part;  // largest, weight
  const bool reads = merges && state != nullptr;
  const float weight = attended.whole_weight(side);
  const float before = reads ? own[0] : -INFINITY;
  const float weight_before = reads ? own[1] : 0.0f;
  const Merge merge = merge_of(before, attended.largest[side]);
#pragma unroll
  for (int32_t n = 0; n < VALUES / 8; ++n) {
    const int32_t d = part * VALUES + 8 * n + threadIdx.x % 4 * 2;
    if (state == nullptr || d >= dim) continue;
    float2* to = reinterpret_cast<float2*>(state + d);
    const float2 sums = reads ? *to : make_float2(0.0f, 0.0f);
    *to = make_float2(fmaf(attended.sums[n][2 * side], merge.second, sums.x * merge.first),
                      fmaf(attended.sums[n][2 * side + 1], merge.second, sums.y * merge.first));
  }
  __syncwarp();  // all lanes have read what one of them writes now
  if (state != nullptr && threadIdx.x % 4 == 0) {
    own[0] = merge.largest;
    own[1] = fmaf(weight, merge.second, weight_before * merge.first);
  }
  __syncwarp();
}

template <class T, int32_t VALUES>
DEVICE void attend_item(const Sequences& s, const Cache<T>& cache, const Queries<T>& q,
                        const States& states, const AttentionItem& item) {
  const int32_t place = threadIdx.x % WARP / 4;
  const Pair pairs[2] = {pair_of(s, item, place), pair_of(s, item, place + 8)};
  const int32_t last_row = item.first_row + item.rows - 1;
  const int32_t context =
      s.context[item.sequence] - (s.query_start[item.sequence + 1] - last_row) + 1;
  const int32_t oldest =
      s.first_seen(context - item.rows) / UNIT * UNIT;  // of the tile's first row
#pragma unroll 1
  for (int32_t split = item.first_split; split < item.first_split + item.splits; ++split) {
    Attended<T, VALUES> attended;
    attended.clear();
    const int32_t end = min(context, (split + 1) * SPLIT);
#pragma unroll 1
    for (int32_t unit = max(oldest, split * SPLIT); unit < end; unit += UNIT) {
      float scores[4][4];
      score_unit(cache, q, item, pairs, unit, context, scores);
      mask_unit(s, pairs, unit, q.scale, scores);
      attended.soften(scores);
      add_values<T, VALUES>(cache, item, unit, context, scores, attended);
    }
#pragma unroll
    for (int32_t side = 0; side < 2; ++side) {
      float* state = nullptr;
      if (pairs[side].row >= 0)
        state = item.alone ? states.of_split(item.sequence, split, pairs[side].head)
                           : states.of_row(pairs[side].row, pairs[side].head);
      store_state(attended, side, state, cache.dim, item.part,
                  split > item.first_split && !item.alone);
    }
  }
}

template <class T, int32_t VALUES>
DEVICE void attend(const Sequences& s, const Cache<T>& cache, const Queries<T>& q,
                   const States& states) {
  const int32_t stride = gridDim.x * WARPS;
  for (int32_t index = blockIdx.x * WARPS + threadIdx.x / WARP;; index += stride) {
    const AttentionItem item = find_attention_item(s, index);
    if (item.splits == 0) return;
    attend_item<T, VALUES>(s, cache, q, states, item);
  }
}

#define ATTEND(NAME, T, VALUES)                                                                     \
  extern "C" __global__ void __launch_bounds__(THREADS, 1) tsugiki_attention_##NAME##_##VALUES(     \
      const T* __restrict__ q, int64_t q_row, int64_t q_head, const T* __restrict__ cache,       \
      int64_t side, const int32_t* __restrict__ query_start, const int32_t* __restrict__ context, \
      const int32_t* __restrict__ tables, int64_t table_stride, float* scratch, int32_t rows,    \
      int32_t sequences, int32_t heads, int32_t kv_heads, int32_t dim, int32_t block_size,       \
      int32_t window, float scale) {                                                             \
    const int32_t parts = (dim + VALUES - 1) / VALUES;                                           \
    const Sequences s{query_start, context,  sequences, heads / kv_heads,                        \
                      kv_heads,    parts,    window};                                            \
    const Cache<T> all{cache, side, tables, table_stride, kv_heads, block_size, dim};            \
    attend<T, VALUES>(s, all, Queries<T>{q, q_row, q_head, scale * LOG2_E},                         \
                   States{scratch, rows, sequences, heads, dim});                                \
  }

#define ALL(NAME, T)  \
  ATTEND(NAME, T, 64) \
  ATTEND(NAME, T, 128)

ALL(f16, f16)
ALL(bf16, bf16)
ALL(f32, float)
