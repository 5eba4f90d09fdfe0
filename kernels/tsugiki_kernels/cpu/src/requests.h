// Memory that will be read soon, asked for bit by bit while something else is computed: it answers so
// many requests at a time, and whoever asks for more waits.
#pragma once

#include "step.h"

namespace tsugiki {

class Requests {
 public:
  void add(const void* from, int64_t bytes) {
    if (bytes <= 0) return;
    const char* line = (const char*)((uintptr_t)from & ~uintptr_t(63));
    const int64_t lines = ((const char*)from + bytes - line + 63) / 64;
    runs_.push_back({line, lines});
    left_ += lines;
  }

  // From now on each call of `some` asks for an equal share; after so many turns all was asked for.
  void spread(int64_t turns) { share_ = (left_ + turns - 1) / std::max<int64_t>(1, turns); }

  void some() {
    for (int64_t wanted = std::min(share_, left_); wanted > 0;) {
      Run& run = runs_[at_];
      const int64_t lines = std::min(wanted, run.lines);
      // into the second-level cache: the first is for what is computed meanwhile
      for (int64_t i = 0; i < lines; ++i) __builtin_prefetch(run.line + 64 * i, 0, 2);
      run.line += 64 * lines, run.lines -= lines, wanted -= lines, left_ -= lines;
      if (run.lines == 0) ++at_;
    }
  }

 private:
  struct Run {
    const char* line;
    int64_t lines;
  };
  std::vector<Run>& runs_ = reused<Run>();
  size_t at_ = 0;
  int64_t left_ = 0, share_ = 0;
};

}  // namespace tsugiki
