// How the work of a call is cut for threads.
#pragma once

#include "step.h"

namespace tsugiki {

// Consecutive 16-row groups of one part of one variant: what one thread takes at a time.
struct Task {
  int64_t variant;
  int64_t part;
  int64_t first_group;
  int64_t last_group;  // exclusive
};

// Cuts (variant, part) pairs into tasks of about equal cost. `cost(variant, part)` is the number of
// 16-lane multiply-adds of one group.
class TaskList {
 public:
  std::vector<Task>& tasks = reused<Task>();
  int64_t total = 0;

  void add(int64_t variant, int64_t part, int64_t groups, int64_t group_cost) {
    if (groups == 0 || group_cost == 0) return;
    wholes.push_back({{variant, part, 0, groups}, group_cost});
    total += groups * group_cost;
  }

  bool worth_forking() const { return total >= fork_from(); }

  void cut(int threads) {
    const int64_t target = worth_forking() ? std::max<int64_t>(fork_from() / 8, total / (threads * 6))
                                           : total + 1;
    for (const auto& [whole, group_cost] : wholes) {
      const int64_t groups = std::max<int64_t>(1, target / group_cost);
      for (int64_t g = 0; g < whole.last_group; g += groups)
        tasks.push_back({whole.variant, whole.part, g, std::min(g + groups, whole.last_group)});
    }
  }

 private:
  struct Whole {
    Task task;
    int64_t group_cost;
  };
  std::vector<Whole>& wholes = reused<Whole>();
};

}  // namespace tsugiki
