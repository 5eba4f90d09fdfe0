// Dense linears: out = x W^T + bias, the weight as it is stored.
//
// A task is a run of weight rows, contiguous in memory. With few rows of x the weight streams by once,
// fetched one block ahead; with many, panels of x that stay in the second-level cache meet blocks
// of eight weight rows that stay in the first.

#include "linear_block.h"

namespace tsugiki {

constexpr int64_t PANEL_BYTES = 384 << 10;
constexpr int64_t TASKS_PER_THREAD = 4;
constexpr int64_t BYTES_PER_TASK = 32 << 10;  // of weight, at least

// Rows of x at hand, by their place in x and out.
struct Panel {
  const int64_t* rows;
  int64_t count;
};

// One row's eight sums into out, biased and rounded once.
inline void finish(const Linear& linear, int64_t row, int64_t output, Half16 sums) {
  const int64_t count = std::min<int64_t>(OUTPUTS_AT_ONCE, linear.outputs - output);
  Half16 total = sums;
  if (linear.bias != nullptr)
    total = total + low(load_up_to(Dtype(linear.bias_dtype), linear.bias, output, count));
  alignas(64) char lanes[LANES * 4];
  const int64_t size = dtype_size(Dtype(linear.out_dtype));
  store_as(Dtype(linear.out_dtype), lanes, 0, join(total, total));
  std::memcpy((char*)linear.out + (row * linear.out_stride + output) * size, lanes, count * size);
}

template <class Lanes, int ROWS, bool AHEAD>
void block(const Linear& linear, const typename Lanes::Element* const* weight, int64_t output,
           const int64_t* rows) {
  const typename Lanes::Element* x[ROWS];
  for (int r = 0; r < ROWS; ++r)
    x[r] = (const typename Lanes::Element*)linear.x + rows[r] * linear.x_stride;
  Half16 sums[ROWS];
  multiply<Lanes, ROWS, AHEAD>(x, weight, linear.inputs, OUTPUTS_AT_ONCE * linear.inputs, sums);
  for (int r = 0; r < ROWS; ++r) finish(linear, rows[r], output, sums[r]);
}

// The first `count` of up to ROWS rows.
template <class Lanes, int ROWS, bool AHEAD>
void block_of(const Linear& linear, const typename Lanes::Element* const* weight, int64_t output,
              const int64_t* rows, int64_t count) {
  if constexpr (ROWS > 1)
    if (count < ROWS) return block_of<Lanes, ROWS - 1, AHEAD>(linear, weight, output, rows, count);
  block<Lanes, ROWS, AHEAD>(linear, weight, output, rows);
}

// Eight outputs of every row of the panel. Outputs that do not exist repeat the last one.
template <class Lanes>
void meet_panel(const Linear& linear, int64_t output, const Panel& panel) {
  const typename Lanes::Element* weight[OUTPUTS_AT_ONCE];
  for (int64_t o = 0; o < OUTPUTS_AT_ONCE; ++o)
    weight[o] = (const typename Lanes::Element*)linear.weight +
                std::min(output + o, linear.outputs - 1) * linear.inputs;
  int64_t first = std::min<int64_t>(ROWS_AT_ONCE, panel.count);
  block_of<Lanes, ROWS_AT_ONCE, true>(linear, weight, output, panel.rows, first);
  for (; first < panel.count; first += ROWS_AT_ONCE)
    block_of<Lanes, ROWS_AT_ONCE, false>(linear, weight, output, panel.rows + first,
                                         std::min<int64_t>(ROWS_AT_ONCE, panel.count - first));
}

template <class Lanes>
void run(const Linear& linear, const Panel& all) {
  constexpr int64_t size = sizeof(typename Lanes::Element);
  const int64_t row_bytes = std::max<int64_t>(1, linear.inputs * size);
  const int64_t panel_rows = std::max<int64_t>(1, PANEL_BYTES / row_bytes / 24) * 24;
  const int64_t blocks = (linear.outputs + OUTPUTS_AT_ONCE - 1) / OUTPUTS_AT_ONCE;
  const int64_t least = BYTES_PER_TASK / (OUTPUTS_AT_ONCE * row_bytes) + 1;
  const int64_t tasks_wanted = linear.threads * TASKS_PER_THREAD;
  const int64_t each = std::max(least, (blocks + tasks_wanted - 1) / tasks_wanted);
  const int64_t cost = blocks * OUTPUTS_AT_ONCE * row_bytes / 16 * std::max<int64_t>(1, all.count / 4);
  parallel_for((blocks + each - 1) / each, linear.threads, cost >= FORK_FROM, [&](int64_t task) {
    const int64_t last = std::min(blocks, (task + 1) * each);
    for (int64_t from = 0; from < all.count; from += panel_rows) {
      const Panel panel{all.rows + from, std::min(panel_rows, all.count - from)};
      for (int64_t b = task * each; b < last; ++b)
        meet_panel<Lanes>(linear, b * OUTPUTS_AT_ONCE, panel);
    }
  });
}

// The rows of all spans, one after the other.
Panel rows_of(const Linear& linear) {
  int64_t count = 0;
  for (int64_t s = 0; s < linear.span_count; ++s)
    count += linear.spans[s].stop - linear.spans[s].start;
  int64_t* rows = (int64_t*)scratch(ROWS, 2 * count);
  int64_t at = 0;
  for (int64_t s = 0; s < linear.span_count; ++s)
    for (int64_t row = linear.spans[s].start; row < linear.spans[s].stop; ++row) rows[at++] = row;
  return {rows, count};
}

}  // namespace tsugiki

using namespace tsugiki;

extern "C" void tsugiki_linear(const Linear* linear) {
  const Panel rows = rows_of(*linear);
  if (rows.count == 0 || linear->outputs == 0) return;
  switch (linear->dtype) {
    case BFLOAT16: return run<Bfloat16Pairs>(*linear, rows);
    case FLOAT16: return run<Float16Lanes>(*linear, rows);
    default: return run<Float32Lanes>(*linear, rows);
  }
}
