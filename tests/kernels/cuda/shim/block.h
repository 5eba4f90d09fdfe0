// One block of CUDA threads: what a thread may ask of those beside it.
//
// Every thread is a fiber; one runs until it waits. A barrier counts arrivals. A warp operation
// lets each lane of its mask deposit a request, and the last one answers all of them.
// Compiled without sanitizers, so that a report names the kernel's own access.
#pragma once

#include <cstddef>
#include <cstdint>

namespace shim {

struct Extent {
  uint32_t x, y, z;
};

struct Place {
  const char* file;
  int line;

  static constexpr Place here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

struct Indices {
  Extent thread, block, block_size, grid;
};

extern const Indices* current;  // of the running thread
extern int32_t current_lane;    // thread % 32

// Ends the launch with this message; the thread does not go on.
[[noreturn]] void fault(const char* message);

void barrier(Place place);

// Answers the requests of the lanes in `mask`; requests[lane] is null for all others.
using Answer = void (*)(void* const* requests, uint32_t mask);
void collective(uint32_t mask, const char* name, Place place, void* request, Answer answer);
void warp_barrier(uint32_t mask, Place place);

// The block's array for this key, 16-byte aligned, of 0xff bytes until a thread writes.
void* shared_array(const void* key, std::size_t bytes);
void* dynamic_shared();

// Copies that copy_async started; the caller carries out what `finished` names.
struct Copy {
  void* to;
  const void* from;
};
void copy_start(Copy copy);
void copy_commit();
bool copy_finished(int groups_left, Copy* copy);  // takes one copy of a finished group, oldest first

// One launch. `run` is called once per thread.
struct Launch {
  Extent grid, block;
  std::size_t shared_bytes, shared_limit;  // dynamic; of a block, dynamic and static
  int order;      // of the threads and blocks; 0: forward, 1: reverse, 2: random
  uint64_t seed;  // of the random order, not 0
  void (*run)(const void* what);
  const void* what;
};
const char* execute(const Launch& launch);  // null, or what went wrong (valid until the next call)

}  // namespace shim
