// A dense linear whose weight is rebuilt on the way: out = x (W + D)^T + bias.
//
// Each thread rebuilds a few groups of outputs at a time, in memory of its own that stays in the
// second-level cache, and multiplies at once: the rebuilt weight never goes to memory.

#include "linear.h"
#include "reconstruct.h"

namespace tsugiki {

constexpr int64_t AT_ONCE = 3 * LANES;  // outputs

// Mirrored by linear.py.
struct RebuiltLinear {
  Linear linear;
  const void* delta;
};

// Some outputs at a time are rebuilt and multiplied, while the base of the next ones is fetched.
template <class Whole>
void multiply_rebuilt(const Linear& linear, const Whole& delta, int64_t first, int64_t last,
                      const Panel& rows) {
  const char* base = (const char*)linear.weight;
  for (; first < last; first += AT_ONCE) {
    const int64_t stop = std::min(first + AT_ONCE, last);
    void* rebuilt = scratch(MIDDLE, AT_ONCE * linear.row_bytes() / sizeof(float));
    rebuild(delta, base + first * linear.row_bytes(), {rebuilt, first, linear.shape()}, stop);
    const char* next = base + (stop < linear.outputs ? stop : 0) * linear.row_bytes();
    Requests nothing;
    multiply_stretch(linear, {first, stop, rebuilt, next}, rows, nothing);
  }
}

template <class Whole>
void run(const RebuiltLinear& call) {
  const Linear& linear = call.linear;
  const Whole& delta = *(const Whole*)call.delta;
  const Panel rows = rows_of(linear);
  const int64_t each = outputs_per_task(linear, rows);
  parallel_for((linear.outputs + each - 1) / each, linear.threads, worth_forking(linear, rows),
               [&](int64_t task) {
                 const int64_t first = task * each, last = std::min(first + each, linear.outputs);
                 multiply_rebuilt(linear, delta, first, last, rows);
               });
}

}  // namespace tsugiki

using namespace tsugiki;

extern "C" void tsugiki_sparse_linear(const RebuiltLinear* call) { run<SparseLinear>(*call); }

extern "C" void tsugiki_sign_linear(const RebuiltLinear* call) { run<SignLinear>(*call); }
