// Dense linears: out = x W^T + bias, the weight as it is stored.
//
// A task is a stretch of outputs. With few rows of x the weight streams by once, asked for AHEAD of its
// use; with many, panels of x that stay in the second-level cache meet
// blocks of eight weight rows that stay in the first.

#include "linear_block.h"

namespace tsugiki {

constexpr int64_t AHEAD = 24 << 10;         // bytes from what is read to what is fetched
constexpr int64_t PANEL_BYTES = 384 << 10;  // of x
constexpr int64_t TASK_BYTES = 1 << 20;     // of weight, at most
constexpr int64_t LEAST_TASK = 32 << 10;

// Eight outputs and their rows of weight. Outputs beyond the stretch repeat its last one.
template <class Lanes>
struct Outputs {
  int64_t first, count;
  const typename Lanes::Element* weight[OUTPUTS_AT_ONCE];
  const char* next;

  Outputs(const Linear& linear, const Stretch& stretch, int64_t first)
      : first(first),
        count(std::min<int64_t>(OUTPUTS_AT_ONCE, stretch.last - first)),
        next(stretch.next + (first - stretch.first) * linear.row_bytes()) {
    for (int64_t o = 0; o < OUTPUTS_AT_ONCE; ++o)
      weight[o] = (const typename Lanes::Element*)stretch.weight +
                  (std::min(first + o, stretch.last - 1) - stretch.first) * linear.inputs;
  }
};

// One row's eight sums into out, biased and rounded once.
inline void finish(const Linear& linear, int64_t row, int64_t output, int64_t count, Half16 sums) {
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
  for (int r = 0; r < ROWS; ++r) finish(linear, rows[r], outputs.first, outputs.count, sums[r]);
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

// The whole panel. Of the eight lines a step that come next, LINES are fetched beside each group of
// rows until all are: a burst beside the first group would hold it up.
template <class Lanes, int LINES>
void meet_groups(const Linear& linear, const Outputs<Lanes>& outputs, const Panel& panel) {
  const char* next = outputs.next;
  for (int64_t from = 0, fetched = 0; from < panel.count; from += ROWS_AT_ONCE) {
    const Panel rest{panel.rows + from, panel.count - from};
    if (fetched < OUTPUTS_AT_ONCE)
      meet_some<Lanes, LINES>(linear, outputs, rest, next);
    else
      meet_some<Lanes, 0>(linear, outputs, rest, next);
    fetched += LINES, next += LINES * linear.row_bytes();
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

template <class Lanes>
void multiply(const Linear& linear, const Stretch& stretch, const Panel& all) {
  const int64_t row_bytes = std::max<int64_t>(1, linear.row_bytes());
  const int64_t panel_rows = std::max<int64_t>(1, PANEL_BYTES / row_bytes / 24) * 24;
  for (int64_t from = 0; from < all.count; from += panel_rows) {
    const Panel panel{all.rows + from, std::min(panel_rows, all.count - from)};
    for (int64_t output = stretch.first; output < stretch.last; output += OUTPUTS_AT_ONCE)
      meet_panel(linear, Outputs<Lanes>(linear, stretch, output), panel);
  }
}

void multiply_stretch(const Linear& linear, const Stretch& stretch, const Panel& rows) {
  switch (linear.dtype) {
    case BFLOAT16: return multiply<Bfloat16Pairs>(linear, stretch, rows);
    case FLOAT16: return multiply<Float16Lanes>(linear, stretch, rows);
    default: return multiply<Float32Lanes>(linear, stretch, rows);
  }
}

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

// Each task begins with memory that nobody has fetched for it: the fewer rows meet the weight, the
// fewer tasks pay.
int64_t outputs_per_task(const Linear& linear, const Panel& rows) {
  const int64_t row_bytes = std::max<int64_t>(1, linear.row_bytes());
  const int64_t tasks = linear.threads * (rows.count <= 16 ? 2 : 8);
  const int64_t share = linear.outputs / tasks;
  const int64_t outputs = std::min(TASK_BYTES / row_bytes, std::max(LEAST_TASK / row_bytes, share));
  return (outputs / LANES + 1) * LANES;
}

bool worth_forking(const Linear& linear, const Panel& rows) {
  // a vector of weight takes as long to arrive as to meet eight rows or more
  return linear.outputs * linear.row_bytes() / 64 * std::max<int64_t>(8, rows.count) >= FORK_FROM;
}

}  // namespace tsugiki

using namespace tsugiki;

extern "C" void tsugiki_linear(const Linear* call) {
  const Linear& linear = *call;
  const Panel rows = rows_of(linear);
  const int64_t each = outputs_per_task(linear, rows);
  parallel_for((linear.outputs + each - 1) / each, linear.threads, worth_forking(linear, rows),
               [&](int64_t task) {
                 const int64_t first = task * each, last = std::min(first + each, linear.outputs);
                 const char* weight = (const char*)linear.weight + first * linear.row_bytes();
                 multiply_stretch(linear, {first, last, weight, weight + AHEAD}, rows);
               });
}
