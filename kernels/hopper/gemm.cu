// SPDX-License-Identifier: Apache-2.0
// The GEMMs of weights that are exact: in bf16, or in e4m3.
#include "gemm.cuh"

// One kernel for each epilogue, kind of row and row-tile size.
#define NVFP4_GEMM(name, n, column_bytes, epilogue)                                                                   \
  extern "C" __global__ void __launch_bounds__(nvfp4::ConfigOf<n, column_bytes, nvfp4::Epilogue::epilogue>::kThreads, \
                                               1) name##_n##n(const __grid_constant__ GemmParams p) {                 \
    nvfp4::gemm<nvfp4::ConfigOf<n, column_bytes, nvfp4::Epilogue::epilogue>, nvfp4::Epilogue::epilogue>(p);           \
  }
#define NVFP4_BF16_GEMMS(n)                   \
  NVFP4_GEMM(gemm1_sm90, n, 2, kGemm1)        \
  NVFP4_GEMM(gemm1_any_sm90, n, 2, kGemm1Any) \
  NVFP4_GEMM(gemm2_sm90, n, 2, kGemm2)        \
  NVFP4_GEMM(gemm2_any_sm90, n, 2, kGemm2Any) \
  NVFP4_GEMM(linear_sm90, n, 2, kLinear)
#define NVFP4_FP8_GEMMS(n)                        \
  NVFP4_GEMM(gemm1_fp8_sm90, n, 1, kGemm1)        \
  NVFP4_GEMM(gemm1_any_fp8_sm90, n, 1, kGemm1Any) \
  NVFP4_GEMM(gemm2_fp8_sm90, n, 1, kGemm2)        \
  NVFP4_GEMM(gemm2_any_fp8_sm90, n, 1, kGemm2Any)

GEMM_SM90_ROW_TILES(NVFP4_BF16_GEMMS)
GEMM_SM90_FP8_ROW_TILES(NVFP4_FP8_GEMMS)
