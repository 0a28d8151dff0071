// SPDX-License-Identifier: Apache-2.0
// The GEMMs of few tokens, which find their routing; the second combines.
#include "few.cuh"

#define NVFP4_FEW(name, config)                                      \
  extern "C" __global__ void __launch_bounds__(GEMM_SM90_THREADS, 1) \
      gemm1_few##name(const __grid_constant__ FewParams p) {         \
    nvfp4::gemm1_few<nvfp4::config>(p);                              \
  }                                                                  \
  extern "C" __global__ void __launch_bounds__(GEMM_SM90_THREADS, 1) \
      gemm2_few##name(const __grid_constant__ FewParams p) {         \
    nvfp4::gemm2_few<nvfp4::config>(p);                              \
  }

NVFP4_FEW(_sm90, FewBf16)
NVFP4_FEW(_fp8_sm90, FewFp8)
NVFP4_FEW(_rounded_sm90, FewRounded)
