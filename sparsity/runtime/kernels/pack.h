// Packing: input rows into the layout of a tile, with the input's affine, ReLU, stride and zero padding applied on the way.
#pragma once
#include "layout.h"
#include "step.h"
#include "tile.h"

struct ChannelAffine {
  bool any, scaled, rectified;
  vf scale, shift;
  ChannelAffine(const InputAffine &a, int channel)
      : any(a.any()), scaled(!a.scale.empty()), rectified(a.relu), scale{}, shift{} {
    if (scaled) scale = splat(a.scale[channel]), shift = splat(a.shift[channel]);
  }
  vf operator()(vf v) const {
    if (scaled) v = v * scale + shift;
    return rectified ? relu(v) : v;
  }
};

// dst[i] = affine(src[at + i * step]) where that column lies in [0, width), else 0, for `count` floats rounded up to vectors.
INLINE void pack_row(float *dst, const float *src, int at, int step, int width, int count, const ChannelAffine &affine) {
  for (int i = 0; i < count; i += VN) {
    int first = at + i * step;  // column of lane 0
    vf v;
    if (step == 1) {
      v = load_lanes(src + first, -first, width - first);
      if (affine.any) v = affine(v);
      if (affine.scaled && (first < 0 || first + VN > width)) v = keep_lanes(v, -first, width - first);
    } else {
      if (step == 2) {
        v = even_lanes(load_lanes(src + first, -first, width - first), load_lanes(src + first + VN, -first - VN, width - first - VN));
      } else {
        float lanes[VN];
        for (int j = 0; j < VN; j++) {
          int column = first + j * step;
          lanes[j] = column >= 0 && column < width ? src[column] : 0.f;
        }
        v = load(lanes);
      }
      if (affine.any) v = affine(v);
      int from = first >= 0 ? 0 : ceil_div(-first, step), to = width > first ? ceil_div(width - first, step) : 0;
      if (affine.scaled && (from > 0 || to < VN)) v = keep_lanes(v, from, to);
    }
    store(dst + i, v);
  }
}

INLINE void zero(float *p, int n) {
  if (n > 0) std::memset(p, 0, (size_t)n * 4);
}

// Pack channels [from, to) of one image for the tile at output row r0 and column c0.
static void pack_window(const Window &w, const Layout &l, const float *image, int from, int to, int r0, int c0,
                        const InputAffine &affine, float *dst) {
  for (int channel = from; channel < to; channel++, dst += l.per) {
    const float *src = image + (size_t)channel * w.height * w.width;
    const ChannelAffine apply(affine, channel);
    for (const Copy &c : l.copies) {
      float *row = dst + c.offset;
      for (int j = 0; j < c.rows; j++, row += l.pitch) {
        int y = (r0 + j) * w.sy + c.y - w.py;
        if (y < 0 || y >= w.height)
          for (int i = 0; i < l.pitch; i += VN) store(row + i, vf{});
        else
          pack_row(row, src + (size_t)y * w.width, c0 * w.sx + c.x - w.px, w.sx, w.width, l.pitch, apply);
      }
      zero(row, c.size - c.rows * l.pitch);
    }
  }
}

// Pack channels of consecutive pixels: `runs` say which pixels of the input go where in the tile.
static void pack_pixels(const float *const *images, const Run *runs, int run_count, int pixels, size_t plane, int from, int to,
                        const InputAffine &affine, float *dst) {
  for (int channel = from; channel < to; channel++, dst += pixels) {
    const ChannelAffine apply(affine, channel);
    int end = 0;
    for (int i = 0; i < run_count; i++) {
      pack_row(dst + runs[i].tile, images[i] + channel * plane, 0, 1, runs[i].length, runs[i].length, apply);
      end = runs[i].tile + runs[i].length;
    }
    zero(dst + end, pixels - end);
  }
}

// Pack rows of [rows, features] transposed: feature by feature, `pixels` rows each.
static void pack_tokens(const float *src, int rows, int pixels, int features, int from, int to, const InputAffine &affine,
                        float *dst) {
  for (int f = from; f < to; f += VN) {
    int width = std::min(VN, to - f);
    for (int row = 0; row < pixels; row += VN) {
      vf r[VN];
      for (int i = 0; i < VN; i++) r[i] = row + i < rows ? load_lanes(src + (size_t)(row + i) * features + f, 0, width) : vf{};
      transpose(r);
      for (int i = 0; i < width; i++) {
        vf v = r[i];
        if (affine.any()) v = keep_lanes(ChannelAffine(affine, f + i)(v), 0, rows - row);
        store_aligned(dst + (size_t)(f - from + i) * pixels + row, v);
      }
    }
  }
}
