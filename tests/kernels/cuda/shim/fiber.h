// A stack of its own and the switch between stacks; the sanitizers are told of both.
// Knows nothing of CUDA. x86-64, System V.
#pragma once

#include <cstddef>

namespace shim {

// Where control stands: a fiber's, or that of whoever starts fibers.
class Fiber {
 public:
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The next switch to it calls `entry` (which must not return) on an empty stack.
  // `generation` tells ThreadSanitizer apart what the same fiber plays one after the other; each has
  // a stack of its own, or what one left there would look like a race with the next.
  void restart(void (*entry)(), unsigned generation);

  void adopt_this_stack();  // for the starter, before it first switches away

  // Leaves `from` where it stands and goes on with `to`. `last`: nobody returns to `from`.
  static void change(Fiber& from, Fiber& to, bool last = false);
  static void arrived();  // first thing on a fresh stack

 private:
#ifdef SHIM_TSAN
  static constexpr unsigned GENERATIONS = 3;
#else
  static constexpr unsigned GENERATIONS = 1;
#endif
  struct Life {
    char* stack = nullptr;
    void* thread = nullptr;  // ThreadSanitizer's view
  };

  void* pointer_ = nullptr;  // of the stack, while it does not run
  char* stack_ = nullptr;    // lowest usable address
  std::size_t size_ = 0;
  Life lives_[GENERATIONS];
  void* thread_ = nullptr;
  void* fake_stack_ = nullptr;  // AddressSanitizer's
};

}  // namespace shim
