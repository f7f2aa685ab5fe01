// The inner kernel: a tile of output pixels stays in registers while the nonzeros of one output channel stream by.
#pragma once
#include <algorithm>

#include "activation.h"

constexpr int MAX_VECTORS =
    VECTOR_BYTES == 64 ? 24 : 12;  // of a tile: leaves registers for the weight and the epilogue
constexpr int MAX_IMAGES = 2;      // that share one pass over the nonzeros, if they are as small as this:
constexpr int MAX_SHARED_VECTORS = VECTOR_BYTES == 64 ? 5 : 1;

struct Run {  // consecutive pixels of a tile that are consecutive in the output
  int tile, length;
  size_t out;
};

struct Tile {
  const float *packed[MAX_IMAGES];  // the packed block of each image
  size_t stride;                    // floats per channel where the offsets count channels
  int block, from, to;              // channel block and outputs to compute
  float *partial;                   // sums between blocks, [to - from][images * vectors * VN]
  float *out[MAX_IMAGES];
  const float *residual[MAX_IMAGES];  // of the output's layout, or null
  size_t out_stride;                  // floats per output channel
  const Run *runs;
  int run_count, activation;
  int tokens;  // above 0: the tile's pixels are this many rows of [rows, outputs] and are stored transposed
};

// With few vectors one chain of FMAs waits for itself: keep about eight sums under way. Whether images share a pass
// must not count here, for results would depend on the number of threads.
template <int N>
constexpr int chains() {
  return N == 1 ? 8 : N == 2 ? 4 : N == 3 ? 3 : N < 6 ? 2 : 1;
}

template <int T, int I, bool SCALED>
INLINE void accumulate(const Tile &t, const float *v, const uint16_t *o, size_t n, vf (&a)[I][T]) {
  constexpr int U = chains<T>();
  const size_t stride = t.stride;
  auto step = [&](size_t k, vf(&sum)[I][T]) __attribute__((always_inline)) {
    size_t offset = SCALED ? o[k] * stride : o[k];
    vf w = splat(v[k]);
    for (int i = 0; i < I; i++) {
      const float *p = t.packed[i] + offset;
      for (int j = 0; j < T; j++) sum[i][j] += w * load(p + VN * j);
    }
  };
  if constexpr (U == 1) {
    for (size_t k = 0; k < n; k++) step(k, a);
  } else {
    vf more[U - 1][I][T] = {};
    size_t k = 0;
    for (; k + U <= n; k += U) {
      step(k, a);
      for (int u = 1; u < U; u++) step(k + u, more[u - 1]);
    }
    for (; k < n; k++) step(k, a);
    for (int u = 0; u < U - 1; u++)
      for (int i = 0; i < I; i++)
        for (int j = 0; j < T; j++) a[i][j] += more[u][i][j];
  }
}

// Write VN output channels (or the last few) of a tile of tokens: rows of the output matrix hold the channels side by
// side.
static __attribute__((noinline)) void emit_tokens(const Tile &t, const float *sums, int pitch, int first, int count) {
  for (int row = 0; row < t.tokens; row += VN) {
    vf r[VN];
    for (int i = 0; i < VN; i++) r[i] = i < count ? load(sums + (size_t)i * pitch + row) : vf{};
    transpose(r);
    for (int i = 0; i < VN && row + i < t.tokens; i++) {
      size_t at = (size_t)(row + i) * t.out_stride + first;
      vf v = r[i];
      if (t.residual[0]) v += load_lanes(t.residual[0] + at, 0, count);
      if (t.activation == RELU) v = relu(v);
      store_first(t.out[0] + at, v, count);
      if (t.activation > RELU) activate_row(t.out[0] + at, count, t.activation);
    }
  }
}

static __attribute__((noinline)) void emit_runs(const Tile &t, const float *sums, int image, size_t channel) {
  float *y = t.out[image] + channel;
  const float *r = t.residual[image] ? t.residual[image] + channel : nullptr;
  for (int i = 0; i < t.run_count; i++) {
    const Run &run = t.runs[i];
    emit_run(y + run.out, sums + run.tile, r ? r + run.out : nullptr, run.length, t.activation);
  }
}

template <int T, int I, bool SCALED>
static void run_tile(const Stream &s, const Tile &t) {
  const bool first = t.block == 0, last = t.block == s.blocks - 1;
  const bool whole =
      t.run_count == 1 && t.runs[0].tile == 0 && t.runs[0].length == T * VN && t.activation <= RELU && !t.tokens;
  alignas(64) float sums[I > 1 ? I * T * VN : VN * T * VN];
  for (int co = t.from; co < t.to; co++) {
    vf a[I][T];
    float *partial = t.partial + (size_t)(co - t.from) * I * T * VN;
    for (int i = 0; i < I; i++)
      for (int j = 0; j < T; j++) a[i][j] = first ? splat(s.bias_of(co)) : *(const vf *)(partial + (i * T + j) * VN);
    size_t segment = s.segment(t.block, co), from = s.starts[segment], to = s.starts[segment + 1];
    accumulate<T, I, SCALED>(t, s.values.data() + from, s.offsets.data() + from, to - from, a);
    if (!last) {
      for (int i = 0; i < I; i++)
        for (int j = 0; j < T; j++) store_aligned(partial + (i * T + j) * VN, a[i][j]);
      continue;
    }
    const size_t channel = co * t.out_stride;
    if (whole) {
      for (int i = 0; i < I; i++) {
        float *y = t.out[i] + channel + t.runs[0].out;
        if (const float *r = t.residual[i] ? t.residual[i] + channel + t.runs[0].out : nullptr)
          for (int j = 0; j < T; j++) a[i][j] += load(r + VN * j);
        for (int j = 0; j < T; j++) store(y + VN * j, t.activation == RELU ? relu(a[i][j]) : a[i][j]);
      }
    } else if (t.tokens) {
      int slot = (co - t.from) % VN;
      for (int j = 0; j < T; j++) store_aligned(sums + (slot * T + j) * VN, a[0][j]);
      if (slot == VN - 1 || co == t.to - 1) emit_tokens(t, sums, T * VN, co - slot, slot + 1);
    } else {
      for (int i = 0; i < I; i++)
        for (int j = 0; j < T; j++) store_aligned(sums + (i * T + j) * VN, a[i][j]);
      for (int i = 0; i < I; i++) emit_runs(t, sums + (size_t)i * T * VN, i, channel);
    }
  }
}

typedef void (*TileKernel)(const Stream &, const Tile &);

template <int I, bool SCALED, size_t... T>
static TileKernel kernel_of(int vectors, std::index_sequence<T...>) {
  static const TileKernel table[] = {run_tile<(int)T + 1, I, SCALED>...};
  return table[vectors - 1];
}
// The kernel for a tile of this many vectors (1 .. MAX_VECTORS) and images.
static TileKernel tile_kernel(int vectors, int images, bool scaled) {
  if (scaled) return kernel_of<1, true>(vectors, std::make_index_sequence<MAX_VECTORS>());
  if (images == 1) return kernel_of<1, false>(vectors, std::make_index_sequence<MAX_VECTORS>());
  return kernel_of<2, false>(vectors, std::make_index_sequence<MAX_SHARED_VECTORS>());
}
