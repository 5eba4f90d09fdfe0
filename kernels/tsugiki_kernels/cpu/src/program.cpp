// A recorded step: operations one after the other, by one team of threads.

#include <omp.h>

#include "team.h"

namespace tsugiki {

struct Operation {
  union {
    void (*function)(const void*);
    int32_t (*checked)(const void*);  // returns 0, or says that its arguments are wrong
  };
  const void* arguments;  // its struct
  int64_t checks;
};

// The place of the first operation that refused its arguments, or -1.
int64_t walk(const Operation* operations, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const Operation& operation = operations[i];
    if (!operation.checks)
      operation.function(operation.arguments);
    else if (operation.checked(operation.arguments))
      return i;
  }
  return -1;
}

}  // namespace tsugiki

using namespace tsugiki;

extern "C" int64_t tsugiki_run(const Operation* operations, int64_t count, int32_t threads) {
  if (threads == 1) return walk(operations, count);
  Team team(threads);
  int64_t failed = -1;
#pragma omp parallel num_threads(threads)
  if (omp_get_thread_num() == 0) {
    Team::current() = &team;
    failed = walk(operations, count);
    Team::current() = nullptr;
    team.stop();
  } else {
    team.help(omp_get_thread_num());
  }
  return failed;
}
