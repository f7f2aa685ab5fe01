// A plan: steps on buffers, run in one parallel region with a barrier where one step needs another's result.
#pragma once
#include <time.h>

#include <exception>
#include <mutex>

#include "step.h"
#include "threads.h"

class Plan {
 public:
  int add_buffer(size_t floats) {
    buffers_.push_back({floats, 0, false});
    return (int)buffers_.size() - 1;
  }
  int add_step(std::unique_ptr<Step> step) {
    steps_.push_back(std::move(step));
    return (int)steps_.size() - 1;
  }
  void place(int buffer, size_t offset) { buffers_[buffer].offset = offset, buffers_[buffer].placed = true; }
  const Step &step(int index) const { return *steps_[index]; }

  // Group steps into stages: a step comes one stage after the last one that it must wait for.
  void finish(const std::vector<int> &inputs, const std::vector<int> &outputs, size_t arena) {
    inputs_ = inputs, outputs_ = outputs, arena_ = arena;
    stages_.clear();
    std::vector<int> level(steps_.size(), 0);
    for (size_t i = 0; i < steps_.size(); i++) {
      for (size_t j = 0; j < i; j++)
        if (level[j] >= level[i] && depends(*steps_[i], *steps_[j])) level[i] = level[j] + 1;
      if (level[i] == (int)stages_.size()) stages_.emplace_back();
      stages_[level[i]].push_back((int)i);
    }
  }

  void run(const float *const *inputs, float *const *outputs, long samples, int threads, double *seconds) {
    std::unique_ptr<Context> context = take();
    const long chunk = samples_at_once(samples);
    float *arena = context->arena.get(0, arena_ * chunk + VN);
    while ((int)context->scratch.size() < threads) context->scratch.emplace_back(new Scratch);
    std::vector<std::vector<double>> spent(seconds ? threads : 0, std::vector<double>(steps_.size(), 0));
    std::vector<std::exception_ptr> failures(threads);
    Barrier barrier(threads);
    run_together(threads, [&](int thread) {
      Buffers at;
      for (long done = 0; done < samples; done += chunk) {
        try {
          if (!failures[thread]) at = buffers_at(inputs, outputs, done, arena, chunk);
        } catch (...) {
          failures[thread] = std::current_exception();
        }
        for (size_t s = 0; s < stages_.size(); s++) {
          if (s || done) barrier.wait();
          try {
            if (!failures[thread])
              stage(stages_[s], at, std::min(chunk, samples - done), thread, threads, *context->scratch[thread],
                    seconds ? spent[thread].data() : nullptr);
          } catch (...) {
            failures[thread] = std::current_exception();  // the others still wait at the barriers
          }
        }
      }
    });
    if (seconds)
      for (size_t i = 0; i < steps_.size(); i++) {
        seconds[i] = 0;
        for (int t = 0; t < threads; t++) seconds[i] = std::max(seconds[i], spent[t][i]);
      }
    give(std::move(context));
    for (auto &failure : failures)
      if (failure) std::rethrow_exception(failure);
  }

 private:
  struct Buffer {
    size_t floats, offset;
    bool placed;
  };
  struct Context {  // the memory of one run: several runs of a plan may be under way
    Scratch arena;
    std::vector<std::unique_ptr<Scratch>> scratch;
  };

  // A batch goes through the plan in equal pieces whose buffers fit into the caches. Their size does not depend on the
  // number of threads, for results may depend on it: few rows are summed in another order than many.
  long samples_at_once(long samples) const {
    constexpr double budget = 8e6;  // bytes
    const long fit = arena_ ? (long)(budget / (4.0 * arena_)) : samples;
    if (samples <= fit) return samples;
    const long even = fit < 2 ? 1 : fit / 2 * 2, piece = ceil_div(samples, ceil_div(samples, even));
    return even == 1 ? 1 : round_up(piece, 2L);
  }

  Buffers buffers_at(const float *const *inputs, float *const *outputs, long done, float *arena, long chunk) const {
    Buffers at(buffers_.size(), nullptr);
    for (size_t i = 0; i < buffers_.size(); i++)
      if (buffers_[i].placed) at[i] = arena + buffers_[i].offset * chunk;
    for (size_t i = 0; i < inputs_.size(); i++)
      at[inputs_[i]] = const_cast<float *>(inputs[i]) + buffers_[inputs_[i]].floats * done;
    for (size_t i = 0; i < outputs_.size(); i++) at[outputs_[i]] = outputs[i] + buffers_[outputs_[i]].floats * done;
    return at;
  }

  bool overlap(int a, int b) const {
    if (a == b) return true;
    const Buffer &x = buffers_[a], &y = buffers_[b];
    return x.placed && y.placed && x.offset < y.offset + y.floats && y.offset < x.offset + x.floats;
  }
  bool depends(const Step &later, const Step &earlier) const {
    if (overlap(later.target, earlier.target)) return true;
    for (int r : later.reads)
      if (overlap(r, earlier.target)) return true;
    for (int r : earlier.reads)
      if (overlap(r, later.target)) return true;
    return false;
  }

  // A thread's share of a stage: the steps' costs laid end to end and cut into equal parts.
  void stage(const std::vector<int> &steps, const Buffers &at, long samples, int thread, int threads, Scratch &scratch,
             double *spent) const {
    double total = 0, before = 0;
    for (int i : steps) total += cost_of(i);
    const double from = total * thread / threads, to = total * (thread + 1) / threads;
    for (int i : steps) {
      const double cost = cost_of(i);
      double a = std::max(0.0, (from - before) / cost), b = std::min(1.0, (to - before) / cost);
      if (thread == threads - 1 && i == steps.back()) b = 1;
      before += cost;
      if (a >= b) continue;
      const double start = spent ? thread_seconds() : 0;
      steps_[i]->run(at, samples, threads, a, b, scratch);
      if (spent) spent[i] += thread_seconds() - start;
    }
  }
  double cost_of(int step) const { return std::max(1.0, steps_[step]->cost()); }  // a layer without weights has its bias
  static double thread_seconds() {
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
  }

  std::unique_ptr<Context> take() {
    std::lock_guard<std::mutex> lock(mutex_);
    if (idle_.empty()) return std::make_unique<Context>();
    auto context = std::move(idle_.back());
    idle_.pop_back();
    return context;
  }
  void give(std::unique_ptr<Context> context) {
    std::lock_guard<std::mutex> lock(mutex_);
    idle_.push_back(std::move(context));
  }

  std::vector<Buffer> buffers_;
  std::vector<std::unique_ptr<Step>> steps_;
  std::vector<std::vector<int>> stages_;
  std::vector<int> inputs_, outputs_;
  size_t arena_ = 0;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Context>> idle_;
};
