// Threads: those that torch has already, or else a pool of our own whose threads spin shortly between two pieces of work
// and then sleep.
#pragma once
#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

static inline void pause_cpu() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spin a little, then give the core away between looks: with more threads than cores pure spinning would starve the
// others.
template <class Ready>
static void spin_until(Ready ready) {
  for (int spins = 0; !ready(); spins++) {
    if (spins < 4000) pause_cpu();
    else sched_yield();
  }
}

class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads) {}
  void wait() {
    if (threads_ == 1) return;
    unsigned phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
    } else {
      spin_until([&] { return phase_.load(std::memory_order_acquire) != phase; });
    }
  }

 private:
  const int threads_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<unsigned> phase_{0};
};

class Pool {
 public:
  // Run work(0) .. work(threads - 1) at once; work(0) on the calling thread. One caller at a time.
  void run(int threads, const std::function<void(int)> &work) {
    std::lock_guard<std::mutex> one_caller(caller_);
    while ((int)workers_ < threads - 1) {
      std::thread(&Pool::loop, this, ++workers_, generation_.load()).detach();
    }
    {
      std::lock_guard<std::mutex> lock(sleep_);
      work_ = &work;
      active_ = threads;
      running_.store(threads - 1, std::memory_order_relaxed);
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    work(0);
    spin_until([&] { return running_.load(std::memory_order_acquire) == 0; });
  }

 private:
  void loop(int index, unsigned seen) {
    for (;;) {
      for (int spins = 0; spins < 20000 && generation_.load(std::memory_order_acquire) == seen; spins++) pause_cpu();
      const std::function<void(int)> *work;
      {
        std::unique_lock<std::mutex> lock(sleep_);
        wake_.wait(lock, [&] { return generation_.load(std::memory_order_relaxed) != seen; });
        seen = generation_.load(std::memory_order_relaxed);
        work = index < active_ ? work_ : nullptr;
      }
      if (work) {
        (*work)(index);
        running_.fetch_sub(1, std::memory_order_release);
      }
    }
  }

  std::mutex caller_, sleep_;
  std::condition_variable wake_;
  int workers_ = 0, active_ = 0;
  const std::function<void(int)> *work_ = nullptr;
  std::atomic<unsigned> generation_{0};
  std::atomic<int> running_{0};
};

// The OpenMP library that torch uses, by its plain C names. Its threads spin for a while after each of torch's operations,
// so a second pool would have to wait for the cores that they hold.
struct OpenMP {
  void (*parallel)(void (*work)(void *), void *data, unsigned threads, unsigned flags) = nullptr;
  int (*num_threads)() = nullptr;
  int (*thread_num)() = nullptr;
};
static OpenMP the_openmp;

struct Team {
  const int threads;
  const std::function<void(int)> &work;
  bool smaller = false;
};
static void in_team(void *data) {
  Team &team = *static_cast<Team *>(data);
  // Inside of another parallel region, or under a limit, a team has less threads than were asked for.
  if (the_openmp.num_threads() == team.threads) team.work(the_openmp.thread_num());
  else if (the_openmp.thread_num() == 0) team.smaller = true;
}

// The threads of a parent do not exist in a forked child: it starts with a new pool, and the old one is left alone.
// OpenMP would wait for them.
static Pool *&the_pool() {
  static Pool *pool = new Pool;
  return pool;
}
static void in_child() {
  the_pool() = new Pool;
  the_openmp = OpenMP();
}
static void watch_forks() {
  static std::once_flag once;
  std::call_once(once, [] { pthread_atfork(nullptr, nullptr, in_child); });
}

// Run work(0) .. work(threads - 1) at once; work(0) on the calling thread.
static inline void run_together(int threads, const std::function<void(int)> &work) {
  if (threads == 1) return work(0);
  watch_forks();
  if (the_openmp.parallel) {
    Team team{threads, work};
    the_openmp.parallel(in_team, &team, (unsigned)threads, 0);
    if (!team.smaller) return;
  }
  the_pool()->run(threads, work);
}

// Addresses of GOMP_parallel, omp_get_num_threads and omp_get_thread_num, in this order; all null for the own pool.
static inline void use_openmp(void *parallel, void *num_threads, void *thread_num) {
  watch_forks();
  the_openmp = {reinterpret_cast<decltype(OpenMP::parallel)>(parallel),
                reinterpret_cast<decltype(OpenMP::num_threads)>(num_threads),
                reinterpret_cast<decltype(OpenMP::thread_num)>(thread_num)};
}
