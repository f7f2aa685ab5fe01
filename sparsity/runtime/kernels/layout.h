// How a convolution is tiled and its input packed, chosen by a cost model of the machine's load and multiply rates.
#pragma once
#include <algorithm>
#include <vector>

#include "vector.h"

struct Window {  // of a convolution: kernel, stride and padding in rows (y) and columns (x)
  int inputs, outputs, height, width, ky, kx, sy, sx, py, px;
  int out_height() const { return (height + 2 * py - ky) / sy + 1; }
  int out_width() const { return (width + 2 * px - kx) / sx + 1; }
  int taps() const { return ky * kx; }
};

// One packed view of an input channel: row j holds input row (r0 + j) * sy + y - py from input column c0 * sx + x - px
// on, every sx-th of them.
struct Copy {
  int y, x, rows, offset, size;
};

struct Layout {
  int rows, columns, pitch, vectors;  // of a tile; `vectors` covers its rows * pitch pixels
  int block;                          // input channels packed at once
  size_t per;                         // packed floats of a channel
  bool flat;                          // one copy per stride phase and unaligned loads, instead of one per column shift
  std::vector<Copy> copies;
  std::vector<int> taps;  // offset of each tap inside a channel
  double cost;            // cycles per image
};

constexpr size_t MAX_BLOCK = 65536;  // floats that a 16-bit offset reaches

// Rates in cycles, measured on Zen 5 with 64-byte vectors; only their ratios matter.
namespace rate {
constexpr double aligned = 0.62, unaligned = 1.12, from_l2 = 0.55,
                 nonzero = 0.6;                            // per vector and nonzero, per nonzero
constexpr double segment = 14, partial = 1.2, emit = 1.2;  // per segment; per vector of a segment
constexpr double pack = 1.3, pack_row = 2;                 // per packed vector, per row
constexpr double l1_floats = 9.5 * 1024, l2_floats = 110 * 1024;
}  // namespace rate

static void place_copies(const Window &w, Layout &l) {
  l.copies.clear();
  l.taps.assign(w.taps(), 0);
  std::vector<int> which(w.taps());
  for (int y = 0; y < w.ky; y++)
    for (int x = 0; x < w.kx; x++) {
      int found = -1;
      for (int i = 0; i < (int)l.copies.size() && found < 0; i++) {
        const Copy &c = l.copies[i];
        bool rows = (y - c.y) % w.sy == 0, shift = l.flat ? (x - c.x) % w.sx == 0 : x == c.x;
        if (rows && shift && (l.flat || (y - c.y) / w.sy * l.pitch % VN == 0)) found = i;
      }
      if (found < 0) found = (int)l.copies.size(), l.copies.push_back({y, x, l.rows, 0, 0});
      Copy &c = l.copies[found];
      int down = (y - c.y) / w.sy, right = (x - c.x) / w.sx, offset = down * l.pitch + right;
      c.rows = std::max(c.rows, l.rows + down);
      c.size = std::max(c.size, offset + l.vectors * VN);
      which[y * w.kx + x] = found;
      l.taps[y * w.kx + x] = offset;
    }
  size_t at = 0;
  for (Copy &c : l.copies) {
    c.size = round_up(std::max(c.size, c.rows * l.pitch), VN);
    c.offset = (int)at;
    at += c.size;
  }
  l.per = at;
  for (int t = 0; t < w.taps(); t++) l.taps[t] += l.copies[which[t]].offset;
}

static double layout_cost(const Window &w, const Layout &l, double nonzeros) {
  const double tiles = ceil_div(w.out_height(), l.rows) * (double)ceil_div(w.out_width(), l.columns);
  const double blocks = ceil_div(w.inputs, l.block);
  double load = l.flat ? rate::unaligned : rate::aligned;
  const double footprint = (double)std::min(l.block, w.inputs) * l.per;
  if (footprint > rate::l1_floats) load += rate::from_l2 * std::min(1.0, footprint / rate::l1_floats - 1);
  if (footprint > rate::l2_floats) load += 2 * rate::from_l2;
  double packing = 0;
  for (const Copy &c : l.copies) packing += c.rows * (rate::pack_row + rate::pack * w.sx * ceil_div(l.pitch, VN));
  const double segments = blocks * w.outputs * rate::segment + (blocks - 1) * w.outputs * l.vectors * rate::partial;
  return tiles * (w.inputs * packing + nonzeros * (rate::nonzero + l.vectors * load) + segments +
                  w.outputs * (l.vectors * rate::emit + (l.pitch == w.out_width() ? 0 : 3 * l.rows)));
}

// Every tile that fits into registers, both ways to pack, and blocks for either cache.
static std::vector<Layout> possible_layouts(const Window &w, double nonzeros, int max_vectors) {
  const int oh = w.out_height(), ow = w.out_width(), limit = max_vectors * VN;
  const int column_tiles = ceil_div(ow, limit);
  const int columns = column_tiles == 1 ? ow : round_up(ceil_div(ow, column_tiles), VN);
  std::vector<Layout> found;
  for (int flat = 0; flat < 2; flat++) {
    int halo = (w.kx - 1) / w.sx;
    // Where a row ends in its padding, that serves as the next row's too.
    if (flat && w.sx == 1 && columns == ow && columns > w.px) halo = std::max(0, halo - w.px);
    const int pitches[] = {columns + (flat ? halo : 0), flat ? 0 : round_up(columns, VN),
                           flat ? 0 : round_up(columns, VN / 2)};
    for (int pitch : pitches) {
      if (pitch < columns) continue;
      for (int rows = 1; rows <= oh; rows++) {
        Layout l;
        l.rows = rows, l.columns = columns, l.pitch = pitch, l.flat = flat;
        l.vectors = ceil_div((rows - 1) * pitch + columns, VN);
        if (l.vectors > max_vectors) break;
        place_copies(w, l);
        if (l.per > MAX_BLOCK) continue;
        const int most = (int)std::min<size_t>(w.inputs, MAX_BLOCK / l.per);
        int before = 0;
        for (double floats : {1., 1.6, 2.5, 4., 6.5, 100.}) {
          const int block = std::clamp((int)(floats * rate::l1_floats / l.per), 1, most);
          l.block = ceil_div(w.inputs, ceil_div(w.inputs, block));  // blocks of equal size
          if (l.block == before) continue;
          before = l.block;
          l.cost = layout_cost(w, l, nonzeros);
          found.push_back(l);
        }
      }
    }
  }
  return found;
}

static Layout choose_layout(const Window &w, double nonzeros, int max_vectors) {
  const std::vector<Layout> all = possible_layouts(w, nonzeros, max_vectors);
  return *std::min_element(all.begin(), all.end(), [](const Layout &a, const Layout &b) { return a.cost < b.cost; });
}
