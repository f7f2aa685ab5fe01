// Vectors of the machine's native width, written once for AVX-512, AVX, SSE2 and NEON by compiler vector types.
// Wider types than the machine has would compile too, and run ten times slower: the width is never a choice.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>
#if defined(__AVX__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif
#define INLINE static inline __attribute__((always_inline))

constexpr int VN = VECTOR_BYTES / 4;  // floats in a vector
typedef float vf __attribute__((vector_size(VECTOR_BYTES), may_alias));
typedef float vfu __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));  // at any address
typedef int32_t vi __attribute__((vector_size(VECTOR_BYTES), may_alias));

INLINE vf load(const float *p) { return *(const vfu *)p; }
INLINE void store(float *p, vf v) { *(vfu *)p = v; }
INLINE void store_aligned(float *p, vf v) { *(vf *)p = v; }
INLINE vf splat(float x) { return vf{} + x; }
template <class T>
INLINE T round_up(T a, T b) {
  return (a + b - 1) / b * b;
}
template <class T>
INLINE T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

// ReLU as torch's: NaN stays NaN.
INLINE vf relu(vf v) { return 0.f > v ? vf{} : v; }
INLINE float relu(float v) { return 0.f > v ? 0.f : v; }

template <size_t... I>
INLINE vi iota_of(std::index_sequence<I...>) {
  return vi{(int32_t)I...};
}
INLINE vi iota() { return iota_of(std::make_index_sequence<VN>()); }
// Lanes [from, to) of a vector, either bound outside 0..VN if need be.
struct Lanes {
  int from, to;
#if defined(__AVX512F__)
  __mmask16 mask;
#else
  vi mask;
#endif
  Lanes() : Lanes(0, VN) {}
  Lanes(int from_, int to_) : from(from_ < 0 ? 0 : from_ > VN ? VN : from_), to(to_ < 0 ? 0 : to_ > VN ? VN : to_) {
    if (from >= to) from = to = 0;
#if defined(__AVX512F__)
    mask = (__mmask16)((1u << to) - (1u << from));
#else
    mask = (iota() >= from) & (iota() < to);
#endif
  }
  bool all() const { return to - from == VN; }
};

// Load these lanes of the vector at p and zero the rest, touching no byte outside them.
INLINE vf load_lanes(const float *p, const Lanes &lanes) {
#if defined(__AVX512F__)
  return (vf)_mm512_maskz_loadu_ps(lanes.mask, p);
#elif defined(__AVX__)
  return (vf)_mm256_maskload_ps(p, (__m256i)lanes.mask);
#else
  if (lanes.all()) return load(p);
  float out[VN] = {};
  for (int i = lanes.from; i < lanes.to; i++) out[i] = p[i];
  return load(out);
#endif
}
INLINE vf keep_lanes(vf v, const Lanes &lanes) {
#if defined(__AVX512F__)
  return (vf)_mm512_maskz_mov_ps(lanes.mask, (__m512)v);
#else
  return (vf)((vi)v & lanes.mask);
#endif
}
INLINE vf load_lanes(const float *p, int from, int to) {
  return from <= 0 && to >= VN ? load(p) : load_lanes(p, Lanes(from, to));
}
INLINE vf keep_lanes(vf v, int from, int to) { return keep_lanes(v, Lanes(from, to)); }

// Store the first n lanes, touching nothing after them.
INLINE void store_first(float *p, vf v, int n) {
  if (n >= VN) return store(p, v);
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1u), (__m512)v);
#else
  float lanes[VN];
  store(lanes, v);
  for (int i = 0; i < n; i++) p[i] = lanes[i];
#endif
}

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, vi{__VA_ARGS__})
#endif

template <size_t... I>
INLINE vf even_of(vf a, vf b, std::index_sequence<I...>) {
  return SHUFFLE(a, b, (int)(2 * I)...);
}
INLINE vf even_lanes(vf a, vf b) { return even_of(a, b, std::make_index_sequence<VN>()); }

// Transpose VN vectors of VN lanes by log2(VN) butterflies.
template <int S, size_t... I>
INLINE void butterfly(vf &a, vf &b, std::index_sequence<I...>) {
  vf low = SHUFFLE(a, b, ((I & S) ? (int)(I - S + VN) : (int)I)...);
  b = SHUFFLE(a, b, ((I & S) ? (int)(I + VN) : (int)(I + S))...);
  a = low;
}
template <int S>
INLINE void transpose_step(vf *r) {
  for (int i = 0; i < VN; i++)
    if (!(i & S)) butterfly<S>(r[i], r[i + S], std::make_index_sequence<VN>());
}
INLINE void transpose(vf *r) {
  transpose_step<1>(r);
  transpose_step<2>(r);
  if constexpr (VN > 4) transpose_step<4 % VN>(r);
  if constexpr (VN > 8) transpose_step<8 % VN>(r);
}

// Four floats: every machine has these, beside its widest vectors.
typedef float v4 __attribute__((vector_size(16), may_alias));
typedef float v4u __attribute__((vector_size(16), aligned(4), may_alias));
INLINE v4 load4(const float *p) { return *(const v4u *)p; }
INLINE v4 gather4(const float *x, const uint16_t *offsets) {
  uint64_t i;
  std::memcpy(&i, offsets, 8);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
  return v4{x[i >> 48], x[i >> 32 & 0xffff], x[i >> 16 & 0xffff], x[i & 0xffff]};
#else
  return v4{x[i & 0xffff], x[i >> 16 & 0xffff], x[i >> 32 & 0xffff], x[i >> 48]};
#endif
}

INLINE float sum(vf v) {
  float lanes[VN], total = 0;
  store(lanes, v);
  for (int i = 0; i < VN; i++) total += lanes[i];
  return total;
}
