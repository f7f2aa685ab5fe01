// Activations on rows of floats, in place.
#pragma once
#include "stream.h"

static inline float activate(float x, int kind) {
  switch (kind) {
    case RELU: return relu(x);
    case GELU: return .5f * x * (1.f + std::erf(x * .70710678118654752f));
    case GELU_TANH: return .5f * x * (1.f + std::tanh(.7978845608028654f * (x + .044715f * x * x * x)));
    case SILU: return x / (1.f + std::exp(-x));
    case SIGMOID: return 1.f / (1.f + std::exp(-x));
    case TANH: return std::tanh(x);
    case RELU6: return x > 6.f ? 6.f : relu(x);
    case HARDSWISH: { float g = x + 3.f; return x * (g > 6.f ? 6.f : relu(g)) / 6.f; }
    default: return x;
  }
}

static void activate_row(float *p, size_t n, int kind) {
  if (kind == NONE) return;
  if (kind == RELU) {
    size_t i = 0;
    for (; i + VN <= n; i += VN) store(p + i, relu(load(p + i)));
    for (; i < n; i++) p[i] = relu(p[i]);
    return;
  }
  for (size_t i = 0; i < n; i++) p[i] = activate(p[i], kind);
}

// y = activation(t + residual) over n floats; residual may be null.
INLINE void emit_run(float *y, const float *t, const float *residual, int n, int kind) {
  for (int i = 0; i < n; i += VN) {
    int lanes = n - i;
    vf v = lanes >= VN ? load(t + i) : load_lanes(t + i, 0, lanes);
    if (residual) v += load_lanes(residual + i, 0, lanes);
    if (kind == RELU) v = relu(v);
    store_first(y + i, v, lanes);
  }
  if (kind > RELU) activate_row(y, n, kind);
}
