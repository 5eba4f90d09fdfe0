// Barriers, shuffles and votes. A shuffle orders no memory, as on the device.
#pragma once

#include <cstdint>

#include "block.h"

// The answer to a warp operation reads and writes the stacks of all lanes.
#define SHIM_ANSWER __attribute__((noinline, no_sanitize("address", "thread", "undefined")))

inline void __syncthreads(shim::Place place = shim::Place::here()) { shim::barrier(place); }

inline void __syncwarp(uint32_t mask = ~0u, shim::Place place = shim::Place::here()) {
  shim::warp_barrier(mask, place);
}

namespace shim {

template <class T>
struct Shuffle {
  T value;
  int source;
  T result;

  SHIM_ANSWER static void answer(void* const* requests, uint32_t mask) {
    for (int lane = 0; lane < 32; lane++) {
      if (!(mask >> lane & 1)) continue;
      Shuffle& mine = *static_cast<Shuffle*>(requests[lane]);
      if (!(mask >> mine.source & 1)) fault("a shuffle reads a lane outside its mask");
      mine.result = static_cast<Shuffle*>(requests[mine.source])->value;
    }
  }
};

// One answer per kind of shuffle, so that a mix of kinds is noticed.
template <class T, char kind>
SHIM_ANSWER void answer_shuffle(void* const* requests, uint32_t mask) {
  Shuffle<T>::answer(requests, mask);
}

template <char kind, class T>
T shuffle(uint32_t mask, T value, int source, const char* name, Place place) {
  Shuffle<T> request{value, source & 31, value};
  collective(mask, name, place, &request, answer_shuffle<T, kind>);
  return request.result;
}

struct Vote {
  bool value;
  uint32_t result;

  SHIM_ANSWER static void answer(void* const* requests, uint32_t mask) {
    uint32_t votes = 0;
    for (int lane = 0; lane < 32; lane++)
      if (mask >> lane & 1)
        votes |= uint32_t{static_cast<Vote*>(requests[lane])->value} << lane;
    for (int lane = 0; lane < 32; lane++)
      if (mask >> lane & 1) static_cast<Vote*>(requests[lane])->result = votes;
  }
};

}  // namespace shim

template <class T>
T __shfl_down_sync(uint32_t mask, T value, unsigned delta, int width = 32,
                   shim::Place place = shim::Place::here()) {
  const int lane = shim::current_lane;
  const bool inside = (lane & (width - 1)) + static_cast<int>(delta) < width;
  const int source = inside ? lane + static_cast<int>(delta) : lane;
  return shim::shuffle<'d'>(mask, value, source, "__shfl_down_sync", place);
}

template <class T>
T __shfl_up_sync(uint32_t mask, T value, unsigned delta, int width = 32,
                 shim::Place place = shim::Place::here()) {
  const int lane = shim::current_lane;
  const bool inside = (lane & (width - 1)) >= static_cast<int>(delta);
  const int source = inside ? lane - static_cast<int>(delta) : lane;
  return shim::shuffle<'u'>(mask, value, source, "__shfl_up_sync", place);
}

template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int lanes, int width = 32,
                  shim::Place place = shim::Place::here()) {
  const int lane = shim::current_lane;
  const int source = lane ^ lanes;
  const bool inside = (source & ~(width - 1)) <= (lane & ~(width - 1));
  return shim::shuffle<'x'>(mask, value, inside ? source : lane, "__shfl_xor_sync", place);
}

template <class T>
T __shfl_sync(uint32_t mask, T value, int source, int width = 32,
              shim::Place place = shim::Place::here()) {
  const int start = shim::current_lane & ~(width - 1);
  return shim::shuffle<'i'>(mask, value, start | (source & (width - 1)), "__shfl_sync", place);
}

inline uint32_t __ballot_sync(uint32_t mask, int predicate,
                              shim::Place place = shim::Place::here()) {
  shim::Vote request{predicate != 0, 0};
  shim::collective(mask, "__ballot_sync", place, &request, shim::Vote::answer);
  return request.result;
}

inline int __any_sync(uint32_t mask, int predicate, shim::Place place = shim::Place::here()) {
  return __ballot_sync(mask, predicate, place) != 0;
}

inline int __all_sync(uint32_t mask, int predicate, shim::Place place = shim::Place::here()) {
  return __ballot_sync(mask, !predicate, place) == 0;
}
