// The threads of one step. A step is one OpenMP region: its first thread walks through the program
// and the others spin for the tasks that it hands out, so that sharing an operation costs a fraction
// of a microsecond where a region of its own costs 6 to 20.
//
// Outside a program, a kernel that is called by itself opens its own region.
#pragma once

#include <sched.h>

#include <atomic>
#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tsugiki {

inline void wait_a_little(int& turns) {
#if defined(__x86_64__)
  _mm_pause();
#endif
  if (++turns % 4096 == 0) sched_yield();  // another thread may need this core to get on
}

// One job at a time: `tasks` calls of a body, each by whoever is free.
//
// A claim is one exchange on `ticket`, which holds the job's number and how many of its tasks are
// left: whoever lowers it owns a task of the very job it saw, however late it comes. The poster
// waits for tasks, never for threads: one that the system has put aside holds up nothing.
class Team {
 public:
  template <class Body>
  void run(int64_t tasks, const Body& body) {
    call_ = [](const void* body, int64_t i) { (*static_cast<const Body*>(body))(i); };
    body_ = &body;
    tasks_ = tasks;
    completed_.store(0, std::memory_order_relaxed);
    ticket_.store((++jobs_ << 32) | uint64_t(tasks), std::memory_order_release);
    while (take_one()) {
    }
    for (int turns = 0; completed_.load(std::memory_order_acquire) < tasks;) wait_a_little(turns);
  }

  // A helper's whole step.
  void help() {
    for (int turns = 0; !stopped_.load(std::memory_order_acquire);)
      if (take_one())
        turns = 0;
      else
        wait_a_little(turns);
  }

  void stop() { stopped_.store(true, std::memory_order_release); }

  // The team of the program that this thread walks through, or null.
  static Team*& current() {
    static thread_local Team* team = nullptr;
    return team;
  }

 private:
  bool take_one() {
    uint64_t seen = ticket_.load(std::memory_order_acquire);
    while (uint32_t(seen) != 0) {
      if (!ticket_.compare_exchange_weak(seen, seen - 1, std::memory_order_acq_rel)) continue;
      call_(body_, tasks_ - int64_t(uint32_t(seen)));  // in order: neighbours in memory follow
      completed_.fetch_add(1, std::memory_order_release);
      return true;
    }
    return false;
  }

  void (*call_)(const void*, int64_t) = nullptr;
  const void* body_ = nullptr;
  int64_t tasks_ = 0;
  uint64_t jobs_ = 0;
  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<int64_t> completed_{0};
  alignas(64) std::atomic<bool> stopped_{false};
};

// body(0) ... body(tasks - 1), in any order. `fork`: whether that is work enough to be shared.
template <class Body>
inline void parallel_for(int64_t tasks, int threads, bool fork, const Body& body) {
  if (!fork || threads == 1 || tasks < 2) {
    for (int64_t i = 0; i < tasks; ++i) body(i);
    return;
  }
  if (Team* team = Team::current()) return team->run(tasks, body);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t i = 0; i < tasks; ++i) body(i);
}

}  // namespace tsugiki
