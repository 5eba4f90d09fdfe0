// Dense linears: out = x W^T + bias, the weight as it is stored.
//
// A task is a run of weight rows, contiguous in memory. With few rows of x the weight streams by once,
// asked for AHEAD of its use; with many, panels of x that stay in the second-level cache meet
// blocks of eight weight rows that stay in the first.

#include "linear_block.h"

namespace tsugiki {

constexpr int64_t AHEAD = 24 << 10;           // bytes from what is read to what is fetched
constexpr int64_t PANEL_BYTES = 384 << 10;    // of x
constexpr int64_t TASK_BYTES = 256 << 10;     // of weight, at most
constexpr int64_t LEAST_TASK = 32 << 10;
constexpr int64_t TASKS_PER_THREAD = 4;

// Rows of x at hand, by their place in x and out.
struct Panel {
  const int64_t* rows;
  int64_t count;
};

// Eight outputs and their rows of weight. Outputs that do not exist repeat the last one.
template <class Lanes>
struct Outputs {
  int64_t first;
  const typename Lanes::Element* weight[OUTPUTS_AT_ONCE];

  Outputs(const Linear& linear, int64_t first) : first(first) {
    for (int64_t o = 0; o < OUTPUTS_AT_ONCE; ++o)
      weight[o] = (const typename Lanes::Element*)linear.weight +
                  std::min(first + o, linear.outputs - 1) * linear.inputs;
  }
};

// One row's eight sums into out, biased and rounded once.
inline void finish(const Linear& linear, int64_t row, int64_t output, Half16 sums) {
  const int64_t count = std::min<int64_t>(OUTPUTS_AT_ONCE, linear.outputs - output);
  if (linear.bias != nullptr)
    sums = sums + low(load_up_to(Dtype(linear.bias_dtype), linear.bias, output, count));
  alignas(64) char rounded[sizeof(Floats)];
  store_as(Dtype(linear.out_dtype), rounded, 0, join(sums, sums));
  const int64_t size = dtype_size(Dtype(linear.out_dtype));
  char* to = (char*)linear.out + (row * linear.out_stride + output) * size;
  if (count < OUTPUTS_AT_ONCE) {
    std::memcpy(to, rounded, count * size);
  } else if (size == 2) {  // sizes that the compiler knows are plain moves
    std::memcpy(to, rounded, OUTPUTS_AT_ONCE * 2);
  } else {
    std::memcpy(to, rounded, OUTPUTS_AT_ONCE * 4);
  }
}

template <class Lanes, int ROWS, int LINES>
void meet_rows(const Linear& linear, const Outputs<Lanes>& outputs, const int64_t* rows,
               const char* next) {
  const typename Lanes::Element* x[ROWS];
  for (int r = 0; r < ROWS; ++r)
    x[r] = (const typename Lanes::Element*)linear.x + rows[r] * linear.x_stride;
  Half16 sums[ROWS];
  multiply<Lanes, ROWS, LINES>(x, outputs.weight, linear.inputs, next, sums);
  for (int r = 0; r < ROWS; ++r) finish(linear, rows[r], outputs.first, sums[r]);
}

// The first ROWS_AT_ONCE rows of the panel, or as many as there are.
template <class Lanes, int LINES, int ROWS = ROWS_AT_ONCE>
void meet_some(const Linear& linear, const Outputs<Lanes>& outputs, const Panel& panel,
               const char* next) {
  if constexpr (ROWS > 1)
    if (panel.count < ROWS)
      return meet_some<Lanes, LINES, ROWS - 1>(linear, outputs, panel, next);
  meet_rows<Lanes, ROWS, LINES>(linear, outputs, panel.rows, next);
}

// The whole panel. Of the eight lines a step that lie AHEAD, LINES are fetched beside each group of
// rows until all are: a burst beside the first group would hold it up.
template <class Lanes, int LINES>
void meet_groups(const Linear& linear, const Outputs<Lanes>& outputs, const Panel& panel) {
  const int64_t share = LINES * linear.inputs * int64_t(sizeof(typename Lanes::Element));
  const char* next = (const char*)outputs.weight[0] + AHEAD;
  for (int64_t from = 0, fetched = 0; from < panel.count; from += ROWS_AT_ONCE) {
    const Panel rest{panel.rows + from, panel.count - from};
    if (fetched < OUTPUTS_AT_ONCE)
      meet_some<Lanes, LINES>(linear, outputs, rest, next);
    else
      meet_some<Lanes, 0>(linear, outputs, rest, next);
    fetched += LINES, next += share;
  }
}

template <class Lanes>
void meet_panel(const Linear& linear, const Outputs<Lanes>& outputs, const Panel& panel) {
  switch ((panel.count + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE) {
    case 1: return meet_groups<Lanes, 8>(linear, outputs, panel);
    case 2: return meet_groups<Lanes, 4>(linear, outputs, panel);
    case 3: return meet_groups<Lanes, 3>(linear, outputs, panel);
    case 4: case 5: case 6: case 7: return meet_groups<Lanes, 2>(linear, outputs, panel);
    default: return meet_groups<Lanes, 1>(linear, outputs, panel);
  }
}

// How the weight rows of a call are cut into tasks of `each` blocks of eight.
struct Cut {
  int64_t blocks, each;

  Cut(const Linear& linear, int64_t block_bytes)
      : blocks((linear.outputs + OUTPUTS_AT_ONCE - 1) / OUTPUTS_AT_ONCE) {
    const int64_t wanted = linear.threads * TASKS_PER_THREAD;
    const int64_t least = LEAST_TASK / block_bytes + 1, most = TASK_BYTES / block_bytes + 1;
    each = std::min(most, std::max(least, (blocks + wanted - 1) / wanted));
  }
  int64_t tasks() const { return (blocks + each - 1) / each; }
};

template <class Lanes>
void run(const Linear& linear, const Panel& all) {
  const int64_t row_bytes =
      std::max<int64_t>(1, linear.inputs * int64_t(sizeof(typename Lanes::Element)));
  const int64_t panel_rows = std::max<int64_t>(1, PANEL_BYTES / row_bytes / 24) * 24;
  const Cut cut(linear, OUTPUTS_AT_ONCE * row_bytes);
  // a vector of weight takes as long to arrive as to meet eight rows or more
  const int64_t cost = linear.outputs * row_bytes / 64 * std::max<int64_t>(8, all.count);
  parallel_for(cut.tasks(), linear.threads, cost >= FORK_FROM, [&](int64_t task) {
    const int64_t first = task * cut.each, last = std::min(cut.blocks, first + cut.each);
    for (int64_t from = 0; from < all.count; from += panel_rows) {
      const Panel panel{all.rows + from, std::min(panel_rows, all.count - from)};
      for (int64_t block = first; block < last; ++block)
        meet_panel(linear, Outputs<Lanes>(linear, block * OUTPUTS_AT_ONCE), panel);
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
