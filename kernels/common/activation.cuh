// SPDX-License-Identifier: Apache-2.0
// The activation between the GEMMs.
#pragma once
#include "../params.h"

namespace nvfp4 {

// min and max that keep a NaN, unlike fminf.
__device__ inline float min_nan(float a, float b) {
  float d;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(d) : "f"(a), "f"(b));
  return d;
}

__device__ inline float max_nan(float a, float b) {
  float d;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(d) : "f"(a), "f"(b));
  return d;
}

__device__ inline float exp2_approx(float x) {
  float d;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(x));
  return d;
}

__device__ inline float reciprocal_approx(float x) {
  float d;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(x));
  return d;
}

// gate = min(gate, limit); up = clamp(up, -limit, limit); gate * sigmoid(alpha * gate) * (up + beta), to 2^-21.
__device__ inline float swiglu(const Activation& p, float gate, float up) {
  constexpr float kLog2E = 1.44269504f;
  gate = min_nan(gate, p.limit);
  up = max_nan(min_nan(up, p.limit), -p.limit);
  return gate * reciprocal_approx(1.0f + exp2_approx(-kLog2E * p.alpha * gate)) * (up + p.beta);
}

// One element of h from one of gate and one of up.
__device__ inline float activate(const Activation& p, float gate, float up) {
  switch (p.kind) {
    case ACTIVATION_SWIGLU:
    default:  // the host knows no other
      return swiglu(p, gate, up);
  }
}

}  // namespace nvfp4
