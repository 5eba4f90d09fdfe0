// One group of 16 rows of a dense weight, rebuilt: base + D.
#pragma once

#include "dot.h"
#include "sparse.h"

namespace tsugiki {

struct Rebuilding {
  const void* base;  // [fused out, inputs]
  void* out;         // the rows of the fused weight from `first` on
  int64_t first;
  int64_t inputs;
  Dtype dtype;
};

void rebuild_group(const SparsePart& part, int64_t group, const Rebuilding& where);
void rebuild_group(const SignPart& part, int64_t group, const Rebuilding& where);

}  // namespace tsugiki
