// SPDX-License-Identifier: Apache-2.0
// Between the GEMMs where GEMM1 has no fused epilogue: the activation, rounded to bf16, and on to NVFP4 in mode nvfp4.
#include "../common/activation.cuh"
#include "../quantize/quantize_row.cuh"
#include "params.h"

namespace nvfp4 {
namespace {

// Gives a row of h in blocks of 16.
struct LoadActivation {
  const Activation& activation;
  const float* gate;
  const float* up;

  __device__ LoadActivation(const ActivationParams& p, int64_t row)
      : activation(p.activation),
        gate(p.gate_up + row * p.projections * p.out.num_cols),
        up(gate + (p.projections - 1) * p.out.num_cols) {}
  __device__ void operator()(int b, float (&h)[kBlockSize]) const {
#pragma unroll
    for (int i = 0; i < kBlockSize; i += 4) {
      const float4 g = *reinterpret_cast<const float4*>(gate + b * kBlockSize + i);
      const float4 u = *reinterpret_cast<const float4*>(up + b * kBlockSize + i);
      h[i] = rounded(g.x, u.x);
      h[i + 1] = rounded(g.y, u.y);
      h[i + 2] = rounded(g.z, u.z);
      h[i + 3] = rounded(g.w, u.w);
    }
  }
  // The quantiser's input is bf16 on every backend.
  __device__ float rounded(float g, float u) const {
    return __bfloat162float(__float2bfloat16_rn(activate(activation, g, u)));
  }
};

// Row `row` of h; zeros where nothing is routed, as in the quantised form.
__device__ void store_row(const ActivationParams& p, int64_t row, const Row& source, const LoadActivation& load) {
  auto* h = static_cast<__nv_bfloat16*>(p.h) + row * p.out.num_cols;
  for (int b = threadIdx.x; b < p.out.num_cols / kBlockSize; b += blockDim.x) {
    float values[kBlockSize] = {};
    if (source.source >= 0) load(b, values);
#pragma unroll
    for (int i = 0; i < kBlockSize; i += 2) {
      *reinterpret_cast<__nv_bfloat162*>(h + b * kBlockSize + i) = __floats2bfloat162_rn(values[i], values[i + 1]);
    }
  }
}

}  // namespace
}  // namespace nvfp4

// One block of threads a row.
extern "C" __global__ void __launch_bounds__(BLOCK_THREADS, 2) swiglu_rows(const __grid_constant__ ActivationParams p) {
  __shared__ float scratch[32];
  const float static_scale = nvfp4::static_scale_of(p.out);
  nvfp4::for_each_row_of_block(p.out.input.source, [&](int32_t r) {
    const nvfp4::Row row = nvfp4::row_at(p.out.input.source, r);
    const nvfp4::LoadActivation load(p, r);
    if (p.out.packed) {
      nvfp4::quantize_row<nvfp4::Form::kSwizzled>(p.out, static_scale, r, row, load, scratch);
    } else {
      nvfp4::store_row(p, r, row, load);
    }
  });
}
