// Steps that touch each value a few times: affine, sums, pooling, means.
#pragma once
#include <limits>

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

struct PoolStep : Step {
  Window w;
  int out_height, out_width;
  bool average, count_padding;
  void run(const Buffers &buffers, long samples, int, double from, double to, Scratch &) const override {
    const Range range(samples * w.inputs, from, to);
    for (long i = range.first; i < range.last; i++) {
      const float *x = buffers[reads[0]] + i * w.height * w.width;
      float *y = buffers[target] + i * out_height * out_width;
      for (int r = 0; r < out_height; r++)
        for (int c = 0; c < out_width; c++) *y++ = one(x, r * w.sy - w.py, c * w.sx - w.px);
    }
  }
  double cost() const override { return (double)w.inputs * out_height * out_width * w.taps() / 4; }

 private:
  float one(const float *x, int top, int left) const {
    // As torch counts: the window ends at the padded edge, and padding beyond that never counts.
    const int bottom = std::min(top + w.ky, w.height + w.py), right = std::min(left + w.kx, w.width + w.px);
    const int padded = (bottom - top) * (right - left);
    const int y0 = std::max(top, 0), x0 = std::max(left, 0), y1 = std::min(bottom, w.height), x1 = std::min(right, w.width);
    float best = -std::numeric_limits<float>::infinity(), total = 0;
    for (int r = y0; r < y1; r++)
      for (int c = x0; c < x1; c++) {
        const float v = x[(long)r * w.width + c];
        if (average) total += v;
        else if (v > best || v != v) best = v;  // a NaN stays: no later value is above it
      }
    if (average && (y0 >= y1 || x0 >= x1)) return 0;
    return average ? total / (count_padding ? padded : (y1 - y0) * (x1 - x0)) : best;
  }
};
