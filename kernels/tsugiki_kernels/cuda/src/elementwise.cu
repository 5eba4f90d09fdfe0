// What lies between the linears of a decoder layer: norms, rotations, gates, gathered rows. One
// launch for each. Float arithmetic; a row's bits depend on that row alone.

#include "eight.cuh"

constexpr int32_t THREADS = 256;
constexpr int32_t NORM_THREADS = 128;
constexpr int32_t NORM_WARPS = NORM_THREADS / WARP;

// Every thread gets the sum over the block, always added in the same order.
DEVICE float block_sum(float value, float* warps) {
  const float own = warp_sum(value);
  if (threadIdx.x % WARP == 0) warps[threadIdx.x / WARP] = own;
  __syncthreads();
  float sum = 0.0f;
#pragma unroll
  for (int32_t warp = 0; warp < NORM_WARPS; ++warp) sum += warps[warp];
  return sum;
}

// The values as they would be read back after a store as T.
template <class T>
DEVICE void round_to(float (&values)[8]) {
  const Eight<T> stored = pack_eight<T>(values);
#pragma unroll
  for (int32_t i = 0; i < 8; ++i) values[i] = value_at(stored, i);
}

// One head of one row. x += add first; W beside a 16-bit T is float or T itself.
template <class T, class W>
DEVICE void rms_norm(T* x, const T* add, T* out, const W* weight, int32_t dim, float eps) {
  SHARED_ARRAY(float, warps, NORM_WARPS);
  float squares = 0.0f;
  for (int32_t d = 8 * threadIdx.x; d < dim; d += 8 * NORM_THREADS) {
    const int32_t count = min(8, dim - d);
    const Eight<T> own = load_up_to(x + d, count);
    float values[8];
#pragma unroll
    for (int32_t i = 0; i < 8; ++i) values[i] = value_at(own, i);
    if (add != nullptr) {
      const Eight<T> more = load_up_to(add + d, count);
#pragma unroll
      for (int32_t i = 0; i < 8; ++i) values[i] += value_at(more, i);
      round_to<T>(values);
      store_up_to(x + d, count, values);
    }
#pragma unroll
    for (int32_t i = 0; i < 8; ++i) squares = fmaf(values[i], values[i], squares);
  }
  const float mean = block_sum(squares, warps) / static_cast<float>(dim);
  const float scale = 1.0f / sqrtf(mean + eps);
  for (int32_t d = 8 * threadIdx.x; d < dim; d += 8 * NORM_THREADS) {
    const int32_t count = min(8, dim - d);
    const Eight<T> own = load_up_to(x + d, count);
    const Eight<W> gain = load_up_to(weight + d, count);
    float values[8];
#pragma unroll
    for (int32_t i = 0; i < 8; ++i) values[i] = value_at(own, i) * scale;
    if constexpr (sizeof(W) == sizeof(T)) round_to<T>(values);
#pragma unroll
    for (int32_t i = 0; i < 8; ++i) values[i] *= value_at(gain, i);
    store_up_to(out + d, count, values);
  }
}

// x[i] cos[i] + x[i + half] sin[i] for both halves; the sine's first half is negated.
template <class T>
DEVICE void rotate(T* head, const T* cosine, const T* sine, int32_t half, int32_t d) {
  const int32_t count = min(8, half - d);
  const Eight<T> low = load_up_to(head + d, count), high = load_up_to(head + half + d, count);
  const Eight<T> cos_low = load_up_to(cosine + d, count), sin_low = load_up_to(sine + d, count);
  const Eight<T> cos_high = load_up_to(cosine + half + d, count);
  const Eight<T> sin_high = load_up_to(sine + half + d, count);
  float lower[8], upper[8];
#pragma unroll
  for (int32_t i = 0; i < 8; ++i) {
    const float a = value_at(low, i), b = value_at(high, i);
    lower[i] = fmaf(a, value_at(cos_low, i), b * value_at(sin_low, i));
    upper[i] = fmaf(b, value_at(cos_high, i), a * value_at(sin_high, i));
  }
  store_up_to(head + d, count, lower);
  store_up_to(head + half + d, count, upper);
}

constexpr int32_t SILU = 0, GELU = 1;  // then gelu_pytorch_tanh

DEVICE float activate(int32_t activation, float x) {
  if (activation == SILU) return x / (1.0f + expf(-x));
  if (activation == GELU) return 0.5f * x * (1.0f + erff(x * 0.70710678f));
  const float u = 1.5957691216f * fmaf(0.044715f, x * x * x, x);
  return x / (1.0f + expf(-u));  // 0.5 (1 + tanh(u / 2)) is the sigmoid of u
}

// One thread's eight columns of a row.
template <class T>
DEVICE void gate(const T* gates, const T* ups, T* out, int32_t count, int32_t activation) {
  const Eight<T> by = load_up_to(gates, count), what = load_up_to(ups, count);
  float values[8];
#pragma unroll
  for (int32_t i = 0; i < 8; ++i)
    values[i] = activate(activation, value_at(by, i)) * value_at(what, i);
  store_up_to(out, count, values);
}

template <class T>
DEVICE void gather(const T* from, T* to, int32_t count) {
  const Eight<T> own = load_up_to(from, count);
  float values[8];
#pragma unroll
  for (int32_t i = 0; i < 8; ++i) values[i] = value_at(own, i);
  store_up_to(to, count, values);
}

// Grid: (rows, heads).
#define NORM(NAME, T, W)                                                                       \
  extern "C" __global__ void __launch_bounds__(NORM_THREADS) tsugiki_rms_norm_##NAME(          \
      T* x, int64_t x_row, int64_t x_head, const T* add, int64_t add_row, T* out,              \
      int64_t out_row, int64_t out_head, const W* weight, const int64_t* index, int32_t dim,   \
      float eps) {                                                                             \
    const int64_t row = blockIdx.x, head = blockIdx.y;                                         \
    const T* more = add == nullptr ? nullptr : add + row * add_row + head * dim;               \
    const int64_t of_weight = index == nullptr ? 0 : index[row];                               \
    rms_norm(x + row * x_row + head * x_head, more, out + row * out_row + head * out_head,     \
             weight + of_weight * dim, dim, eps);                                              \
  }

// Threads of the block walk the heads of a row. Grid: rows.
#define ROTATE(NAME, T)                                                                        \
  extern "C" __global__ void __launch_bounds__(THREADS) tsugiki_rotate_##NAME(                 \
      T* x, int64_t row_stride, int64_t head_stride, const T* cos_sin, int32_t heads,          \
      int32_t dim) {                                                                           \
    const int64_t row = blockIdx.x, rows = gridDim.x;                                          \
    const int32_t half = dim / 2, pieces = (half + 7) / 8;                                     \
    for (int32_t i = threadIdx.x; i < heads * pieces; i += THREADS)                            \
      rotate(x + row * row_stride + i / pieces * head_stride, cos_sin + row * dim,             \
             cos_sin + (rows + row) * dim, half, i % pieces * 8);                              \
  }

// Grid: (rows, columns / (8 * THREADS)).
#define GATE(NAME, T)                                                                          \
  extern "C" __global__ void __launch_bounds__(THREADS) tsugiki_gate_##NAME(                   \
      const T* gate_up, int64_t stride, T* out, int64_t out_stride, int32_t width,             \
      int32_t activation) {                                                                    \
    const int64_t row = blockIdx.x;                                                            \
    const int32_t column = 8 * (blockIdx.y * THREADS + threadIdx.x);                           \
    const T* gates = gate_up + row * stride + column;                                          \
    if (column < width)                                                                        \
      gate(gates, gates + width, out + row * out_stride + column, min(8, width - column),      \
           activation);                                                                        \
  }

// Grid: (rows, columns / (8 * THREADS)).
#define GATHER(NAME, T)                                                                        \
  extern "C" __global__ void __launch_bounds__(THREADS) tsugiki_gather_##NAME(                 \
      const T* x, int64_t stride, const int64_t* index, T* out, int32_t width) {               \
    const int64_t row = blockIdx.x;                                                            \
    const int32_t column = 8 * (blockIdx.y * THREADS + threadIdx.x);                           \
    if (column < width)                                                                        \
      gather(x + index[row] * stride + column, out + row * width + column,                     \
             min(8, width - column));                                                          \
  }

#define ALL(NAME, T) \
  NORM(NAME, T, T)   \
  ROTATE(NAME, T)    \
  GATE(NAME, T)      \
  GATHER(NAME, T)

ALL(f16, f16)
ALL(bf16, bf16)
ALL(f32, float)
NORM(f16_f32, f16, float)
NORM(bf16_f32, bf16, float)
