// Elementary functions of vectors, accurate to a few units in the last place. The polynomials are fits of least
// relative error on the intervals named. NaN gives NaN.
#pragma once
#include "vector.h"

template <int N>
INLINE vf polynomial(vf x, const float (&c)[N]) {
  vf y = splat(c[N - 1]);
  for (int i = N - 2; i >= 0; i--) y = y * x + c[i];
  return y;
}
INLINE vf select(vi condition, vf a, vf b) { return condition ? a : b; }
INLINE vf magnitude(vf x) { return (vf)((vi)x & 0x7fffffff); }
INLINE vf with_sign_of(vf x, vf sign) { return (vf)(((vi)x & 0x7fffffff) | ((vi)sign & (int32_t)0x80000000)); }

INLINE vf exponential(vf x) {
  constexpr float fit[] = {1.f,          1.00000004f,  .499999919f,  .166664173f,
                           .0416682437f, .0083750542f, .00138365394f};  // on +-ln(2) / 2
  x = select(x > 89.f, splat(89.f), x);
  x = select(x < -104.f, splat(-104.f), x);
  const vf round = splat(12582912.f), rounded = x * 1.44269504f + round, n = rounded - round;  // the nearest integer
  const vf rest = (x - n * .693359375f) + n * 2.12194440e-4f;
  // 2^n in two factors, for it may overflow or be denormal where the result is not.
  const vi power = (vi)rounded - (vi)round, half = power >> 1;
  return polynomial(rest, fit) * (vf)((half + 127) << 23) * (vf)((power - half + 127) << 23);
}

INLINE vf sigmoid(vf x) { return 1.f / (1.f + exponential(-x)); }

INLINE vf hyperbolic_tangent(vf x) {
  constexpr float fit[] = {.999999996f,   -.333332522f, .133309321f,
                           -.0537053182f, .0205399317f, -.00560273399f};  // of tanh(x) / x in x * x, up to .4
  const vf size = magnitude(x), far = 1.f - 2.f / (1.f + exponential(2.f * size));
  return with_sign_of(select(size < .63f, size * polynomial(x * x, fit), far), x);
}

INLINE vf error_function(vf x) {
  constexpr float near_fit[] = {1.12837917f,   -.376126258f,   .112835851f,   -.0268538118f,
                                .00518832749f, -.00080101919f, 7.85385567e-5f};  // of erf(x) / x in x * x, up to 1
  constexpr float far_fit[] = {0.21080637f,     -0.111521365f,    0.056110334f,   -0.026998289f,
                               0.0124891455f,   -0.00560994058f,  0.00241134066f, -0.000918023481f,
                               0.000384698785f, -0.000244399185f, 8.96067108e-05f};  // of exp(x * x) * (1 - erf(x)) in
                                                                                     // (x - 2.5) / 1.5, from 1 to 4
  vf size = magnitude(x);
  const vf near = size * polynomial(x * x, near_fit);
  size = select(size > 4.f, splat(4.f), size);
  const vf far = 1.f - exponential(-size * size) * polynomial((size - 2.5f) * (1.f / 1.5f), far_fit);
  return with_sign_of(select(size < 1.f, near, far), x);
}
