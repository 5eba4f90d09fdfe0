// Dense linears: out = x W^T + bias, the weight packed (weight.h).
//
// A task is a stretch of outputs, taken a few groups at a time. With few rows of x the weight streams
// by once, in chunks that stay in the first-level cache until all rows have met them, and what comes
// next is asked for meanwhile. With many rows it is x that streams by.

#include "linear_block.h"

namespace tsugiki {

constexpr int64_t PANEL_BYTES = 384 << 10;  // of x
constexpr int64_t TASK_BYTES = 1 << 20;     // of weight, at most
constexpr int64_t LEAST_TASK = 32 << 10;
constexpr int64_t CHUNK = 96;         // steps
constexpr int64_t CHUNKED_UP_TO = 4;  // passes over the weight; more get along without

// Neighbouring groups of outputs that are met together, and the weights that come after them.
struct Block {
  int64_t first;  // output
  const char* weight;
  const char* next;
};

// A chunk of steps of a block, and how many bytes beyond it lies what comes after.
struct Chunk {
  const char* weight;
  int64_t from, steps;
  int64_t ahead;
};

template <class Lanes, int GROUPS, int LINES, int ROWS = ROWS_AT_ONCE>
inline void meet_rows(const Linear& linear, const Panel& rows, const Chunk& chunk, float* sums) {
  typedef typename Lanes::Element Element;
  if constexpr (ROWS > 1)
    if (rows.count < ROWS)
      return meet_rows<Lanes, GROUPS, LINES, ROWS - 1>(linear, rows, chunk, sums);
  const Element* x[ROWS];
  for (int r = 0; r < ROWS; ++r)
    x[r] = (const Element*)linear.x + rows.rows[r] * linear.x_stride + chunk.from * Lanes::PAIR;
  meet<Lanes, ROWS, GROUPS, LINES>(x, (const Element*)chunk.weight, LANES * linear.inputs,
                                   chunk.steps, chunk.ahead, sums);
}

// One of the passes over a chunk. What comes after it is asked for in equal shares: memory answers so
// many requests at a time and no more.
template <class Lanes, int GROUPS>
inline void meet_pass(const Linear& linear, const Panel& rows, Chunk chunk, int64_t pass,
                      int64_t passes, float* sums) {
  const int64_t fetched = (GROUPS * pass + passes - 1) / passes;  // groups, by the passes before
  chunk.ahead += fetched * LANES * linear.row_bytes();
  switch ((GROUPS * (pass + 1) + passes - 1) / passes - fetched) {
    case 0: return meet_rows<Lanes, GROUPS, 0>(linear, rows, chunk, sums);
    case 1: return meet_rows<Lanes, GROUPS, 1>(linear, rows, chunk, sums);
    case 2: return meet_rows<Lanes, GROUPS, 2>(linear, rows, chunk, sums);
    default: return meet_rows<Lanes, GROUPS, 3>(linear, rows, chunk, sums);
  }
}

inline int64_t passes_over(const Panel& panel) {
  return (panel.count + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
}

// Steps of a chunk, of `all`.
inline int64_t chunk_of(const Panel& panel, int64_t all) {
  return passes_over(panel) <= CHUNKED_UP_TO ? CHUNK : all;
}

// sums[row][group], float32.
template <class Lanes, int GROUPS>
void meet_panel(const Linear& linear, const Panel& panel, const Block& block, float* sums,
                Requests& requests) {
  constexpr int64_t STEP_BYTES = LANES * Lanes::PAIR * sizeof(typename Lanes::Element);
  const int64_t passes = passes_over(panel);
  const int64_t all = linear.inputs / Lanes::PAIR, most = chunk_of(panel, all);
  for (int64_t from = 0; from < all; from += most) {
    const int64_t steps = std::min(most, all - from);
    const char* weight = block.weight + from * STEP_BYTES;
    const bool last = from + steps == all;
    const Chunk chunk{weight, from, steps, last ? block.next - weight : steps * STEP_BYTES};
    for (int64_t pass = 0; pass < passes; ++pass) {
      const int64_t row = pass * panel.count / passes;
      const Panel rows{panel.rows + row, (pass + 1) * panel.count / passes - row};
      requests.some();
      meet_pass<Lanes, GROUPS>(linear, rows, chunk, pass, passes, sums + row * GROUPS * LANES);
    }
  }
}

// The odd input at the end of a row, which stands alone in a packed weight.
template <class Lanes>
inline Floats meet_last(const Linear& linear, int64_t row, const char* group, Floats total) {
  const int64_t last = linear.inputs - 1;
  const auto* x = (const typename Lanes::Element*)linear.x + row * linear.x_stride + last;
  return fma(splat(x->value()), load_as(Dtype(linear.dtype), group, last * LANES), total);
}

// One row's sums with one group into out, biased and rounded once.
inline void put_out(const Linear& linear, int64_t row, int64_t output, Floats sums) {
  const int64_t count = linear.outputs - output;
  if (linear.bias != nullptr)
    sums = sums + load_up_to(Dtype(linear.bias_dtype), linear.bias, output, count);
  store_up_to(Dtype(linear.out_dtype), linear.out, row * linear.out_stride + output, sums, count);
}

template <class Lanes, int GROUPS>
void multiply_block(const Linear& linear, const Panel& panel, const Block& block,
                    Requests& requests) {
  const int64_t floats = panel.count * GROUPS * LANES;
  float* sums = scratch(SUMS, floats);
  std::memset(sums, 0, floats * sizeof(float));
  meet_panel<Lanes, GROUPS>(linear, panel, block, sums, requests);
  for (int64_t r = 0; r < panel.count; ++r)
    for (int64_t g = 0; g < GROUPS; ++g) {
      Floats total = load(sums + (r * GROUPS + g) * LANES);
      if (linear.inputs % Lanes::PAIR != 0)
        total = meet_last<Lanes>(linear, panel.rows[r],
                                 block.weight + g * LANES * linear.row_bytes(), total);
      put_out(linear, panel.rows[r], block.first + g * LANES, total);
    }
}

// The last group of a weight whose outputs are no multiple of 16, with zeros in the other lanes.
template <class Lanes>
const char* filled_up(const Linear& linear, const char* group, int64_t lanes) {
  typedef typename Lanes::Element Element;
  const int64_t steps = linear.inputs / Lanes::PAIR;
  Element* whole = (Element*)scratch(REST, LANES * linear.inputs);
  std::memset((void*)whole, 0, LANES * linear.row_bytes());
  const auto copy = [&](int64_t step, int64_t each) {
    const int64_t at = step * Lanes::PAIR;
    std::memcpy((void*)(whole + at * LANES), group + at * lanes * sizeof(Element),
                lanes * each * sizeof(Element));
  };
  for (int64_t s = 0; s < steps; ++s) copy(s, Lanes::PAIR);
  if (linear.inputs % Lanes::PAIR != 0) copy(steps, 1);
  return (const char*)whole;
}

template <class Lanes>
void multiply(const Linear& linear, const Stretch& stretch, const Panel& panel,
              Requests& requests) {
  constexpr int64_t AT_ONCE = GROUPS_AT_ONCE * LANES;
  const char* weight = (const char*)stretch.weight;
  int64_t output = stretch.first;
  const auto block = [&](int64_t outputs) {
    const char* at = weight + (output - stretch.first) * linear.row_bytes();
    const bool last = output + outputs >= stretch.last;
    return Block{output, at, last ? stretch.next : at + outputs * linear.row_bytes()};
  };
  for (; output + AT_ONCE <= stretch.last; output += AT_ONCE)
    multiply_block<Lanes, GROUPS_AT_ONCE>(linear, panel, block(AT_ONCE), requests);
  for (; output + LANES <= stretch.last; output += LANES)
    multiply_block<Lanes, 1>(linear, panel, block(LANES), requests);
  if (output == stretch.last) return;
  Block rest = block(LANES);
  rest.weight = filled_up<Lanes>(linear, rest.weight, stretch.last - output);
  multiply_block<Lanes, 1>(linear, panel, rest, requests);
}

template <class Lanes>
void multiply_all(const Linear& linear, const Stretch& stretch, const Panel& all,
                  Requests& requests) {
  const int64_t row_bytes = std::max<int64_t>(1, linear.row_bytes());
  const int64_t at_once = std::max<int64_t>(1, PANEL_BYTES / row_bytes / ROWS_AT_ONCE) * ROWS_AT_ONCE;
  const Panel first{all.rows, std::min(at_once, all.count)};
  const int64_t blocks = (stretch.last - stretch.first) / (GROUPS_AT_ONCE * LANES);
  const int64_t steps = linear.inputs / Lanes::PAIR, chunk = chunk_of(first, steps);
  requests.spread(blocks * passes_over(first) * ((steps + chunk - 1) / std::max<int64_t>(1, chunk)));
  for (int64_t from = 0; from < all.count; from += at_once)
    multiply<Lanes>(linear, stretch, {all.rows + from, std::min(at_once, all.count - from)},
                    requests);
}

void multiply_stretch(const Linear& linear, const Stretch& stretch, const Panel& rows,
                      Requests& requests) {
  switch (linear.dtype) {
    case BFLOAT16: return multiply_all<Bfloat16Pairs>(linear, stretch, rows, requests);
    case FLOAT16: return multiply_all<Float16Lanes>(linear, stretch, rows, requests);
    default: return multiply_all<Float32Lanes>(linear, stretch, rows, requests);
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

int64_t outputs_per_task(const Linear& linear, const Panel& rows) {
  const int64_t row_bytes = std::max<int64_t>(1, linear.row_bytes());
  const int64_t tasks = linear.threads * (rows.count <= 16 ? 2 : 8);
  const int64_t share = linear.outputs / tasks;
  const int64_t outputs = std::min(TASK_BYTES / row_bytes, std::max(LEAST_TASK / row_bytes, share));
  constexpr int64_t AT_ONCE = GROUPS_AT_ONCE * LANES;
  return (outputs + AT_ONCE - 1) / AT_ONCE * AT_ONCE;
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
                 Requests nothing;
                 multiply_stretch(linear, stretch_of(linear, task * each, each), rows, nothing);
               });
}
