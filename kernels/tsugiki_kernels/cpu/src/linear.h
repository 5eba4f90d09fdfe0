// One call of a dense linear, and its pieces of work. Structs are mirrored by linear.py.
#pragma once

#include "requests.h"
#include "weight.h"

namespace tsugiki {

struct Linear {
  const void* x;  // [rows, inputs] of dtype, unit stride in the last dimension; strides in elements
  int64_t x_stride;
  const void* weight;  // [outputs, inputs], packed (weight.h)
  const void* bias;    // [outputs] of bias_dtype; null: none
  void* out;           // [rows, outputs] of out_dtype
  int64_t out_stride;
  const Span* spans;  // the rows to compute; spans never overlap
  int64_t span_count;
  int64_t inputs, outputs;
  int32_t dtype, bias_dtype, out_dtype, threads;

  int64_t row_bytes() const { return inputs * dtype_size(Dtype(dtype)); }  // of weight
  PackedShape shape() const { return {outputs, inputs, Dtype(dtype)}; }
};

// Some rows of x, by their place in x and out.
struct Panel {
  const int64_t* rows;
  int64_t count;
};

// Consecutive outputs from a multiple of 16 on, where their packed weights lie, the linear's own or
// rebuilt ones, and the weights that come after them, to ask memory for meanwhile.
struct Stretch {
  int64_t first, last;  // last exclusive
  const void* weight;
  const char* next;
};

// `count` outputs of the linear's own weight, or as many as there are; a thread mostly takes those
// that follow next.
inline Stretch stretch_of(const Linear& linear, int64_t first, int64_t count) {
  const char* weight = (const char*)linear.weight;
  const int64_t last = std::min(first + count, linear.outputs);
  const int64_t next = last < linear.outputs ? last : 0;
  return {first, last, weight + first * linear.row_bytes(), weight + next * linear.row_bytes()};
}

// The rows of all spans, one after the other, in scratch memory of this thread.
Panel rows_of(const Linear& linear);

// How many outputs a task takes: a multiple of those that are met together.
int64_t outputs_per_task(const Linear& linear, const Panel& rows);

// Whether so many rows of x are work enough for several threads.
bool worth_forking(const Linear& linear, const Panel& rows);

// The outputs of a stretch for all rows. A row's bits depend on it and the weight alone. `requests` is
// other memory to ask for meanwhile.
void multiply_stretch(const Linear& linear, const Stretch& stretch, const Panel& rows,
                      Requests& requests);

}  // namespace tsugiki
