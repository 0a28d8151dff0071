// SPDX-License-Identifier: Apache-2.0
// The grouped GEMM of compute capability 10.x: out = rows x weights^T on the fifth-generation tensor core, in swapAB
// form: 128 weight rows are its rows, up to 256 token rows its columns, as many as a tile has.
//
//   warps 0 - 3   Epilogue     sums from tensor memory, the activation, to memory
//   warp 4        Producer     weights and token rows by bulk copies, all stages ahead
//   warp 5        Multiplier   scales to tensor memory, products (e2m1 x e2m1; or bf16, with weights in tensor memory)
//   warps 6 - 13  Dequantizer  mode bf16: weights to tensor memory
#include "dequantize.cuh"
#include "epilogue.cuh"
#include "mma.cuh"

namespace nvfp4::sm100 {
namespace {

template <class F>
__device__ void init_barriers(Control& control) {
  for (int s = 0; s < kMostStages; ++s) {
    mbarrier_init(control.full[s], 1);
    mbarrier_init(control.empty[s], F::kBf16 ? 9 : 1);  // the tensor core, and the warps that dequantise
  }
  for (int s = 0; s < 2; ++s) {
    mbarrier_init(control.sums_full[s], 1);
    mbarrier_init(control.sums_empty[s], 4);
  }
  for (int s = 0; s < kPieces; ++s) {
    mbarrier_init(control.piece_full[s], 4);
    mbarrier_init(control.piece_empty[s], 1);
  }
  fence_mbarrier_init();
}

template <class F, Output kOutput>
__device__ void work(const Cta<F>& cta) {
  const int warp = threadIdx.x / 32;
  if (warp < kProducer) {
    Epilogue<F, kOutput>(cta).run();
  } else if (warp == kProducer) {
    if (elect_one()) Producer<F>(cta).run();
  } else if (warp == kMma) {
    if (elect_one()) Multiplier<F>(cta).run();
  } else if constexpr (F::kBf16) {
    Dequantizer<F>(cta).run();
  }
  __syncwarp();
}

template <class F, Output kOutput>
__device__ void gemm(const GemmSm100Params& p) {
  extern __shared__ __align__(1024) uint8_t bytes[];
  const Cta<F> cta(p, bytes);
  Control& control = cta.control();
  const int warp = threadIdx.x / 32;
  if (threadIdx.x == 0) init_barriers<F>(control);
  if (warp == kMma) {
    tmem_alloc(control.tmem, kTmemColumns);
    tmem_relinquish();
  }
  fence_before();
  __syncthreads();
  fence_after();
  work<F, kOutput>(cta);
  fence_before();
  __syncthreads();
  fence_after();
  if (warp == kMma) tmem_dealloc(control.tmem, kTmemColumns);
}

}  // namespace
}  // namespace nvfp4::sm100

#define NVFP4_GEMM(name, is_bf16, halves, output)                                                  \
  extern "C" __global__ void __launch_bounds__((nvfp4::sm100::Form<is_bf16, halves>::kThreads), 1) \
      name(const __grid_constant__ GemmSm100Params p) {                                            \
    nvfp4::sm100::gemm<nvfp4::sm100::Form<is_bf16, halves>, nvfp4::sm100::Output::output>(p);      \
  }

// With a gate, or without; the last of each three is GEMM2's and a linear's, too.
NVFP4_GEMM(gemm1_nvfp4_sm100, false, 2, kNvfp4Lines)
NVFP4_GEMM(gemm1_nvfp4_rows_sm100, false, 2, kRows)
NVFP4_GEMM(gemm_nvfp4_sm100, false, 1, kNvfp4Lines)
NVFP4_GEMM(gemm_nvfp4_rows_sm100, false, 1, kRows)
NVFP4_GEMM(gemm1_bf16_sm100, true, 2, kBf16Lines)
NVFP4_GEMM(gemm_bf16_sm100, true, 1, kBf16Lines)
NVFP4_GEMM(gemm_bf16_rows_sm100, true, 1, kRows)
