// SPDX-License-Identifier: Apache-2.0
// The activation between the GEMMs, each to 2^-20. rust/activation.rs is the same; tests/golden/activation.txt pins
// both.
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

// x * (1 + tanh(z)) / 2 with z = sqrt(2 / pi) * (x + 0.044715 * x^3), as x * sigmoid(2 z).
__device__ inline float gelu_tanh(float x) { return silu(x, 1.59576912f * (1.0f + 0.044715f * x * x)); }

// x * (1 + erf(x / sqrt(2))) / 2, as x * erfc(-x / sqrt(2)) / 2: the same, and exact where erf is near -1.
__device__ inline float gelu(float x) { return 0.5f * x * erfcf(-0.70710678f * x); }

// One element of h from one of gate and one of up.
__device__ inline float activate_gated(const Activation& p, float gate, float up) {
  switch (p.kind) {
    case ACTIVATION_SWIGLU_STEP: return min_nan(silu(gate, 1.0f), p.limit) * within(up, p.limit);
    case ACTIVATION_SITU: {
      const float sigmoid = reciprocal_approx(1.0f + exp2_approx(-1.44269504f * gate));
      return soft_bound(gate, p.beta) * sigmoid * (isfinite(p.limit) ? soft_bound(up, p.limit) : up);
    }
    case ACTIVATION_GELU_TANH: return gelu_tanh(gate) * up;
    case ACTIVATION_GELU: return gelu(gate) * up;
    case ACTIVATION_SWIGLU:
    default:  // the host knows no other
      return swiglu(p, gate, up);
  }
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
