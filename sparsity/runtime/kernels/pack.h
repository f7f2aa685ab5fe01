// Packing: input rows into the layout of a tile, with the input's affine, ReLU, stride and zero padding applied on the
// way.
#pragma once
#include <type_traits>

#include "layout.h"
#include "step.h"
#include "tile.h"

// x * scale + shift and ReLU, each only if the input affine has it.
template <bool SCALED, bool RECTIFIED>
struct ChannelAffine {
  static constexpr bool shifts_zero = SCALED;
  vf scale{}, shift{};
  ChannelAffine(const InputAffine &a, int channel) {
    if (SCALED) scale = splat(a.scale[channel]), shift = splat(a.shift[channel]);
  }
  vf operator()(vf v) const {
    if (SCALED) v = v * scale + shift;
    return RECTIFIED ? relu(v) : v;
  }
};

// Call with the kind of affine as a type.
template <class Call>
INLINE void with_affine(const InputAffine &a, Call call) {
  const bool scaled = !a.scale.empty();
  if (scaled && a.relu) call((ChannelAffine<true, true> *)nullptr);
  else if (scaled) call((ChannelAffine<true, false> *)nullptr);
  else if (a.relu) call((ChannelAffine<false, true> *)nullptr);
  else call((ChannelAffine<false, false> *)nullptr);
}

// The affine of a row of features, which has one factor per value.
static void apply_to_row(const InputAffine &affine, const float *x, float *y, int features) {
  for (int j = 0; j < features; j += VN) {
    const int lanes = features - j;
    vf v = load_lanes(x + j, 0, lanes);
    if (!affine.scale.empty()) v = v * load_lanes(&affine.scale[j], 0, lanes) + load_lanes(&affine.shift[j], 0, lanes);
    store_first(y + j, affine.relu ? relu(v) : v, lanes);
  }
}

INLINE void zero(float *p, long n) {
  if (n > 0) std::memset(p, 0, (size_t)n * 4);
}

// Which lanes of each vector of a packed row hold input, found once per tile: `width` columns from `at` on, every
// step-th.
class RowLanes {
 public:
  RowLanes(int at, int step, int width, int count)
      : at(at), vectors(ceil_div(count, VN)), lanes_(vectors), inside_(vectors) {
    for (int i = 0; i < vectors; i++) {
      const int first = at + i * VN * step;  // the column in lane 0
      lanes_[i] = Lanes(-first, width - first);
      inside_[i] =
          step == 1 ? lanes_[i]
                    : Lanes(first < 0 ? ceil_div(-first, step) : 0, width > first ? ceil_div(width - first, step) : 0);
      if (step == 2) second_.emplace_back(-first - VN, width - first - VN);
    }
  }

  // Pack `rows` rows, `pitch` floats apart, from input rows `line` floats apart.
  template <class Affine, int STEP>
  void pack(float *dst, long pitch, const float *src, long line, int rows, int step, const Affine &affine) const {
    switch (vectors) {
      case 1: return pack_rows<Affine, STEP, 1>(dst, pitch, src, line, rows, step, affine);
      case 2: return pack_rows<Affine, STEP, 2>(dst, pitch, src, line, rows, step, affine);
      case 3: return pack_rows<Affine, STEP, 3>(dst, pitch, src, line, rows, step, affine);
      case 4: return pack_rows<Affine, STEP, 4>(dst, pitch, src, line, rows, step, affine);
      default: return pack_rows<Affine, STEP, 0>(dst, pitch, src, line, rows, step, affine);
    }
  }

 private:
  template <class Affine, int STEP, int COUNT>
  void pack_rows(float *dst, long pitch, const float *src, long line, int rows, int step, const Affine &affine) const {
    const int count = COUNT ? COUNT : vectors;
    Lanes held[COUNT ? COUNT : 1];  // in registers where the count is known
    for (int i = 0; i < COUNT; i++) held[i] = lanes_[i];
    src += at;
    for (int row = 0; row < rows; row++, dst += pitch, src += line)
#pragma GCC unroll 4
      for (int i = 0; i < count; i++) {
        const Lanes &lanes = COUNT ? held[COUNT ? i : 0] : lanes_[i];
        vf v;
        if (STEP == 1) {
          v = load_lanes(src + i * VN, lanes);
        } else if (STEP == 2) {
          v = even_lanes(load_lanes(src + 2 * i * VN, lanes), load_lanes(src + (2 * i + 1) * VN, second_[i]));
        } else {
          float picked[VN] = {};
          for (int j = inside_[i].from; j < inside_[i].to; j++) picked[j] = src[(i * VN + j) * step];
          v = load(picked);
        }
        v = affine(v);
        if (Affine::shifts_zero) v = keep_lanes(v, STEP == 1 ? lanes : inside_[i]);
        store(dst + i * VN, v);
      }
  }

  int at, vectors;
  std::vector<Lanes> lanes_, inside_, second_;
};

// Packing for one tile of a convolution: output rows from r0 on, columns from c0 on.
class WindowPacker {
 public:
  WindowPacker(const Window &w, const Layout &l, int r0, int c0) : w_(w), l_(l) {
    for (const Copy &c : l.copies) {
      const int top = r0 * w.sy + c.y - w.py;  // the input row in packed row 0
      const int first = std::min(c.rows, top < 0 ? ceil_div(-top, w.sy) : 0);
      const int last = std::clamp(top < w.height ? ceil_div(w.height - top, w.sy) : 0, first, c.rows);
      parts_.push_back({RowLanes(c0 * w.sx + c.x - w.px, w.sx, w.width, l.pitch), c.offset, top, first, last, c.size});
    }
  }

  // Pack channels [from, to) of an image.
  void pack(const float *image, int from, int to, const InputAffine &affine, float *dst) const {
    with_affine(affine, [&](auto *kind) {
      typedef std::remove_pointer_t<decltype(kind)> Affine;
      if (w_.sx == 1) pack_channels<Affine, 1>(image, from, to, affine, dst);
      else if (w_.sx == 2) pack_channels<Affine, 2>(image, from, to, affine, dst);
      else pack_channels<Affine, 0>(image, from, to, affine, dst);
    });
  }

 private:
  struct Part {
    RowLanes lanes;
    int offset, top, first, last, size;  // rows [first, last) of the copy lie inside the image
  };

  template <class Affine, int STEP>
  void pack_channels(const float *image, int from, int to, const InputAffine &affine, float *dst) const {
    const int pitch = l_.pitch;
    for (int channel = from; channel < to; channel++, dst += l_.per) {
      const float *src = image + (size_t)channel * w_.height * w_.width;
      const Affine apply(affine, channel);
      for (const Part &p : parts_) {
        float *row = dst + p.offset;
        zero(row, (long)p.first * pitch);
        row += (long)p.first * pitch;
        const float *in = src + (long)(p.top + p.first * w_.sy) * w_.width;
        p.lanes.template pack<Affine, STEP>(row, pitch, in, (long)w_.sy * w_.width, p.last - p.first, w_.sx, apply);
        row += (long)(p.last - p.first) * pitch;
        zero(row, p.size - (long)p.last * pitch);
      }
    }
  }

  const Window &w_;
  const Layout &l_;
  std::vector<Part> parts_;
};

// Pack channels of consecutive pixels: `runs` say which pixels of the input go where in the tile.
static void pack_pixels(const float *const *images, const Run *runs, int run_count, int pixels, size_t plane, int from,
                        int to, const InputAffine &affine, float *dst) {
  with_affine(affine, [&](auto *kind) {
    for (int channel = from; channel < to; channel++, dst += pixels) {
      const std::remove_pointer_t<decltype(kind)> apply(affine, channel);
      int end = 0;
      for (int i = 0; i < run_count; i++) {
        float *out = dst + runs[i].tile;
        const float *in = images[i] + channel * plane;
        const int length = runs[i].length, whole = length / VN * VN;
        for (int j = 0; j < whole; j += VN) store(out + j, apply(load(in + j)));
        if (whole < length)
          store(out + whole, keep_lanes(apply(load_lanes(in + whole, 0, length - whole)), 0, length - whole));
        end = runs[i].tile + length;
      }
      zero(dst + end, pixels - end);
    }
  });
}

// Pack rows of [rows, features] transposed: feature by feature, `pixels` rows each.
static void pack_tokens(const float *src, int rows, int pixels, int features, int from, int to,
                        const InputAffine &affine, float *dst) {
  with_affine(affine, [&](auto *kind) {
    for (int f = from; f < to; f += VN) {
      const int width = std::min(VN, to - f);
      const Lanes used(0, width);
      for (int row = 0; row < pixels; row += VN) {
        vf r[VN];
        for (int i = 0; i < VN; i++)
          r[i] = row + i < rows ? load_lanes(src + (size_t)(row + i) * features + f, used) : vf{};
        transpose(r);
        for (int i = 0; i < width; i++) {
          const std::remove_pointer_t<decltype(kind)> apply(affine, f + i);
          vf v = apply(r[i]);
          if (apply.shifts_zero) v = keep_lanes(v, 0, rows - row);
          store_aligned(dst + (size_t)(f - from + i) * pixels + row, v);
        }
      }
    }
  });
}
