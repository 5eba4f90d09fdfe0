#include "block.h"

#include <immintrin.h>
#include <signal.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "fiber.h"

#ifdef SHIM_TSAN
extern "C" {
void __tsan_acquire(void* what);
void __tsan_release(void* what);
}
#define ACQUIRE(what) __tsan_acquire(what)
#define RELEASE(what) __tsan_release(what)
#else
#define ACQUIRE(what)
#define RELEASE(what)
#endif

namespace shim {

const Indices* current = nullptr;
int32_t current_lane = 0;

namespace {

constexpr int WARP = 32;
constexpr std::size_t SHARED_ALIGNMENT = 16;

struct Warp;

struct Thread {
  Fiber fiber;
  Indices indices;
  Warp* warp;
  int number, lane;
  enum { READY, WAITING, DONE } state;
  const char* waits_at;
  Place place;
  // cp.async: what is under way, and the number of the group that each copy belongs to
  std::deque<std::pair<int, Copy>> copies;
  int groups;
};

struct Warp {
  Thread* lanes[WARP];
  uint32_t alive, pending;
  void* requests[WARP];
  uint32_t masks[WARP];
  Answer answers[WARP];
};

struct SharedArray {
  const void* key;
  void* memory;
};

// The one block that runs; launches are serialised by whoever calls execute.
struct Block {
  std::vector<std::unique_ptr<Thread>> threads;  // a pool: the first `size` play
  std::vector<Warp> warps;
  int size, alive, at_barrier;
  Place barrier_place;
  Fiber starter;
  Thread* running;
  std::vector<SharedArray> shared;
  std::vector<void*> old_shared;  // freed when the launch ends, so that no address is used twice
  std::size_t shared_bytes;  // of `shared`
  const Launch* launch;
  std::string message;
  bool faulted;
  char begins, ends;  // what ThreadSanitizer takes for locks
};
Block block;

void go(Thread& thread) {
  block.running = &thread;
  current = &thread.indices;
  current_lane = thread.lane;
  Fiber::change(block.starter, thread.fiber);
}

void wait(const char* name, Place place) {
  Thread& me = *block.running;
  me.state = Thread::WAITING;
  me.waits_at = name;
  me.place = place;
  Fiber::change(me.fiber, block.starter);
}

std::string describe(const Place& place) {
  const char* slash = std::strrchr(place.file, '/');
  return std::string(slash ? slash + 1 : place.file) + ":" + std::to_string(place.line);
}

std::string describe(const Extent& at) {
  return "(" + std::to_string(at.x) + ", " + std::to_string(at.y) + ", " + std::to_string(at.z) +
         ")";
}

// Who waits where, neighbours together.
std::string waiting() {
  std::string text;
  for (int first = 0, last; first < block.size; first = last) {
    const Thread& thread = *block.threads[first];
    last = first + 1;
    if (thread.state != Thread::WAITING) continue;
    while (last < block.size && block.threads[last]->state == Thread::WAITING &&
           block.threads[last]->place.line == thread.place.line)
      last++;
    text += "\n  threads " + std::to_string(first) + " to " + std::to_string(last - 1) +
            " wait at " + thread.waits_at + ", " + describe(thread.place);
  }
  return text;
}

void note_fault(const std::string& message) {
  block.faulted = true;
  block.message = message + "\n  block " + describe(current->block) + ", thread " +
                  describe(current->thread) + waiting();
}

void release_barrier() {
  block.at_barrier = 0;
  for (int i = 0; i < block.size; i++)
    if (Thread& thread = *block.threads[i];
        thread.state == Thread::WAITING && thread.waits_at == std::string("__syncthreads"))
      thread.state = Thread::READY;
}

void play() {
  Fiber::arrived();
  ACQUIRE(&block.begins);
  block.launch->run(block.launch->what);
  RELEASE(&block.ends);
  Thread& me = *block.running;
  me.state = Thread::DONE;
  block.alive--;
  me.warp->alive &= ~(1u << me.lane);
  if (block.at_barrier) fault("a thread returned while others wait at __syncthreads");
  if (!me.copies.empty()) fault("a thread returned with copy_async under way");
  Fiber::change(me.fiber, block.starter, true);
  std::abort();
}

void* poisoned(std::size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, SHARED_ALIGNMENT, std::max<std::size_t>(bytes, 1)) != 0) std::abort();
  volatile char* byte = static_cast<volatile char*>(memory);  // memset is the sanitizers'
  for (std::size_t i = 0; i < bytes; i++) byte[i] = static_cast<char>(0xff);
  return memory;
}

void prepare_block(Extent index, unsigned generation) {
  const Launch& launch = *block.launch;
  for (SharedArray& array : block.shared) block.old_shared.push_back(array.memory);
  block.shared.clear();
  block.shared_bytes = 0;
  block.alive = block.size;
  block.at_barrier = 0;
  for (Warp& warp : block.warps) warp = Warp{};
  for (int i = 0; i < block.size; i++) {
    Thread& thread = *block.threads[i];
    const uint32_t n = static_cast<uint32_t>(i);
    thread.indices = {{n % launch.block.x, n / launch.block.x % launch.block.y,
                       n / (launch.block.x * launch.block.y)},
                      index, launch.block, launch.grid};
    thread.number = i;
    thread.lane = i % WARP;
    thread.warp = &block.warps[i / WARP];
    thread.warp->lanes[thread.lane] = &thread;
    thread.warp->alive |= 1u << thread.lane;
    thread.state = Thread::READY;
    thread.copies.clear();
    thread.groups = 0;
    thread.fiber.restart(play, generation);
  }
}

uint64_t random_state;

uint32_t random_below(uint32_t bound) {  // xorshift64
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return static_cast<uint32_t>(random_state % bound);
}

void arrange(std::vector<int>& order) {
  for (std::size_t i = order.size() - 1; i > 0; i--)
    std::swap(order[i], order[random_below(static_cast<uint32_t>(i) + 1)]);
}

std::vector<int> ordered(int count) {
  std::vector<int> order(count);
  for (int i = 0; i < count; i++) order[i] = block.launch->order == 1 ? count - 1 - i : i;
  if (block.launch->order == 2) arrange(order);
  return order;
}

void run_block() {
  std::vector<int> order = ordered(block.size);
  while (block.alive) {
    bool progress = false;
    if (block.launch->order == 2) arrange(order);
    for (int i : order) {
      if (block.threads[i]->state != Thread::READY) continue;
      progress = true;
      go(*block.threads[i]);
      if (block.faulted) return;
    }
    if (!progress) {
      note_fault("no thread can go on");
      return;
    }
  }
}

void end_launch() {
  for (SharedArray& array : block.shared) std::free(array.memory);
  for (void* memory : block.old_shared) std::free(memory);
  block.shared.clear();
  block.old_shared.clear();
}

#if !defined(SHIM_ASAN) && !defined(SHIM_TSAN)
// A bad address ends the launch, not the process.
void on_bad_address(int) { fault("bad or misaligned address, or a thread's stack is full"); }

class AddressGuard {
 public:
  AddressGuard() : stack_(64 << 10) {
    stack_t alternative{};
    alternative.ss_sp = stack_.data();
    alternative.ss_size = stack_.size();
    sigaltstack(&alternative, &old_stack_);
    struct sigaction action{};
    action.sa_handler = on_bad_address;
    action.sa_flags = SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &old_action_);
  }
  ~AddressGuard() {
    sigaction(SIGSEGV, &old_action_, nullptr);
    sigaltstack(&old_stack_, nullptr);
  }

 private:
  std::vector<char> stack_;
  stack_t old_stack_{};
  struct sigaction old_action_{};
};
#else
class AddressGuard {};  // the sanitizers tell more
#endif

// CuPy compiles with -ftz=true: float denormals are zero, as operand and as result.
class FlushDenormals {
 public:
  FlushDenormals() : old_(_mm_getcsr()) { _mm_setcsr(old_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(old_); }

 private:
  unsigned old_;
};

void run_grid() {
  const Extent& grid = block.launch->grid;
  unsigned generation = 0;
  for (int i : ordered(static_cast<int>(grid.x * grid.y * grid.z))) {
    const uint32_t n = static_cast<uint32_t>(i);
    prepare_block({n % grid.x, n / grid.x % grid.y, n / (grid.x * grid.y)}, generation++);
    run_block();
    if (block.faulted) return;
  }
}

}  // namespace

void fault(const char* message) {
  note_fault(message);
  Fiber::change(block.running->fiber, block.starter, true);
  std::abort();
}

void barrier(Place place) {
  RELEASE(&block.at_barrier);
  if (block.at_barrier && block.barrier_place.line != place.line)
    fault("threads of a block meet in different __syncthreads");
  if (block.alive != block.size) fault("__syncthreads after a thread of the block returned");
  block.barrier_place = place;
  if (++block.at_barrier == block.alive)
    release_barrier();
  else
    wait("__syncthreads", place);
  ACQUIRE(&block.at_barrier);
}

void collective(uint32_t mask, const char* name, Place place, void* request, Answer answer) {
  Thread& me = *block.running;
  Warp& warp = *me.warp;
  me.place = place;
  me.waits_at = name;
  if (!(mask >> me.lane & 1)) fault("a lane is not in the mask it gives to a warp operation");
  const int first = me.number - me.lane;
  const int lanes = std::min(WARP, block.size - first);
  if (lanes < WARP) mask &= (1u << lanes) - 1;
  if (mask & ~warp.alive) fault("the mask of a warp operation names a lane that returned");
  warp.requests[me.lane] = request;
  warp.masks[me.lane] = mask;
  warp.answers[me.lane] = answer;
  warp.pending |= 1u << me.lane;
  if ((warp.pending & mask) != mask) {
    wait(name, place);
    return;
  }
  void* requests[WARP] = {};
  for (int lane = 0; lane < lanes; lane++) {
    if (!(mask >> lane & 1)) continue;
    if (warp.answers[lane] != answer || warp.masks[lane] != mask ||
        warp.lanes[lane]->place.line != place.line)
      fault("lanes of one mask meet in different warp operations");
    requests[lane] = warp.requests[lane];
  }
  answer(requests, mask);
  warp.pending &= ~mask;
  for (int lane = 0; lane < lanes; lane++)
    if (mask >> lane & 1) warp.lanes[lane]->state = Thread::READY;
}

void warp_barrier(uint32_t mask, Place place) {
  [[maybe_unused]] Warp* warp = block.running->warp;
  RELEASE(warp);
  collective(mask, "__syncwarp", place, nullptr, [](void* const*, uint32_t) {});
  ACQUIRE(warp);
}

void* shared_array(const void* key, std::size_t bytes) {
  for (SharedArray& array : block.shared)
    if (array.key == key) return array.memory;
  block.shared_bytes += (bytes + SHARED_ALIGNMENT - 1) / SHARED_ALIGNMENT * SHARED_ALIGNMENT;
  if (block.shared_bytes > block.launch->shared_limit)
    fault("a block takes more shared memory than the GPU has");
  block.shared.push_back({key, poisoned(bytes)});
  return block.shared.back().memory;
}

void* dynamic_shared() { return shared_array(&block, block.launch->shared_bytes); }

void copy_start(Copy copy) {
  Thread& me = *block.running;
  me.copies.push_back({me.groups, copy});
}

void copy_commit() { block.running->groups++; }

bool copy_finished(int groups_left, Copy* copy) {
  Thread& me = *block.running;
  if (me.copies.empty() || me.copies.front().first >= me.groups - groups_left) return false;
  *copy = me.copies.front().second;
  me.copies.pop_front();
  return true;
}

const char* execute(const Launch& launch) {
  block.launch = &launch;
  block.size = static_cast<int>(launch.block.x * launch.block.y * launch.block.z);
  block.faulted = false;
  random_state = launch.seed;
  while (static_cast<int>(block.threads.size()) < block.size)
    block.threads.push_back(std::make_unique<Thread>());
  block.warps.resize((block.size + WARP - 1) / WARP);
  block.starter.adopt_this_stack();
  const FlushDenormals flush;
  const AddressGuard guard;
  RELEASE(&block.begins);
  run_grid();
  ACQUIRE(&block.ends);
  end_launch();
  return block.faulted ? block.message.c_str() : nullptr;
}

}  // namespace shim
