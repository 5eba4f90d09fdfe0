// From logits to tokens: the likeliest, or one drawn by inverse transform among those that top_k,
// top_p and min_p leave.
//
// What the filters leave of a row is always "all tokens at least this likely". So nothing is sorted:
// the threshold is found by bisecting the bits of a float, which for positive floats are in the order
// of their values, until few enough tokens are left between the bounds to be compared with each other.

#include "logits.cuh"

constexpr int32_t CANDIDATES = LOGIT_THREADS;

// Shared memory of a block.
struct Scratch {
  uint64_t* of_warps;
  float* candidates;
  int32_t* count;
};

// The tokens that weigh at least so much.
struct Above {
  uint64_t sum;
  int64_t count;
};

// Weights of a row relative to the likeliest token.
template <class T>
struct Weights {
  LogitRow<T> row;
  float top, temperature;

  DEVICE float at(int32_t token) const { return expf((row.at(token) - top) / temperature); }

  DEVICE uint64_t kept(int32_t token, float threshold) const {
    const float weight = at(token);
    return weight >= threshold ? fixed_of(weight) : 0;
  }
};

template <class T>
DEVICE Above above(const Weights<T>& weights, uint32_t threshold, uint64_t* of_warps) {
  uint64_t sum = 0, count = 0;
#pragma unroll 1
  for (int32_t token = threadIdx.x; token < weights.row.width; token += LOGIT_THREADS) {
    const float weight = weights.at(token);
    if (__float_as_uint(weight) < threshold) continue;
    sum += fixed_of(weight);
    ++count;
  }
  return {block_sum(sum, of_warps), static_cast<int64_t>(block_sum(count, of_warps))};
}

// The bits of the largest candidate such that those at least as large, and those beyond `high`, are
// enough. Candidates weigh from `low` on and less than `high`, and all of them together are enough.
template <class T, class Enough>
DEVICE uint32_t largest_candidate(const Weights<T>& weights, uint32_t low, uint32_t high,
                                  Above at_high, const Enough& enough, const Scratch& scratch) {
  if (threadIdx.x == 0) *scratch.count = 0;
  __syncthreads();
#pragma unroll 1
  for (int32_t token = threadIdx.x; token < weights.row.width; token += LOGIT_THREADS) {
    const float weight = weights.at(token);
    const uint32_t bits = __float_as_uint(weight);
    if (bits >= low && bits < high) scratch.candidates[atomicAdd(scratch.count, 1)] = weight;
  }
  __syncthreads();
  const int32_t count = *scratch.count;
  uint32_t found = low;
  if (static_cast<int32_t>(threadIdx.x) < count) {
    const float mine = scratch.candidates[threadIdx.x];
#pragma unroll 1
    for (int32_t i = 0; i < count; ++i) {
      const float other = scratch.candidates[i];
      if (other < mine) continue;
      at_high.sum += fixed_of(other);
      ++at_high.count;
    }
    if (enough(at_high)) found = __float_as_uint(mine);
  }
  return static_cast<uint32_t>(block_max(found, scratch.of_warps));
}

// The bits of the largest weight such that those at least as large are `enough`: more are then, too.
template <class T, class Enough>
DEVICE uint32_t largest_threshold(const Weights<T>& weights, const Enough& enough,
                                  const Scratch& scratch) {
  uint32_t low = 0, high = __float_as_uint(1.0f) + 1;
  int64_t at_low = weights.row.width;
  Above at_high = {0, 0};
#pragma unroll 1
  while (high - low > 1 && at_low - at_high.count > CANDIDATES) {
    const uint32_t middle = low + (high - low) / 2;
    const Above at_middle = above(weights, middle, scratch.of_warps);
    if (enough(at_middle))
      low = middle, at_low = at_middle.count;
    else
      high = middle, at_high = at_middle;
  }
  if (high - low == 1) return low;
  return largest_candidate(weights, low, high, at_high, enough, scratch);
}

// Tokens that weigh less are left out.
template <class T>
DEVICE float cutoff(const Weights<T>& weights, int64_t top_k, float top_p, float min_p,
                    const Scratch& scratch) {
  const bool counted = top_k > 0 && top_k < weights.row.width;
  uint32_t threshold = 0;
  if (counted)
    threshold = largest_threshold(
        weights, [top_k](const Above& a) { return a.count >= top_k; }, scratch);
  if (top_p < 1.0f) {
    Above mass = above(weights, counted ? threshold + 1 : 0, scratch.of_warps);
    if (counted)  // of those that equal the last, as many as make k
      mass.sum += (top_k - mass.count) * fixed_of(__uint_as_float(threshold));
    const double wanted = static_cast<double>(top_p) * static_cast<double>(mass.sum);
    const uint32_t last = largest_threshold(
        weights, [wanted](const Above& a) { return static_cast<double>(a.sum) >= wanted; },
        scratch);
    threshold = threshold > last ? threshold : last;
  }
  return fmaxf(__uint_as_float(threshold), min_p);
}

// In the order of the vocabulary, the token at which the running sum of what is kept exceeds `point`
// of the whole. The lanes of the warp that finds it get it, all others -1.
template <class T>
DEVICE int32_t draw(const Weights<T>& weights, float threshold, double point, uint64_t* of_warps) {
  constexpr int32_t ROUND = LOGIT_WARPS * WARP;
  const int32_t width = weights.row.width, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const int32_t stretch = (width + ROUND - 1) / ROUND * WARP;  // tokens of a warp
  const int32_t begin = warp * stretch, end = min(begin + stretch, width);
  uint64_t mine = 0;
#pragma unroll 1
  for (int32_t token = begin + lane; token < end; token += WARP)
    mine += weights.kept(token, threshold);
  const uint64_t total = block_sum(mine, of_warps);
  uint64_t before = 0;
#pragma unroll 1
  for (int32_t other = 0; other < warp; ++other) before += of_warps[other];
  const uint64_t target = static_cast<uint64_t>(point * static_cast<double>(total));
  if (target < before || target - before >= of_warps[warp]) return -1;
#pragma unroll 1
  for (int32_t base = begin; base < end; base += WARP) {
    uint64_t running = base + lane < end ? weights.kept(base + lane, threshold) : 0;
#pragma unroll
    for (int32_t step = 1; step < WARP; step *= 2) {
      const uint64_t lower = __shfl_up_sync(FULL_WARP, running, step);
      if (lane >= step) running += lower;
    }
    const uint32_t beyond = __ballot_sync(FULL_WARP, before + running > target);
    if (beyond != 0) return base + __ffs(beyond) - 1;
    before += __shfl_sync(FULL_WARP, running, WARP - 1);
  }
  return -1;
}

// Grid: the rows to choose for.
template <class T>
DEVICE void sample(const T* logits, int64_t stride, int32_t width, const int64_t* rows,
                   const float* temperatures, const int64_t* top_k, const float* top_p,
                   const float* min_p, const double* points, int64_t* tokens) {
  SHARED_ARRAY(uint64_t, of_warps, LOGIT_WARPS);
  SHARED_ARRAY(float, candidates, CANDIDATES);
  SHARED_ARRAY(int32_t, count, 1);
  const int32_t i = blockIdx.x;
  const LogitRow<T> row{logits + rows[i] * stride, width};
  const uint64_t likeliest = largest_key(row, ~uint64_t{0}, of_warps);
  const float top = logit_of(likeliest), temperature = temperatures[i];
  if (!(fabsf(top) < INFINITY)) {
    if (threadIdx.x == 0) tokens[i] = -1;
    return;
  }
  if (temperature == 0.0f) {
    if (threadIdx.x == 0) tokens[i] = token_of(likeliest);
    return;
  }
  const Weights<T> weights{row, top, temperature};
  const float threshold =
      cutoff(weights, top_k[i], top_p[i], min_p[i], Scratch{of_warps, candidates, count});
  const int32_t token = draw(weights, threshold, points[i], of_warps);
  if (token >= 0 && threadIdx.x % WARP == 0) tokens[i] = token;
}

#define SAMPLE(NAME, T)                                                                       \
  extern "C" __global__ void __launch_bounds__(LOGIT_THREADS, 2) tsugiki_sample_##NAME(       \
      const T* __restrict__ logits, int64_t stride, int32_t width,                            \
      const int64_t* __restrict__ rows, const float* __restrict__ temperature,                \
      const int64_t* __restrict__ top_k, const float* __restrict__ top_p,                     \
      const float* __restrict__ min_p, const double* __restrict__ points,                     \
      int64_t* __restrict__ tokens) {                                                         \
    sample(logits, stride, width, rows, temperature, top_k, top_p, min_p, points, tokens);    \
  }

SAMPLE(f16, f16)
SAMPLE(bf16, bf16)
SAMPLE(f32, float)
