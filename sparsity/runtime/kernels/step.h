// What a plan is made of: steps on buffers, each cut into equal shares for the threads.
#pragma once
#include <cstdlib>
#include <memory>
#include <new>

#include "activation.h"

// Memory of one thread that grows and is kept.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch &) = delete;
  Scratch &operator=(const Scratch &) = delete;
  ~Scratch() {
    for (auto &s : slots_) std::free(s.data);
  }
  float *get(int slot, size_t floats) {
    Slot &s = slots_[slot];
    if (s.size < floats) {
      std::free(s.data);
      s.size = 0;
      s.data = (float *)std::aligned_alloc(4096, round_up<size_t>(floats * 4 + VECTOR_BYTES, 4096));
      if (!s.data) throw std::bad_alloc();
      s.size = floats;
    }
#ifdef SPARSITY_POISON  // tests: whatever is read before it is written shows in the result
    std::memset(s.data, 0xff, s.size * 4);
#endif
    return s.data;
  }

 private:
  struct Slot {
    float *data = nullptr;
    size_t size = 0;
  } slots_[3];
};

typedef std::vector<float *> Buffers;  // where each buffer of the plan lies in this run

struct Step {
  std::vector<int> reads;
  int target = 0;
  virtual ~Step() = default;
  // Compute the share [from, to) of the work, both in 0..1, for this many samples.
  virtual void run(const Buffers &buffers, long samples, int threads, double from, double to,
                   Scratch &scratch) const = 0;
  virtual double cost() const = 0;       // relative, per sample: for balance between steps that run side by side
  virtual void weight(float *) const {}  // rebuild the dense weight into zeroed memory
  virtual size_t bytes() const { return 0; }
  virtual size_t nonzeros() const { return 0; }
};

// The units [first, last) of a share of n.
struct Range {
  long first, last;
  Range(long n, double from, double to) : first((long)(n * from)), last(to >= 1 ? n : (long)(n * to)) {}
};

struct Epilogue {
  int activation = NONE, residual = -1;
};
