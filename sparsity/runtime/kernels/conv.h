// Sparse convolution by any kernel, stride and padding.
#pragma once
#include "pack.h"
#include "shares.h"
#include "tile.h"

class Conv : public Step {
 public:
  Conv(const Window &w, const Layout &layout, const float *weight, const float *bias, InputAffine affine,
       Epilogue epilogue)
      : w_(w), layout_(layout), affine_(std::move(affine)), epilogue_(epilogue) {
    stream_.fill(weight, w.outputs, w.inputs, w.taps(), layout_.block, false, [&](int channel, int tap) {
      return (uint16_t)(channel % layout_.block * layout_.per + layout_.taps[tap]);
    });
    if (bias) stream_.bias.assign(bias, bias + w.outputs);
  }

  void run(const Buffers &buffers, long samples, int threads, double from, double to, Scratch &scratch) const override {
    const Layout &l = layout_;
    const int oh = w_.out_height(), ow = w_.out_width();
    const long down = ceil_div(oh, l.rows), across = ceil_div(ow, l.columns), tiles = down * across;
    const int together = images_at_once(samples, threads);
    const size_t image_in = (size_t)w_.inputs * w_.height * w_.width, plane = (size_t)oh * ow,
                 image_out = plane * w_.outputs;
    const float *source = buffers[reads[0]];
    const float *residual = epilogue_.residual < 0 ? nullptr : buffers[epilogue_.residual];
    const size_t block_floats = round_up<size_t>((size_t)std::min(l.block, w_.inputs) * l.per + VN, VN);
    float *packed = scratch.get(0, block_floats * together);
    float *partial = stream_.blocks == 1 ? nullptr : scratch.get(1, (size_t)w_.outputs * together * l.vectors * VN);
    std::vector<Run> runs(l.rows);
    between(ceil_div<long>(samples, together) * tiles, from, to, stream_, [&](long item, int first, int last) {
      const long image = item / tiles * together;
      const int count = (int)std::min<long>(together, samples - image);
      const int r0 = (int)(item % tiles / across) * l.rows, c0 = (int)(item % across) * l.columns;
      const int rows = std::min(l.rows, oh - r0), columns = std::min(l.columns, ow - c0);
      Tile t{};
      t.run_count = l.pitch == ow ? 1 : rows;
      for (int i = 0; i < t.run_count; i++) runs[i] = {i * l.pitch, columns, (size_t)(r0 + i) * ow + c0};
      if (t.run_count == 1) runs[0].length = (rows - 1) * ow + columns;
      t.runs = runs.data();
      t.from = first, t.to = last, t.partial = partial;
      t.out_stride = plane, t.activation = epilogue_.activation;
      for (int i = 0; i < count; i++) {
        t.packed[i] = packed + i * block_floats;
        t.out[i] = buffers[target] + (image + i) * image_out;
        t.residual[i] = residual ? residual + (image + i) * image_out : nullptr;
      }
      const WindowPacker packer(w_, l, r0, c0);
      const TileKernel kernel = tile_kernel(l.vectors, count, false);
      for (t.block = 0; t.block < stream_.blocks; t.block++) {
        const int c = t.block * l.block;
        for (int i = 0; i < count; i++)
          packer.pack(source + (image + i) * image_in, c, std::min(w_.inputs, c + l.block), affine_,
                      packed + i * block_floats);
        kernel(stream_, t);
      }
    });
  }

  void weight(float *dense) const override {
    const int taps = w_.taps();
    stream_.scatter(dense, w_.inputs, taps, [&](int block, size_t offset) {
      const int inside = (int)(offset % layout_.per);
      const size_t channel = (size_t)block * layout_.block + offset / layout_.per;
      return channel * taps + (std::find(layout_.taps.begin(), layout_.taps.end(), inside) - layout_.taps.begin());
    });
  }
  double cost() const override { return layout_.cost; }
  size_t bytes() const override { return stream_.bytes(); }
  size_t nonzeros() const override { return stream_.nonzeros(); }
  const Layout &layout() const { return layout_; }

 private:
  // Two small images share a pass over the nonzeros; larger tiles would only push the packed input out of the cache.
  int images_at_once(long samples, int threads) const {
    return samples >= 2 * threads && layout_.vectors <= MAX_SHARED_VECTORS ? 2 : 1;
  }

  Window w_;
  Layout layout_;
  Stream stream_;
  InputAffine affine_;
  Epilogue epilogue_;
};
