#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>

#ifdef SHIM_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef SHIM_TSAN
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
}
#endif

extern "C" void shim_switch(void** save, void* load);
asm(R"(
.text
.hidden shim_switch
.globl shim_switch
.type shim_switch, @function
shim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

namespace shim {
namespace {

constexpr std::size_t STACK_BYTES = 256 << 10;
constexpr std::size_t GUARD_BYTES = 4096;
constexpr int SAVED_REGISTERS = 6;

Fiber* left = nullptr;  // whom the last switch left

char* new_stack() {
  void* memory = mmap(nullptr, GUARD_BYTES + STACK_BYTES, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, GUARD_BYTES, PROT_NONE) != 0) std::abort();
  return static_cast<char*>(memory) + GUARD_BYTES;
}

}  // namespace

void Fiber::restart(void (*entry)(), unsigned generation) {
  Life& life = lives_[generation % GENERATIONS];
  if (life.stack == nullptr) life.stack = new_stack();
  stack_ = life.stack;
  size_ = STACK_BYTES;
#ifdef SHIM_ASAN
  __asan_unpoison_memory_region(stack_, size_);
#endif
#ifdef SHIM_TSAN
  if (life.thread == nullptr) life.thread = __tsan_create_fiber(0);
  thread_ = life.thread;
#endif
  void** top = reinterpret_cast<void**>(stack_ + size_);
  *--top = nullptr;  // where entry would return to; keeps its frame aligned
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < SAVED_REGISTERS; i++) *--top = nullptr;
  pointer_ = top;
}

void Fiber::adopt_this_stack() {
#ifdef SHIM_TSAN
  thread_ = __tsan_get_current_fiber();
#endif
}

void Fiber::change(Fiber& from, Fiber& to, [[maybe_unused]] bool last) {
  left = &from;
#ifdef SHIM_TSAN
  constexpr unsigned no_sync = 1;  // a switch orders nothing: fibers are concurrent threads
  __tsan_switch_to_fiber(to.thread_, no_sync);
#endif
#ifdef SHIM_ASAN
  __sanitizer_start_switch_fiber(last ? nullptr : &from.fake_stack_, to.stack_, to.size_);
#endif
  shim_switch(&from.pointer_, to.pointer_);
#ifdef SHIM_ASAN
  const void* bottom = nullptr;
  std::size_t size = 0;
  __sanitizer_finish_switch_fiber(from.fake_stack_, &bottom, &size);
  if (left->stack_ == nullptr) {  // the starter's stack, which only the sanitizer knows
    left->stack_ = static_cast<char*>(const_cast<void*>(bottom));
    left->size_ = size;
  }
#endif
}

void Fiber::arrived() {
#ifdef SHIM_ASAN
  const void* bottom = nullptr;
  std::size_t size = 0;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
  left->stack_ = static_cast<char*>(const_cast<void*>(bottom));
  left->size_ = size;
#endif
}

}  // namespace shim
