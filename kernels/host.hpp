// SPDX-License-Identifier: Apache-2.0
// Those headers of kernels/ that need no GPU, for a host's C++17 compiler: what CUDA adds to the language is defined
// here, and only here. So what they state can be compared with what Rust states (tests/oracle does), where there is no
// CUDA.
//
// Compile with -ffp-contract=off: each operation rounds once, as on the device.
#pragma once
#ifdef __CUDACC__
#error "kernels/host.hpp is for compilers without CUDA; nvcc includes the headers themselves."
#endif
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#define __host__
#define __device__

namespace nvfp4 {

using ::fmaf;
using ::tanhf;
using std::isfinite;
using std::isnan;
using std::min;

// Of the CTA whose part a host computes, and of all.
struct HostIndex {
  int x;
};
inline thread_local HostIndex blockIdx, gridDim;

inline float __uint_as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// common/approx.cuh
inline float min_nan(float a, float b) { return a < b || std::isnan(a) ? a : b; }
inline float max_nan(float a, float b) { return a > b || std::isnan(a) ? a : b; }
inline float exp2_approx(float x) { return std::exp2(x); }
inline float reciprocal_approx(float x) { return 1.0f / x; }

// common/warp.cuh
template <class Holds>
int32_t first_lane(Holds holds) {
  int32_t lane = 0;
  while (lane < 32 && !holds(lane)) ++lane;
  return lane;
}

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fmaf(a, b, c); }

}  // namespace nvfp4

#include "common/activation.cuh"
#include "common/format.cuh"
#include "common/tiles.cuh"
#include "hopper/config.cuh"
#include "route/segments.cuh"
#include "sm100/config.cuh"
#include "sm120/config.cuh"
