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

class Pointwise : public Step {
 public:
  // plane: pixels per channel; 1 means rows of features. rows: images (or rows) per sample.
  Pointwise(int inputs, int outputs, int plane, int rows, const float *weight, const float *bias, InputAffine affine,
            Epilogue epilogue)
      : inputs_(inputs), plane_(plane), rows_(rows), affine_(std::move(affine)), epilogue_(epilogue) {
    const int most = (int)(rate::l1_floats * 1.3) / (std::min(16, pixel_vectors((long)plane * 64)) * VN);
    block_ = std::clamp(most, 1, std::min(inputs, (int)MAX_BLOCK));
    block_ = ceil_div(inputs, ceil_div(inputs, block_));
    stream_.fill(weight, outputs, inputs, 1, block_, plane == 1, [](int channel, int) { return (uint16_t)channel; });
    if (bias) stream_.bias.assign(bias, bias + outputs);
  }

  void run(const Buffers &buffers, long samples, int threads, double from, double to, Scratch &scratch) const override {
    const long images = samples * rows_;
    const float *residual = epilogue_.residual < 0 ? nullptr : buffers[epilogue_.residual];
    run_tiles(buffers[reads[0]], buffers[target], residual, images, threads, from, to, scratch);
  }

  void weight(float *dense) const override {
    stream_.scatter(dense, inputs_, 1, block_, [](size_t offset) { return offset; });
  }
  double cost() const override { return (double)rows_ * plane_ / VN * stream_.nonzeros() * rate::aligned; }
  size_t bytes() const override { return stream_.bytes(); }
  size_t nonzeros() const override { return stream_.nonzeros(); }

 private:
  void run_tiles(const float *source, float *out, const float *residual, long images, int, double from, double to,
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
      t.packed[0] = packed;
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
        t.runs = runs.data(), t.run_count = (int)runs.size(), t.out_stride = plane_, t.out[0] = out, t.residual[0] = residual;
      }
      for (t.block = 0; t.block < stream_.blocks; t.block++) {
        const int c = t.block * block_, end = std::min(inputs_, c + block_);
        if (plane_ == 1)
          pack_tokens(source + (size_t)at * inputs_, count, wide, inputs_, c, end, affine_, packed);
        else
          pack_pixels(starts.data(), runs.data(), (int)runs.size(), wide, plane_, c, end, affine_, packed);
        kernel(stream_, t);
      }
    });
  }

  int inputs_, plane_, rows_, block_;
  Stream stream_;
  InputAffine affine_;
  Epilogue epilogue_;
};
