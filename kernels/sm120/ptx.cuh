// SPDX-License-Identifier: Apache-2.0
// The PTX that kernels of compute capability 12.x need beside ../common/ptx.cuh, in its manner.
#pragma once
#include "../common/ptx.cuh"

namespace nvfp4::ptx {

// Global to shared through the copy engine; `bytes` a multiple of 16, both addresses 16-byte aligned. To
// `.shared::cta`: with `.shared::cluster` ptxas adds a check and a stack on these GPUs.
__device__ inline void bulk_copy(void* dst, const void* src, uint32_t bytes, uint64_t& bar, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], "
      "%4;" ::"r"(shared_address(dst)),
      "l"(__cvta_generic_to_global(src)), "r"(bytes), "r"(shared_address(&bar)), "l"(policy)
      : "memory");
}

// 16 or 8 bytes, of which the first `valid` are read, and the rest are 0.
__device__ inline void cp_async_16_of(uint32_t dst, const void* src, uint32_t valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(__cvta_generic_to_global(src)),
               "r"(valid)
               : "memory");
}
__device__ inline void cp_async_8_of(uint32_t dst, const void* src, uint32_t valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(dst), "l"(__cvta_generic_to_global(src)), "r"(valid)
               : "memory");
}
__device__ inline void cp_async_4_of(uint32_t dst, const void* src, uint32_t valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(dst), "l"(__cvta_generic_to_global(src)), "r"(valid)
               : "memory");
}

// ---- Tensor core ("Warp Level Matrix Instructions: ldmatrix, mma")

// Matrices of 8 rows x 16 bytes, two or four; lane 8 m + r names row r of matrix m. Lane 4 g + c gets word c of row g.
__device__ inline void load_matrices(uint32_t (&d)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(d[0]), "=r"(d[1])
               : "r"(shared_address(row))
               : "memory");
}
__device__ inline void load_matrices(uint32_t (&d)[2], uint32_t (&e)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(e[0]), "=r"(e[1])
               : "r"(shared_address(row))
               : "memory");
}

// The first four of d += A * B: layout.cuh has the fragments. The thread ids choose the lanes whose scales count.
template <int kThreadIdA, int kThreadIdB>
__device__ inline void mma_nvf4(float* d, const uint32_t (&a)[4], const uint32_t (&b)[2], uint32_t sfa, uint32_t sfb) {
  asm volatile(
      "mma.sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::4X.f32.e2m1.e2m1.f32.ue4m3 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3}, %10, {0, %12}, %11, {0, %13};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(sfa), "r"(sfb), "n"(kThreadIdA),
        "n"(kThreadIdB));
}

__device__ inline void mma_bf16(float* d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Subnormals count, in what is read and in what is made.
__device__ inline uint32_t mul_bf16x2(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}

}  // namespace nvfp4::ptx
