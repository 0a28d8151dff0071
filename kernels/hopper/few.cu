// SPDX-License-Identifier: Apache-2.0
// A call of few tokens in one launch.
#include "few.cuh"

extern "C" __global__ void __launch_bounds__(GEMM_SM90_THREADS, 1) few_sm90(const __grid_constant__ FewParams p) {
  nvfp4::few<nvfp4::ConfigOf<FEW_TOKENS, 2, nvfp4::Epilogue::kGemm1>>(p);
}
