// The low-rank deltas of one call: all tokens are shrunk at once, then expanded some outputs at a time.
#pragma once

#include "requests.h"
#include "slices.h"

namespace tsugiki {

// The shrunk tokens of each part of each variant: [tokens, rank] each.
class Middle {
 public:
  explicit Middle(const Apply& call);

  float* of(int64_t variant, int64_t part) const;

 private:
  int64_t size_of(int64_t variant, int64_t part) const;

  struct Place {
    int64_t first;  // float, of the variant's first part; the other parts follow
  };
  const Apply& call_;
  std::vector<Place>& places_ = reused<Place>();
  float* data_;
};

class LowRankApply {
 public:
  // Shrinks.
  explicit LowRankApply(const Apply& call);

  // Multiply-adds of expanding, in vectors.
  int64_t cost() const;

  // Outputs up to the end of the last part.
  int64_t outputs() const;

  // Whether ranges that begin at multiples of 16 cut through no group of 16 rows.
  bool cuts_at_sixteens() const;

  // What `apply` will read, and the next linear's before anything is written.
  void request(const OutputRange& outputs, Requests& requests) const;

  // Adds the deltas of all variants to these outputs.
  void apply(const OutputRange& outputs) const;

 private:
  const Apply& call_;
  Middle middle_;
};

}  // namespace tsugiki
