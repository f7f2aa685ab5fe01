// Sparse products of a matrix with pixels (1x1 convolutions) or with rows of features (linear layers).
#pragma once
#include "pack.h"
#include "shares.h"
#include "tile.h"

// The number of vectors in a tile that computes so many pixels in the fewest cycles.
static int pixel_vectors(long pixels) {
  const long vectors = ceil_div<long>(pixels, VN);
  int best = 1;
  double least = 1e300;
  for (int t = 1; t <= std::min<long>(vectors, MAX_VECTORS * 2 / 3); t++) {
    const double cost = ceil_div<long>(vectors, t) * (1.4 + (t + (t < 6 ? 1 : 0)) * rate::aligned);
    if (cost < least) least = cost, best = t;
  }
  return best;
}

constexpr long MAX_ROWS = 2;  // of features that are computed one by one

// Indices come eight bytes at a time, and four values gathered one by one outrun the gather instruction.
static float dot(const float *values, const uint16_t *offsets, size_t n, const float *x) {
  v4 a{}, b{};
  size_t k = 0;
  for (; k + 8 <= n; k += 8)
    a += load4(values + k) * gather4(x, offsets + k), b += load4(values + k + 4) * gather4(x, offsets + k + 4);
  if (k + 4 <= n) a += load4(values + k) * gather4(x, offsets + k), k += 4;
  float total = 0;
  for (; k < n; k++) total += values[k] * x[offsets[k]];
  a += b;
  return total + ((a[0] + a[1]) + (a[2] + a[3]));
}

class Pointwise : public Step {
 public:
  // plane: pixels per channel; 1 means rows of features. rows: images (or rows) per sample.
  Pointwise(int inputs, int outputs, int plane, int rows, const float *weight, const float *bias, InputAffine affine,
            Epilogue epilogue)
      : inputs_(inputs), plane_(plane), rows_(rows), affine_(std::move(affine)), epilogue_(epilogue) {
    const int most = (int)(rate::l1_floats * 1.3) / (std::min(16, pixel_vectors((long)plane * 64)) * VN);
    block_ = std::clamp(most, 1, std::min(inputs, (int)MAX_BLOCK));
    block_ = ceil_div(inputs, ceil_div(inputs, block_));
    if (inputs > (int)MAX_BLOCK) block_ = 32;  // so that no block crosses a multiple of MAX_BLOCK
    stream_.fill(weight, outputs, inputs, 1, block_, plane == 1,
                 [&](int channel, int) { return (uint16_t)(channel - base(channel)); });
    if (bias) stream_.bias.assign(bias, bias + outputs);
  }

  void run(const Buffers &buffers, long samples, int, double from, double to, Scratch &scratch) const override {
    const long images = samples * rows_;
    const float *residual = epilogue_.residual < 0 ? nullptr : buffers[epilogue_.residual];
    if (plane_ == 1 && images <= MAX_ROWS)
      run_rows(buffers[reads[0]], buffers[target], residual, images, from, to, scratch);
    else run_tiles(buffers[reads[0]], buffers[target], residual, images, from, to, scratch);
  }

  void weight(float *dense) const override {
    stream_.scatter(dense, inputs_, 1, [&](int block, size_t offset) { return offset + base(block * block_); });
  }
  double cost() const override { return (double)rows_ * plane_ / VN * stream_.nonzeros() * rate::aligned; }
  size_t bytes() const override { return stream_.bytes(); }
  size_t nonzeros() const override { return stream_.nonzeros(); }

 private:
  // Offsets count channels from here on.
  static size_t base(int channel) { return channel / MAX_BLOCK * MAX_BLOCK; }

  // One or two rows of features: a dot product per output.
  void run_rows(const float *source, float *out, const float *residual, long rows, double from, double to,
                Scratch &scratch) const {
    const int first = stream_.output_at(from), last = stream_.output_at(to), outputs = stream_.outputs;
    if (affine_.any()) {
      float *ready = scratch.get(0, (size_t)rows * inputs_);
      for (long r = 0; r < rows; r++) apply_to_row(affine_, source + r * inputs_, ready + r * inputs_, inputs_);
      source = ready;
    }
    const int chunk = (int)MAX_BLOCK / block_;  // blocks whose offsets have the same base
    for (int o = first; o < last; o++)
      for (long r = 0; r < rows; r++) {
        float total = stream_.bias_of(o);
        for (int b = 0; b < stream_.blocks; b += chunk) {
          const int end = std::min(stream_.blocks, inputs_ > (int)MAX_BLOCK ? b + chunk : stream_.blocks);
          const size_t k = stream_.starts[stream_.segment(b, o)],
                       stop = stream_.starts[stream_.segment(end - 1, o) + 1];
          total += dot(stream_.values.data() + k, stream_.offsets.data() + k, stop - k,
                       source + r * inputs_ + base(b * block_));
          if (inputs_ <= (int)MAX_BLOCK) break;
        }
        if (residual) total += residual[r * outputs + o];
        out[r * outputs + o] = activate(total, epilogue_.activation);
      }
  }

  void run_tiles(const float *source, float *out, const float *residual, long images, double from, double to,
                 Scratch &scratch) const {
    const long pixels = images * plane_;
    const int vectors = pixel_vectors(pixels), wide = vectors * VN;
    float *packed = scratch.get(0, (size_t)block_ * wide + VN * VN);
    float *partial = stream_.blocks == 1 ? nullptr : scratch.get(1, (size_t)stream_.outputs * wide);
    std::vector<Run> runs;
    std::vector<const float *> starts;
    const TileKernel kernel = tile_kernel(vectors, 1, true);
    between(ceil_div<long>(pixels, wide), from, to, stream_, [&](long item, int first, int last) {
      const long at = item * wide;
      const int count = (int)std::min<long>(wide, pixels - at);
      Tile t{};
      t.stride = wide, t.from = first, t.to = last, t.partial = partial, t.activation = epilogue_.activation;
      if (plane_ == 1) {
        t.tokens = count, t.out_stride = stream_.outputs;
        t.out[0] = out + at * stream_.outputs;
        t.residual[0] = residual ? residual + at * stream_.outputs : nullptr;
      } else {
        runs.clear(), starts.clear();
        for (int done = 0; done < count;) {
          const long image = (at + done) / plane_, pixel = (at + done) % plane_;
          const int length = (int)std::min<long>(count - done, plane_ - pixel);
          runs.push_back({done, length, (size_t)image * stream_.outputs * plane_ + pixel});
          starts.push_back(source + (size_t)image * inputs_ * plane_ + pixel);
          done += length;
        }
        t.runs = runs.data(), t.run_count = (int)runs.size(), t.out_stride = plane_, t.out[0] = out,
        t.residual[0] = residual;
      }
      for (t.block = 0; t.block < stream_.blocks; t.block++) {
        const int c = t.block * block_, end = std::min(inputs_, c + block_);
        if (plane_ == 1) pack_tokens(source + (size_t)at * inputs_, count, wide, inputs_, c, end, affine_, packed);
        else pack_pixels(starts.data(), runs.data(), (int)runs.size(), wide, plane_, c, end, affine_, packed);
        t.packed[0] = packed - (c - base(c)) * wide;
        kernel(stream_, t);
      }
    });
  }

  int inputs_, plane_, rows_, block_;
  Stream stream_;
  InputAffine affine_;
  Epilogue epilogue_;
};
