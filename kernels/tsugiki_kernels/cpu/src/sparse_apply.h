// The deltas of one call, some outputs at a time.
#pragma once

#include <atomic>

#include "requests.h"
#include "slices.h"

namespace tsugiki {

class SparseApply {
 public:
  explicit SparseApply(const Apply& call);

  // Multiply-adds of all of it, in vectors.
  int64_t cost() const;

  // OutputRange up to the end of the last part.
  int64_t outputs() const;

  // Whether ranges that begin at multiples of 16 cut through no group of 16 rows.
  bool cuts_at_sixteens() const;

  // What `apply` will read, and the next linear's before anything is written.
  void request(const OutputRange& outputs, Requests& requests) const;

  // Adds the deltas of all variants to these outputs.
  void apply(const OutputRange& outputs) const;

 private:
  static std::atomic<uint64_t>& calls() {
    static std::atomic<uint64_t> count{0};
    return count;
  }

  const Apply& call_;
  uint64_t number_;  // tells the threads when a call is another one
};

}  // namespace tsugiki
