// The second pass of paged attention: merges the splits of every row in their order, and divides.

#include "attention.cuh"

constexpr int32_t WARPS = 4;
constexpr int32_t THREADS = WARPS * WARP;

// The sequence of a row, or -1 beyond the last. All lanes of the warp must call.
DEVICE int32_t sequence_of(const Sequences& s, int32_t row) {
  int32_t ended = 0;
  for (int32_t base = 0; base < s.count; base += WARP) {
    const int32_t sequence = base + threadIdx.x % WARP;
    const bool over = sequence < s.count && s.query_start[sequence + 1] <= row;
    ended += __popc(__ballot_sync(FULL_WARP, over));
  }
  return ended < s.count ? ended : -1;
}

// Merges the states of a row and writes what it attended to. A warp takes a head, a lane eight
// dimensions; the warps of the block take turns.
template <class T>
DEVICE void finish(const Sequences& s, const States& states, T* out, int64_t row_stride,
                   int64_t head_stride) {
  const int32_t row = blockIdx.x, sequence = sequence_of(s, row);
  if (sequence < 0) return;
  const int32_t until = s.query_start[sequence + 1];
  const bool alone = until - s.query_start[sequence] == 1;
  const int32_t position = s.context[sequence] - (until - row);
  const int32_t first = s.first_seen(position) / SPLIT;
  const int32_t last = alone ? position / SPLIT : first;
  for (int32_t head = threadIdx.x / WARP; head < states.heads; head += WARPS)
    for (int32_t d = threadIdx.x % WARP * 8; d < states.dim; d += WARP * 8) {
      float sums[8] = {}, largest = -INFINITY, weight = 0.0f;
#pragma unroll 1
      for (int32_t split = first; split <= last; ++split) {
        const float* state =
            alone ? states.of_split(sequence, split, head) : states.of_row(row, head);
        const float* of_part = state + states.dim + d / PART * 2;
        const Merge merge = merge_of(largest, of_part[0]);
        const Eight<float> own = load_aligned(state + d);
        largest = merge.largest;
        weight = fmaf(of_part[1], merge.second, weight * merge.first);
#pragma unroll
        for (int32_t i = 0; i < 8; ++i)
          sums[i] = fmaf(value_at(own, i), merge.second, sums[i] * merge.first);
      }
      const float inverse = 1.0f / weight;
#pragma unroll
      for (int32_t i = 0; i < 8; ++i) sums[i] *= inverse;
      store_up_to(out + row * row_stride + head * head_stride + d, states.dim - d, sums);
    }
}

// Grid: rows.
#define FINISH(NAME, T)                                                                          \
  extern "C" __global__ void __launch_bounds__(THREADS, 1) tsugiki_attention_finish_##NAME(      \
      const float* scratch, const int32_t* __restrict__ query_start,                             \
      const int32_t* __restrict__ context, T* __restrict__ out, int64_t out_row,                 \
      int64_t out_head, int32_t rows, int32_t sequences, int32_t heads, int32_t kv_heads,        \
      int32_t dim, int32_t window) {                                                             \
    const Sequences s{query_start, context, sequences, heads / kv_heads, kv_heads, 1, window};   \
    const States states{const_cast<float*>(scratch), rows, sequences, heads, dim};               \
    finish(s, states, out, out_row, out_head);                                                   \
  }

FINISH(f16, f16)
FINISH(bf16, bf16)
FINISH(f32, float)
