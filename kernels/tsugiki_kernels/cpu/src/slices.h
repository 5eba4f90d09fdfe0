// A call of deltas cut along its outputs: each slice is for all variants. Threads come back to the
// outputs that they wrote in the base's linear, which lie in their caches.
#pragma once

#include "step.h"

namespace tsugiki {

struct OutputRange {
  int64_t first, last;  // last exclusive
};

// The groups of 16 rows of a part that begin in some outputs.
struct GroupRange {
  int64_t first, last;

  GroupRange(const Part& part, const OutputRange& outputs)
      : first(from(part, outputs.first)), last(from(part, outputs.last)) {}

 private:
  static int64_t from(const Part& part, int64_t output) {
    const int64_t all = (part.rows + LANES - 1) / LANES;
    return output <= part.offset ? 0 : std::min((output - part.offset + LANES - 1) / LANES, all);
  }
};

// Asks memory for what will be read, into the second-level cache: the first is for what is computed
// meanwhile.
inline void fetch_bytes(const void* from, int64_t bytes) {
  const char* line = (const char*)((uintptr_t)from & ~uintptr_t(63));
  for (; line < (const char*)from + bytes; line += 64) __builtin_prefetch(line, 0, 2);
}

constexpr int64_t OUTPUTS_IN_LINE = 32;  // of a cache, in 16 bits
constexpr int64_t SLICES_PER_THREAD = 4;

template <class Deltas>
inline void apply_in_slices(const Deltas& deltas, const Apply& call) {
  const int64_t lines = (deltas.outputs() + OUTPUTS_IN_LINE - 1) / OUTPUTS_IN_LINE;
  const bool fork = deltas.cost() >= fork_from();
  const int64_t slices = fork ? std::min<int64_t>(call.threads * SLICES_PER_THREAD, lines) : 1;
  parallel_for(slices, call.threads, fork, [&](int64_t i) {
    deltas.apply({lines * i / slices * OUTPUTS_IN_LINE, lines * (i + 1) / slices * OUTPUTS_IN_LINE});
  });
}

}  // namespace tsugiki
