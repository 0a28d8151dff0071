// SPDX-License-Identifier: Apache-2.0
// The activation between the GEMMs, each to 2^-20, GELU by erf to 2^-19. rust/activation.rs is the same;
// tests/golden/activation.txt pins both.
#pragma once
#include "../params.h"
#ifdef __CUDACC__
#include "approx.cuh"
#endif

namespace nvfp4 {

// x * sigmoid(a * x)
__device__ inline float silu(float x, float a) {
  constexpr float kLog2E = 1.44269504f;
  return x * reciprocal_approx(1.0f + exp2_approx(-kLog2E * a * x));
}

__device__ inline float within(float x, float limit) { return max_nan(min_nan(x, limit), -limit); }

// limit * tanh(x / limit)
__device__ inline float soft_bound(float x, float limit) { return limit * tanhf(x * reciprocal_approx(limit)); }

// gate = min(gate, limit); up = clamp(up, -limit, limit); gate * sigmoid(alpha * gate) * (up + beta), to 2^-21.
__device__ inline float swiglu(const Activation& p, float gate, float up) {
  return silu(min_nan(gate, p.limit), p.alpha) * (within(up, p.limit) + p.beta);
}

// x * (1 + tanh(z)) / 2 with z = sqrt(2 / pi) * (x + 0.044715 * x^3), as x * sigmoid(2 z): 2 z / x.
__device__ inline float gelu_tanh_factor(float x) { return 1.59576912f * (1.0f + 0.044715f * x * x); }

// x * (1 + erf(x / sqrt(2))) / 2, as x * sigmoid(z) with the log odds z = ln(P / (1 - P)) of the normal distribution
// P(x): z / x, which is even, to what gelu needs for 2^-19, as a polynomial. Past its end gelu is 0 or x. erfcf would
// be five times as many instructions, in a loop that is unrolled over all elements of a thread.
__device__ inline float gelu_factor(float x) {
  constexpr float kEnd = 38.44f;  // 6.2^2
  constexpr float kCoefficients[] = {-2.89340949e-15f, 4.27290663e-13f,  -2.52700512e-11f, 7.15876136e-10f,
                                     -6.35008934e-09f, -2.09338182e-07f, 7.99780901e-06f,  -1.12665773e-04f,
                                     -5.73679863e-05f, 7.26558119e-02f,  1.59577358f};
  const float square = min_nan(x * x, kEnd);
  float sum = kCoefficients[0];
#pragma unroll
  for (int i = 1; i < 11; ++i) sum = fmaf(sum, square, kCoefficients[i]);
  return sum;
}

// One element of h from one of gate and one of up. Kinds of one form share its code, because every element of a thread
// has a copy of it: y * (clamp(up) + beta) with y = x * sigmoid(a * x). The host sets numbers that a kind lacks to
// nothing.
__device__ inline float activate_gated(const Activation& p, float gate, float up) {
  if (p.kind == ACTIVATION_SITU) {
    const float sigmoid = reciprocal_approx(1.0f + exp2_approx(-1.44269504f * gate));
    return soft_bound(gate, p.beta) * sigmoid * (isfinite(p.limit) ? soft_bound(up, p.limit) : up);
  }
  const bool clamps_after = p.kind == ACTIVATION_SWIGLU_STEP;
  const float x = clamps_after ? gate : min_nan(gate, p.limit);
  float a = p.alpha;
  if (p.kind == ACTIVATION_GELU_TANH) a = gelu_tanh_factor(x);
  if (p.kind == ACTIVATION_GELU) a = gelu_factor(x);
  const float y = silu(x, a);
  return (clamps_after ? min_nan(y, p.limit) : y) * (within(up, p.limit) + p.beta);
}

// The same where there is no gate; ACTIVATION_NONE is what GEMM2's results go through.
__device__ inline float activate_plain(int kind, float x) {
  switch (kind) {
    case ACTIVATION_RELU2: {
      const float positive = max_nan(x, 0.0f);
      return positive * positive;
    }
    case ACTIVATION_SILU: return silu(x, 1.0f);
    default: return x;
  }
}

// Of both; without a gate, of up alone.
__device__ inline float activate(const Activation& p, float gate, float up) {
  const bool is_plain = p.kind == ACTIVATION_RELU2 || p.kind == ACTIVATION_SILU;
  return is_plain ? activate_plain(p.kind, up) : activate_gated(p, gate, up);
}

}  // namespace nvfp4
