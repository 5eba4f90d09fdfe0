// A dense linear and what the variants of the step change in it, in one pass: a thread that has
// written some outputs adds the deltas to them while they lie in its caches; the deltas' own memory
// is asked for before. The bits are those of one call after the other.

#include "linear.h"
#include "low_rank_apply.h"
#include "sparse_apply.h"

extern "C" void tsugiki_linear(const tsugiki::Linear* call);

namespace tsugiki {

// Mirrored by linear.py.
struct ChangedLinear {
  Linear linear;
  const Apply* deltas;
};

template <class Deltas>
void run(const ChangedLinear& call) {
  const Linear& linear = call.linear;
  const Deltas deltas(*call.deltas);
  if (!deltas.cuts_at_sixteens()) {
    tsugiki_linear(&linear);
    return apply_in_slices(deltas, *call.deltas);
  }
  const Panel rows = rows_of(linear);
  const int64_t each = outputs_per_task(linear, rows);
  parallel_for((linear.outputs + each - 1) / each, linear.threads, worth_forking(linear, rows),
               [&](int64_t task) {
                 const Stretch stretch = stretch_of(linear, task * each, each);
                 Requests requests;
                 deltas.request({stretch.first, stretch.last}, requests);
                 multiply_stretch(linear, stretch, rows, requests);
                 deltas.apply({stretch.first, stretch.last});
               });
}

}  // namespace tsugiki

using namespace tsugiki;

extern "C" void tsugiki_linear_sparse(const ChangedLinear* call) { run<SparseApply>(*call); }

extern "C" void tsugiki_linear_low_rank(const ChangedLinear* call) { run<LowRankApply>(*call); }
