// The threads of one step. A step is one OpenMP region: its first thread walks through the program
// and the others spin for the tasks that it hands out, so that sharing an operation costs a fraction
// of a microsecond where a region of its own costs 6 to 20.
//
// Outside a program, a kernel that is called by itself opens its own region.
#pragma once

#include <sched.h>

#include <atomic>
#include <cstdint>
#include <vector>
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

// One job at a time: `tasks` calls of a body. Each thread has a share of its own, consecutive tasks,
// and helps with the others' when it is done. Operations whose tasks go along the same outputs thus
// find in a core's cache what that core wrote: a line that another core wrote last costs 50 to 300 ns.
//
// A claim is one exchange on a share's `ticket`, which holds the job's number and how many of the
// share's tasks are left: whoever lowers it owns a task of the very job it saw, however late it comes.
// The poster waits for tasks, never for threads: one that the system has put aside holds up nothing.
class Team {
 public:
  explicit Team(int threads) : shares_(threads) {}

  // The caller is the team's thread 0.
  template <class Body>
  void run(int64_t tasks, const Body& body) {
    call_ = [](const void* body, int64_t i) { (*static_cast<const Body*>(body))(i); };
    body_ = &body;
    ++jobs_, posted_ += tasks;
    const int64_t count = int64_t(shares_.size());
    for (int64_t s = count - 1; s >= 0; --s) {
      const int64_t first = tasks * s / count, last = tasks * (s + 1) / count;
      shares_[s].last = last;
      shares_[s].ticket.store(jobs_ << 32 | uint64_t(last - first), std::memory_order_release);
    }
    while (take_one(0)) {
    }
    for (int turns = 0; completed() < posted_;) wait_a_little(turns);
  }

  // A helper's whole step; `thread`: 1, 2, ...
  void help(int thread) {
    for (int turns = 0; !stopped_.load(std::memory_order_acquire);)
      if (take_one(thread))
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
  struct alignas(128) Share {
    std::atomic<uint64_t> ticket{0};
    int64_t last = 0;                   // exclusive; of the ticket's job
    alignas(64) std::atomic<int64_t> completed{0};  // by this share's thread, since the team began
  };

  // The thread's own tasks in order, for neighbours in memory follow; then the others'.
  bool take_one(int thread) {
    const int count = int(shares_.size());
    for (int s = 0; s < count; ++s)
      if (take_from(shares_[(thread + s) % count], shares_[thread])) return true;
    return false;
  }

  bool take_from(Share& share, Share& own) {
    uint64_t seen = share.ticket.load(std::memory_order_acquire);
    while (uint32_t(seen) != 0) {
      if (!share.ticket.compare_exchange_weak(seen, seen - 1, std::memory_order_acq_rel)) continue;
      call_(body_, share.last - int64_t(uint32_t(seen)));
      own.completed.fetch_add(1, std::memory_order_release);
      return true;
    }
    return false;
  }

  int64_t completed() const {
    int64_t total = 0;
    for (const Share& share : shares_) total += share.completed.load(std::memory_order_acquire);
    return total;
  }

  void (*call_)(const void*, int64_t) = nullptr;
  const void* body_ = nullptr;
  uint64_t jobs_ = 0;
  int64_t posted_ = 0;  // tasks since the team began
  std::vector<Share> shares_;
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
