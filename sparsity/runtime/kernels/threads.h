// A pool of threads that spin shortly between two pieces of work and then sleep. Not OpenMP: torch brings its own, and
// two OpenMP pools spin against each other.
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

// The threads of a parent do not exist in a forked child: it starts with a new pool, and the old one is left alone.
static Pool *&the_pool() {
  static Pool *pool = new Pool;
  return pool;
}
static inline void run_on_pool(int threads, const std::function<void(int)> &work) {
  if (threads == 1) return work(0);
  static std::once_flag once;
  std::call_once(once, [] { pthread_atfork(nullptr, nullptr, [] { the_pool() = new Pool; }); });
  the_pool()->run(threads, work);
}
