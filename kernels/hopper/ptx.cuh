// SPDX-License-Identifier: Apache-2.0
// The PTX that Hopper's kernels need beside ../common/ptx.cuh, in its manner.
#pragma once
#include "../common/ptx.cuh"

namespace nvfp4::ptx {

__device__ inline void mbarrier_wait(uint64_t& bar, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "wait:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra wait;\n"
      "}\n" ::"r"(shared_address(&bar)),
      "r"(parity)
      : "memory");
}

// Global to shared through the copy engine; `bytes` a multiple of 16, both addresses 16-byte aligned.
__device__ inline void bulk_copy(void* dst, const void* src, uint32_t bytes, uint64_t& bar, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], "
      "%4;" ::"r"(shared_address(dst)),
      "l"(__cvta_generic_to_global(src)), "r"(bytes), "r"(shared_address(&bar)), "l"(policy)
      : "memory");
}

// Orders this thread's ordinary writes to shared memory before later reads by tensor cores.
__device__ inline void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

template <int kRegisters>
__device__ inline void raise_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
__device__ inline void lower_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// ---- Clusters ("Parallel Synchronization and Communication Instructions: barrier.cluster")

// What a thread wrote before it arrived, others see after they waited. Threads that have ended are not waited for.
__device__ inline void cluster_arrive() { asm volatile("barrier.cluster.arrive.release;" ::: "memory"); }
__device__ inline void cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }

__device__ inline int rank_in_cluster() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}

__device__ inline int ctas_of_cluster() {
  uint32_t ctas;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(ctas));
  return static_cast<int>(ctas);
}

// The same place in the shared memory of the cluster's first CTA.
__device__ inline void* in_first_of_cluster(void* shared) {
  uint64_t at;
  asm("mapa.u64 %0, %1, 0;" : "=l"(at) : "l"(shared));
  return reinterpret_cast<void*>(at);
}

// Both halves of a times half kHalf of b. The broadcast costs nothing: it becomes an operand's modifier.
template <int kHalf>
__device__ uint32_t mul_bf16x2_half(uint32_t a, uint32_t b);

template <>
__device__ inline uint32_t mul_bf16x2_half<0>(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("{\n"
      ".reg .b16 low, high;\n"
      ".reg .b32 both;\n"
      "mov.b32 {low, high}, %2;\n"
      "mov.b32 both, {low, low};\n"
      "mul.rn.bf16x2 %0, %1, both;\n"
      "}\n"
      : "=r"(d)
      : "r"(a), "r"(b));
  return d;
}

template <>
__device__ inline uint32_t mul_bf16x2_half<1>(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("{\n"
      ".reg .b16 low, high;\n"
      ".reg .b32 both;\n"
      "mov.b32 {low, high}, %2;\n"
      "mov.b32 both, {high, high};\n"
      "mul.rn.bf16x2 %0, %1, both;\n"
      "}\n"
      : "=r"(d)
      : "r"(a), "r"(b));
  return d;
}

// The high half of `a` in both halves, for what is no NaN of f16. A shift would take the integer pipe, which is what is
// short in mode fp8; -0 is added as f16, on another, which changes no bit. Subnormals stay, too.
__device__ inline uint32_t high_half_f16(uint32_t a) {
  uint32_t d;
  asm("{\n"
      ".reg .b16 low, high;\n"
      ".reg .b32 both;\n"
      "mov.b32 {low, high}, %1;\n"
      "mov.b32 both, {high, high};\n"
      "add.rn.f16x2 %0, both, %2;\n"
      "}\n"
      : "=r"(d)
      : "r"(a), "r"(0x80008000u));
  return d;
}

}  // namespace nvfp4::ptx
