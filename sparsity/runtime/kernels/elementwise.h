// Steps that touch each value once: affine, sums, means.
#pragma once
#include "pack.h"
#include "step.h"

struct AffineStep : Step {
  int channels;
  long inner;
  InputAffine affine;
  void run(const Buffers &buffers, long samples, int, double from, double to, Scratch &) const override {
    const Range range(samples * channels, from, to);
    for (long i = range.first; i < range.last; i++) {
      const float *x = buffers[reads[0]] + i * inner;
      float *y = buffers[target] + i * inner;
      with_affine(affine, [&](auto *kind) {
        const std::remove_pointer_t<decltype(kind)> apply(affine, (int)(i % channels));
        for (long j = 0; j < inner; j += VN) {
          const int lanes = (int)std::min<long>(VN, inner - j);
          store_first(y + j, apply(load_lanes(x + j, 0, lanes)), lanes);
        }
      });
    }
  }
  double cost() const override { return (double)channels * inner / VN; }
};

// Affine whose channels are the innermost dimension: rows of features.
struct RowAffineStep : AffineStep {
  void run(const Buffers &buffers, long samples, int, double from, double to, Scratch &) const override {
    const Range range(samples, from, to);
    for (long i = range.first; i < range.last; i++)
      apply_to_row(affine, buffers[reads[0]] + i * channels, buffers[target] + i * channels, channels);
  }
};

struct AddStep : Step {
  long floats;
  float scale;
  int activation;
  void run(const Buffers &buffers, long samples, int, double from, double to, Scratch &) const override {
    const Range range(ceil_div<long>(samples * floats, VN), from, to);
    const long total = samples * floats;
    float *y = buffers[target];
    for (long k = range.first; k < range.last; k++) {
      const long at = k * VN;
      const int lanes = (int)std::min<long>(VN, total - at);
      vf v = load_lanes(buffers[reads[0]] + at, 0, lanes);
      for (size_t i = 1; i < reads.size(); i++) v += load_lanes(buffers[reads[i]] + at, 0, lanes);
      if (scale != 1.f) v *= scale;
      if (activation == RELU) v = relu(v);
      store_first(y + at, v, lanes);
      if (activation > RELU) activate_row(y + at, lanes, activation);
    }
  }
  double cost() const override { return (double)floats * reads.size() / VN; }
};

struct MeanStep : Step {
  int channels;
  long inner;
  InputAffine affine;
  void run(const Buffers &buffers, long samples, int, double from, double to, Scratch &) const override {
    const Range range(samples * channels, from, to);
    for (long i = range.first; i < range.last; i++) {
      const float *x = buffers[reads[0]] + i * inner;
      vf total{};
      with_affine(affine, [&](auto *kind) {
        const std::remove_pointer_t<decltype(kind)> apply(affine, (int)(i % channels));
        for (long j = 0; j < inner; j += VN) {
          const int lanes = (int)std::min<long>(VN, inner - j);
          vf v = apply(load_lanes(x + j, 0, lanes));
          total += lanes < VN ? keep_lanes(v, 0, lanes) : v;
        }
      });
      buffers[target][i] = sum(total) / inner;
    }
  }
  double cost() const override { return (double)channels * inner / VN; }
};
