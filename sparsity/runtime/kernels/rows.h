// Steps on rows of features: normalisation, transposition; and the elementwise activations and products between layers.
#pragma once
#include "step.h"

struct ActivationStep : Step {
  long floats;
  int activation;
  void run(const Buffers &buffers, long samples, int, double from, double to, Scratch &) const override {
    const Range range(ceil_div<long>(samples * floats, VN), from, to);
    const long at = range.first * VN, end = std::min(range.last * VN, samples * floats);
    if (at >= end) return;
    float *y = buffers[target] + at;
    const float *x = buffers[reads[0]] + at;
    if (x != y) std::memcpy(y, x, (size_t)(end - at) * 4);
    activate_row(y, end - at, activation);
  }
  double cost() const override { return (double)floats; }
};

// activation(first) * second
struct MultiplyStep : Step {
  long floats;
  int activation;
  void run(const Buffers &buffers, long samples, int, double from, double to, Scratch &) const override {
    const Range range(ceil_div<long>(samples * floats, VN), from, to);
    const float *x = buffers[reads[0]], *g = buffers[reads[1]];
    float *y = buffers[target];
    with_activation(activation, [&](auto function) {
      for (long k = range.first; k < range.last; k++) {
        const int lanes = (int)std::min<long>(VN, samples * floats - k * VN);
        store_first(y + k * VN, function(load_lanes(x + k * VN, 0, lanes)) * load_lanes(g + k * VN, 0, lanes), lanes);
      }
    });
  }
  double cost() const override { return (double)floats; }
};

// LayerNorm or, uncentred, RMSNorm of rows.
struct NormStep : Step {
  int rows, features;
  bool centred;
  float eps;
  std::vector<float> weight, bias;
  void run(const Buffers &buffers, long samples, int, double from, double to, Scratch &) const override {
    const Range range(samples * rows, from, to);
    for (long i = range.first; i < range.last; i++) {
      const float *x = buffers[reads[0]] + i * features;
      float *y = buffers[target] + i * features;
      float mean = 0;
      if (centred) {
        vf total{};
        for (int j = 0; j < features; j += VN) total += load_lanes(x + j, 0, features - j);
        mean = sum(total) / features;
      }
      vf squares{};
      for (int j = 0; j < features; j += VN) {
        vf v = load_lanes(x + j, 0, features - j) - mean;
        if (features - j < VN) v = keep_lanes(v, 0, features - j);
        squares += v * v;
      }
      const float factor = 1.f / std::sqrt(sum(squares) / features + eps);
      for (int j = 0; j < features; j += VN) {
        const int lanes = features - j;
        vf v = (load_lanes(x + j, 0, lanes) - mean) * factor;
        if (!weight.empty()) v *= load_lanes(&weight[j], 0, lanes);
        if (!bias.empty()) v += load_lanes(&bias[j], 0, lanes);
        store_first(y + j, v, lanes);
      }
    }
  }
  double cost() const override { return (double)rows * features / 4; }
};

// LayerNorm over the channels of [channels, pixels].
struct ChannelNormStep : Step {
  int channels;
  long inner;
  float eps;
  std::vector<float> weight, bias;
  void run(const Buffers &buffers, long samples, int, double from, double to, Scratch &) const override {
    const long per_image = ceil_div<long>(inner, VN);
    const Range range(samples * per_image, from, to);
    for (long i = range.first; i < range.last; i++) {
      const long at = i / per_image * channels * inner + i % per_image * VN;
      const int lanes = (int)std::min<long>(VN, inner - i % per_image * VN);
      const float *x = buffers[reads[0]] + at;
      float *y = buffers[target] + at;
      vf mean{}, squares{};
      for (int c = 0; c < channels; c++) mean += load_lanes(x + c * inner, 0, lanes);
      mean /= (float)channels;
      for (int c = 0; c < channels; c++) {
        const vf v = load_lanes(x + c * inner, 0, lanes) - mean;
        squares += v * v;
      }
      vf factor;
      for (int j = 0; j < VN; j++) factor[j] = 1.f / std::sqrt(squares[j] / channels + eps);
      for (int c = 0; c < channels; c++) {
        vf v = (load_lanes(x + c * inner, 0, lanes) - mean) * factor;
        if (!weight.empty()) v *= weight[c];
        if (!bias.empty()) v += bias[c];
        store_first(y + c * inner, v, lanes);
      }
    }
  }
  double cost() const override { return (double)channels * inner / 4; }
};

struct TransposeStep : Step {
  long rows, columns;
  void run(const Buffers &buffers, long samples, int, double from, double to, Scratch &) const override {
    const long bands = ceil_div<long>(rows, VN);
    const Range range(samples * bands, from, to);
    for (long i = range.first; i < range.last; i++) {
      const long row = i % bands * VN;
      const int height = (int)std::min<long>(VN, rows - row);
      const float *x = buffers[reads[0]] + i / bands * rows * columns + row * columns;
      float *y = buffers[target] + i / bands * rows * columns + row;
      for (long column = 0; column < columns; column += VN) {
        const int width = (int)std::min<long>(VN, columns - column);
        vf r[VN];
        for (int j = 0; j < VN; j++) r[j] = j < height ? load_lanes(x + j * columns + column, 0, width) : vf{};
        transpose(r);
        for (int j = 0; j < width; j++) store_first(y + (column + j) * rows, r[j], height);
      }
    }
  }
  double cost() const override { return (double)rows * columns / VN * 2; }
};
