// The nonzeros of one layer, 6 bytes each: float32 values and 16-bit offsets, cut into segments of (channel block,
// output).
#pragma once
#include <algorithm>
#include <vector>

#include "vector.h"

enum Activation {
  NONE = 0,
  RELU = 1,
  GELU = 2,
  GELU_TANH = 3,
  SILU = 4,
  SIGMOID = 5,
  TANH = 6,
  RELU6 = 7,
  HARDSWISH = 8
};

// What is done to the input of a layer before its zero padding: x * scale + shift per channel, then ReLU.
struct InputAffine {
  std::vector<float> scale, shift;  // empty: none
  bool relu = false;
  bool any() const { return relu || !scale.empty(); }
};

static size_t count_nonzeros(const float *weight, size_t size) { return size - std::count(weight, weight + size, 0.f); }

struct Stream {
  std::vector<float> values;
  std::vector<uint16_t> offsets;
  std::vector<uint32_t> starts;  // of the segments, one more than there are
  std::vector<uint32_t> work;    // running cost of the outputs, in nonzeros: for cutting outputs into equal parts
  std::vector<float> bias;       // empty: none
  int outputs = 0, blocks = 1;
  bool output_major = false;  // segments run over the blocks first: whole rows are contiguous

  size_t segment(int block, int output) const {
    return output_major ? (size_t)output * blocks + block : (size_t)block * outputs + output;
  }
  float bias_of(int output) const { return bias.empty() ? 0.f : bias[output]; }
  size_t nonzeros() const { return values.size(); }
  size_t bytes() const { return 6 * values.size() + 4 * (starts.size() + work.size() + bias.size()); }

  // Fill from a dense weight [outputs][inputs][taps]; block_channels inputs make a block; offset(channel, tap).
  template <class Offset>
  void fill(const float *weight, int outputs_, int inputs, int taps, int block_channels, bool output_major_,
            Offset offset) {
    outputs = outputs_, output_major = output_major_, blocks = ceil_div(inputs, block_channels);
    const size_t count = count_nonzeros(weight, (size_t)outputs * inputs * taps);
    values.reserve(count), offsets.reserve(count), starts.reserve((size_t)blocks * outputs + 1);
    std::vector<uint32_t> per_output(outputs, 0);
    auto one = [&](int block, int output) {
      starts.push_back((uint32_t)values.size());
      int from = block * block_channels, to = std::min(inputs, from + block_channels);
      const float *row = weight + (size_t)output * inputs * taps;
      for (int c = from; c < to; c++)
        for (int t = 0; t < taps; t++)
          if (float v = row[(size_t)c * taps + t]; v != 0) values.push_back(v), offsets.push_back(offset(c, t));
      per_output[output] += (uint32_t)values.size() - starts.back();
    };
    if (output_major)
      for (int o = 0; o < outputs; o++)
        for (int b = 0; b < blocks; b++) one(b, o);
    else
      for (int b = 0; b < blocks; b++)
        for (int o = 0; o < outputs; o++) one(b, o);
    starts.push_back((uint32_t)values.size());
    work.assign(1, 0);
    for (int o = 0; o < outputs; o++) work.push_back(work.back() + per_output[o] + 2 + 2 * blocks);
  }

  // Write the nonzeros back into a zeroed dense weight; where(block, offset) gives channel * taps + tap.
  template <class Where>
  void scatter(float *weight, int inputs, int taps, Where where) const {
    for (int b = 0; b < blocks; b++)
      for (int o = 0; o < outputs; o++)
        for (size_t k = starts[segment(b, o)]; k < starts[segment(b, o) + 1]; k++)
          weight[(size_t)o * inputs * taps + where(b, offsets[k])] = values[k];
  }

  // The output at which a share of the work is done.
  int output_at(double share) const {
    if (share <= 0) return 0;
    if (share >= 1) return outputs;
    uint32_t target = (uint32_t)(share * work.back());
    return (int)(std::lower_bound(work.begin(), work.end(), target) - work.begin());
  }
};
