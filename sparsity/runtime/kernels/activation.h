// Activations of vectors and of rows.
#pragma once
#include "functions.h"
#include "stream.h"

// The activation as a function of a vector, known when compiling: call(function).
template <class Call>
INLINE void with_activation(int kind, Call call) {
  switch (kind) {
    case RELU: return call([](vf x) { return relu(x); });
    case GELU: return call([](vf x) { return .5f * x * (1.f + error_function(x * .707106781f)); });
    case GELU_TANH:
      return call([](vf x) { return .5f * x * (1.f + hyperbolic_tangent(.797884561f * (x + .044715f * x * x * x))); });
    case SILU: return call([](vf x) { return x / (1.f + exponential(-x)); });
    case SIGMOID: return call([](vf x) { return sigmoid(x); });
    case TANH: return call([](vf x) { return hyperbolic_tangent(x); });
    case RELU6: return call([](vf x) { return select(x > 6.f, splat(6.f), relu(x)); });
    case HARDSWISH:
      return call([](vf x) { return x * select(x + 3.f > 6.f, splat(6.f), relu(x + 3.f)) * (1.f / 6.f); });
    default: return call([](vf x) { return x; });
  }
}

// One value: what a vector of it gives, so that results do not depend on where in a row a value stands.
static float activate(float x, int kind) {
  if (kind == NONE) return x;
  vf y{};
  with_activation(kind, [&](auto function) { y = function(splat(x)); });
  return y[0];
}

static void activate_row(float *p, long n, int kind) {
  if (kind == NONE) return;
  with_activation(kind, [&](auto function) {
    long i = 0;
    for (; i + VN <= n; i += VN) store(p + i, function(load(p + i)));
    if (i < n) store_first(p + i, function(load_lanes(p + i, 0, (int)(n - i))), (int)(n - i));
  });
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
