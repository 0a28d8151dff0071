// SPDX-License-Identifier: Apache-2.0
// The GEMMs of weights that are rounded to e4m3 (mode fp8 with fp8_max_error). Those of any activation serve biases and
// experts without a gate as well.
#include "gemm.cuh"

#define NVFP4_ROUNDED_GEMM(name, n, epilogue)                                                                     \
  extern "C" __global__ void __launch_bounds__(nvfp4::RoundedConfigOf<n, nvfp4::Epilogue::epilogue>::kThreads, 1) \
      name##_n##n(const __grid_constant__ GemmParams p) {                                                         \
    nvfp4::gemm<nvfp4::RoundedConfigOf<n, nvfp4::Epilogue::epilogue>, nvfp4::Epilogue::epilogue>(p);              \
  }
#define NVFP4_ROUNDED_GEMMS(n)                             \
  NVFP4_ROUNDED_GEMM(gemm1_rounded_sm90, n, kGemm1)        \
  NVFP4_ROUNDED_GEMM(gemm1_any_rounded_sm90, n, kGemm1Any) \
  NVFP4_ROUNDED_GEMM(gemm2_rounded_sm90, n, kGemm2)        \
  NVFP4_ROUNDED_GEMM(gemm2_any_rounded_sm90, n, kGemm2Any)

GEMM_SM90_ROUNDED_ROW_TILES(NVFP4_ROUNDED_GEMMS)
