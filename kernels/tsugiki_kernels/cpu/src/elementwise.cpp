// What lies between the linears of a decoder layer: norms, rotations, gates. Float32 arithmetic, a
// row's bits depend on that row alone.

#include <cmath>

#include "exponential.h"
#include "step.h"

namespace tsugiki {

// Work of this many vectors and more is shared among the threads.
constexpr int64_t SHARE_FROM = 4096;
constexpr int64_t ROWS_PER_TASK = 8;

template <class Body>
inline void for_each_row(int64_t rows, int64_t vectors_per_row, int threads, const Body& body) {
  const int64_t tasks = (rows + ROWS_PER_TASK - 1) / ROWS_PER_TASK;
  parallel_for(tasks, threads, rows * vectors_per_row >= SHARE_FROM, [&](int64_t task) {
    const int64_t last = std::min(rows, (task + 1) * ROWS_PER_TASK);
    for (int64_t row = task * ROWS_PER_TASK; row < last; ++row) body(row);
  });
}

struct Norm {
  void* x;  // [rows, heads, dim], unit stride in dim
  int64_t x_row_stride, x_head_stride;
  const void* add;  // [rows, heads * dim], is added to x first, and x keeps the sum; null: nothing
  int64_t add_row_stride;
  void* out;  // like x; may be x
  int64_t out_row_stride, out_head_stride;
  const void* weight;         // [any, dim]
  const int64_t* weight_row;  // [rows]; null: all rows take the first
  int64_t rows, heads, dim;
  float eps;
  int32_t dtype, weight_dtype, threads;
};

// x += add; returns the sum of squares.
inline float add_and_square(const Norm& n, int64_t x, int64_t add) {
  const Dtype dtype = Dtype(n.dtype);
  Floats squares = zeros();
  for (int64_t d = 0; d < n.dim; d += LANES) {
    Floats value = load_up_to(dtype, n.x, x + d, n.dim - d);
    if (n.add != nullptr) {
      value = rounded(dtype, value + load_up_to(dtype, n.add, add + d, n.dim - d));
      store_up_to(dtype, n.x, x + d, value, n.dim - d);
    }
    squares = fma(value, value, squares);
  }
  return sum(squares);
}

inline void normalise(const Norm& n, int64_t row, int64_t head) {
  const Dtype dtype = Dtype(n.dtype), weight_dtype = Dtype(n.weight_dtype);
  const int64_t x = row * n.x_row_stride + head * n.x_head_stride;
  const int64_t out = row * n.out_row_stride + head * n.out_head_stride;
  const int64_t weight = n.weight_row == nullptr ? 0 : n.weight_row[row] * n.dim;
  const float squares = add_and_square(n, x, row * n.add_row_stride + head * n.dim);
  const Floats scale = splat(1.0f / std::sqrt(squares / float(n.dim) + n.eps));
  for (int64_t d = 0; d < n.dim; d += LANES) {
    Floats value = load_up_to(dtype, n.x, x + d, n.dim - d) * scale;
    if (weight_dtype == dtype) value = rounded(dtype, value);
    value = value * load_up_to(weight_dtype, n.weight, weight + d, n.dim - d);
    store_up_to(dtype, n.out, out + d, value, n.dim - d);
  }
}

struct Rotation {
  void* x;  // [rows, heads, dim], rotated in place
  int64_t row_stride, head_stride;
  const void* cos_sin;  // [2, rows, dim]; the sine's first half is negated
  int64_t rows, heads, dim;
  int32_t dtype, threads;
};

// x[i] cos[i] + x[i + dim / 2] sin[i] for both halves of a head.
inline void rotate_row(const Rotation& r, int64_t row) {
  const Dtype dtype = Dtype(r.dtype);
  const int64_t half = r.dim / 2, cosine = row * r.dim, sine = (r.rows + row) * r.dim;
  for (int64_t d = 0; d < half; d += LANES) {
    const int64_t count = half - d;
    const Floats cos_lo = load_up_to(dtype, r.cos_sin, cosine + d, count);
    const Floats cos_hi = load_up_to(dtype, r.cos_sin, cosine + half + d, count);
    const Floats sin_lo = load_up_to(dtype, r.cos_sin, sine + d, count);
    const Floats sin_hi = load_up_to(dtype, r.cos_sin, sine + half + d, count);
    for (int64_t h = 0; h < r.heads; ++h) {
      const int64_t at = row * r.row_stride + h * r.head_stride + d;
      const Floats lo = load_up_to(dtype, r.x, at, count);
      const Floats hi = load_up_to(dtype, r.x, at + half, count);
      store_up_to(dtype, r.x, at, fma(lo, cos_lo, hi * sin_lo), count);
      store_up_to(dtype, r.x, at + half, fma(hi, cos_hi, lo * sin_hi), count);
    }
  }
}

enum Activation : int32_t { SILU = 0, GELU = 1, GELU_TANH = 2 };

struct Gate {
  const void* gate_up;  // [rows, 2 * width]: gates, then what they let through
  int64_t gate_up_stride;
  void* out;  // [rows, width]
  int64_t out_stride;
  int64_t rows, width;
  int32_t activation, dtype, threads, unused;
};

// x times the sigmoid of `by`.
inline Floats times_sigmoid(Floats x, Floats by) {
  const Floats e = exp_of(zeros() - max(by, splat(-87.0f)));
  return x / (splat(1.0f) + e);
}

inline Floats exact_gelu(Floats x) {
  float lanes[LANES];
  store(lanes, x);
  for (float& lane : lanes) lane = 0.5f * lane * (1.0f + std::erf(lane * 0.70710678f));
  return load(lanes);
}

inline Floats activate(Activation activation, Floats x) {
  switch (activation) {
    case SILU:
      return times_sigmoid(x, x);
    case GELU:
      return exact_gelu(x);
    default: {  // 0.5 (1 + tanh(u)) is the sigmoid of 2 u
      const Floats cubed = x * x * x;
      const Floats u = splat(1.5957691216f) * fma(splat(0.044715f), cubed, x);
      return times_sigmoid(x, u);
    }
  }
}

struct Gather {
  const void* x;  // [any, width]
  int64_t x_stride;
  const int64_t* index;  // [rows]
  int64_t limit;         // rows of x
  void* out;             // [rows, width], contiguous
  int64_t rows, width;
  int32_t dtype, unused;
};

}  // namespace tsugiki

using namespace tsugiki;

extern "C" void tsugiki_rms_norm(const Norm* norm) {
  const Norm& n = *norm;
  for_each_row(n.rows, n.heads * padded(n.dim) / LANES, n.threads, [&](int64_t row) {
    for (int64_t h = 0; h < n.heads; ++h) normalise(n, row, h);
  });
}

extern "C" void tsugiki_rotate(const Rotation* rotation) {
  const Rotation& r = *rotation;
  for_each_row(r.rows, r.heads * padded(r.dim) / LANES, r.threads,
               [&](int64_t row) { rotate_row(r, row); });
}

extern "C" void tsugiki_gate(const Gate* gate) {
  const Gate& g = *gate;
  const Dtype dtype = Dtype(g.dtype);
  for_each_row(g.rows, 8 * padded(g.width) / LANES, g.threads, [&](int64_t row) {
    for (int64_t c = 0; c < g.width; c += LANES) {
      const int64_t count = g.width - c, from = row * g.gate_up_stride + c;
      const Floats gated = activate(Activation(g.activation), load_up_to(dtype, g.gate_up, from, count));
      const Floats up = load_up_to(dtype, g.gate_up, from + g.width, count);
      store_up_to(dtype, g.out, row * g.out_stride + c, gated * up, count);
    }
  });
}

// Returns 0, or 1 when an index lies outside x; then nothing is written.
extern "C" int32_t tsugiki_gather(const Gather* gather) {
  const Gather& g = *gather;
  for (int64_t i = 0; i < g.rows; ++i)
    if (g.index[i] < 0 || g.index[i] >= g.limit) return 1;
  const int64_t size = dtype_size(Dtype(g.dtype)), bytes = g.width * size;
  for (int64_t i = 0; i < g.rows; ++i)
    std::memcpy((char*)g.out + i * bytes, (const char*)g.x + g.index[i] * g.x_stride * size, bytes);
  return 0;
}
