// Maximum and average over windows: first down the columns into one padded row, then along it.
#pragma once
#include <limits>

#include "layout.h"
#include "step.h"

struct PoolStep : Step {
  Window w;
  int out_height, out_width;
  bool average, count_padding;

  void run(const Buffers &buffers, long samples, int, double from, double to, Scratch &scratch) const override {
    const Range range(samples * w.inputs, from, to);
    const size_t room =
        round_up<size_t>(w.px + w.width, VN) + (size_t)(w.sx + 1) * VN + w.kx + (size_t)out_width * w.sx;
    float *row = scratch.get(0, room);
    std::fill(row, row + room, neutral());
    for (long i = range.first; i < range.last; i++) {
      const float *x = buffers[reads[0]] + i * w.height * w.width;
      float *y = buffers[target] + i * out_height * out_width;
      for (int r = 0; r < out_height; r++, y += out_width) {
        const int top = r * w.sy - w.py;
        // As torch counts: the window ends at the padded edge, and padding beyond that never counts.
        const int bottom = std::min(top + w.ky, w.height + w.py), first = std::max(top, 0),
                  last = std::min(bottom, w.height);
        down(x, first, last, row + w.px);
        along(row, y);
        if (average)
          for (int c = 0; c < out_width; c++)
            y[c] = divided(y[c], c * w.sx - w.px, bottom - top, std::max(0, last - first));
      }
    }
  }
  double cost() const override { return (double)w.inputs * out_height * out_width * w.taps() / 4; }

 private:
  float neutral() const { return average ? 0.f : -std::numeric_limits<float>::infinity(); }
  vf combine(vf a, vf b) const { return average ? a + b : ((b > a) | (b != b)) ? b : a; }  // a NaN stays
  float combine(float a, float b) const { return average ? a + b : b > a || b != b ? b : a; }

  void down(const float *x, int first, int last, float *row) const {
    for (int c = 0; c < w.width; c += VN) {
      const int lanes = w.width - c;
      vf v = splat(neutral());
      for (int r = first; r < last; r++) v = combine(v, load_lanes(x + (long)r * w.width + c, 0, lanes));
      store_first(row + c, v, lanes);
    }
  }

  void along(const float *row, float *y) const {
    if (w.sx > 2) {
      for (int c = 0; c < out_width; c++) {
        y[c] = row[c * w.sx];
        for (int k = 1; k < w.kx; k++) y[c] = combine(y[c], row[c * w.sx + k]);
      }
      return;
    }
    for (int c = 0; c < out_width; c += VN) {
      auto at = [&](int k) {
        const float *p = row + c * w.sx + k;
        return w.sx == 1 ? load(p) : even_lanes(load(p), load(p + VN));
      };
      vf v = at(0);
      for (int k = 1; k < w.kx; k++) v = combine(v, at(k));
      store_first(y + c, v, out_width - c);
    }
  }

  float divided(float total, int left, int padded_height, int height) const {
    const int right = std::min(left + w.kx, w.width + w.px);
    const int width = std::min(right, w.width) - std::max(left, 0);
    const int count = count_padding ? padded_height * (right - left) : height * width;
    return height < 1 || width < 1 ? 0.f : total / count;
  }
};
