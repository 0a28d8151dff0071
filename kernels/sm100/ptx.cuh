// SPDX-License-Identifier: Apache-2.0
// The PTX that these kernels need, one wrapper an instruction. Sources are sections of the PTX ISA.
#pragma once
#include <cstdint>

namespace nvfp4::sm100 {

__device__ inline uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// True in one lane of a warp, all of which call.
__device__ inline bool elect_one() {
  uint32_t elected;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "elect.sync _|p, 0xFFFFFFFF;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}\n"
      : "=r"(elected));
  return elected;
}

// ---- mbarrier ("Parallel Synchronization and Communication Instructions: mbarrier")

__device__ inline void mbarrier_init(uint64_t& bar, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&bar)), "r"(count) : "memory");
}

// Makes initialised barriers visible to the copy engine and the tensor core.
__device__ inline void fence_mbarrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ inline void arrive(uint64_t& bar) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&bar)) : "memory");
}

// Arrives, and lets the phase wait for so many bytes.
__device__ inline void arrive_expect(uint64_t& bar, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&bar)), "r"(bytes)
               : "memory");
}

// ---- Copies ("Data Movement and Conversion Instructions: cp.async.bulk")

// How L2 is to keep what is read once, or as usual.
__device__ inline uint64_t read_policy(bool once) {
  uint64_t first, normal;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(first));
  asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(normal));
  return once ? first : normal;
}

// Global to shared through the copy engine; `bytes` a multiple of 16, both addresses 16-byte aligned.
__device__ inline void bulk_copy(uint32_t dst, const void* src, uint32_t bytes, uint64_t& bar, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(
          dst),
      "l"(__cvta_generic_to_global(src)), "r"(bytes), "r"(shared_address(&bar)), "l"(policy)
      : "memory");
}

// ---- Tensor memory and its core ("TensorCore 5th Generation Family Instructions")

// By a whole warp; the address comes to shared memory. Waits until other CTAs have given back enough.
__device__ inline void tmem_alloc(uint32_t& address, uint32_t columns) {
  asm volatile("tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%0], %1;" ::"r"(shared_address(&address)),
               "r"(columns)
               : "memory");
}
__device__ inline void tmem_dealloc(uint32_t address, uint32_t columns) {
  asm volatile("tcgen05.dealloc.cta_group::1.sync.aligned.b32 %0, %1;" ::"r"(address), "r"(columns) : "memory");
}
__device__ inline void tmem_relinquish() {
  asm volatile("tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;" ::: "memory");
}

// By one thread: d[128 lanes, n columns] (+)= a[128, 64] b[n, 64]^T of e2m1, with scales in tensor memory.
__device__ inline void mma_nvfp4(uint32_t d, uint64_t a, uint64_t b, uint32_t instruction, uint32_t a_scales,
                                 uint32_t b_scales, bool accumulate) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %6, 0;\n"
      "tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.block16 [%0], %1, %2, %3, [%4], [%5], p;\n"
      "}\n" ::"r"(d),
      "l"(a), "l"(b), "r"(instruction), "r"(a_scales), "r"(b_scales), "r"(static_cast<uint32_t>(accumulate))
      : "memory");
}

// By one thread: d[128 lanes, n columns] (+)= a[128, 16] b[n, 16]^T of bf16, a in tensor memory, two to a column.
__device__ inline void mma_bf16(uint32_t d, uint32_t a, uint64_t b, uint32_t instruction, bool accumulate) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %4, 0;\n"
      "tcgen05.mma.cta_group::1.kind::f16 [%0], [%1], %2, %3, p;\n"
      "}\n" ::"r"(d),
      "r"(a), "l"(b), "r"(instruction), "r"(static_cast<uint32_t>(accumulate))
      : "memory");
}

// By one thread: 512 bytes of scales, to all four quarters of the lanes. In order before its later multiplications.
__device__ inline void copy_scales(uint32_t d, uint64_t scales) {
  asm volatile("tcgen05.cp.cta_group::1.32x128b.warpx4 [%0], %1;" ::"r"(d), "l"(scales) : "memory");
}

// One arrival when all that this thread issued is done.
__device__ inline void commit(uint64_t& bar) {
  asm volatile("tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%0];" ::"r"(shared_address(&bar))
               : "memory");
}

// Before telling other threads of this one's loads and stores, and after hearing of theirs, or of a commit.
__device__ inline void fence_before() { asm volatile("tcgen05.fence::before_thread_sync;" ::: "memory"); }
__device__ inline void fence_after() { asm volatile("tcgen05.fence::after_thread_sync;" ::: "memory"); }

// By a whole warp, of its quarter of the lanes: eight neighbouring columns.
__device__ inline void tmem_load(float (&v)[8], uint32_t address) {
  asm volatile("tcgen05.ld.sync.aligned.32x32b.x8.b32 {%0, %1, %2, %3, %4, %5, %6, %7}, [%8];"
               : "=f"(v[0]), "=f"(v[1]), "=f"(v[2]), "=f"(v[3]), "=f"(v[4]), "=f"(v[5]), "=f"(v[6]), "=f"(v[7])
               : "r"(address)
               : "memory");
}
// The values are named so that no use of them moves before the wait.
__device__ inline void tmem_wait_load(float (&v)[8]) {
  asm volatile("tcgen05.wait::ld.sync.aligned;"
               : "+f"(v[0]), "+f"(v[1]), "+f"(v[2]), "+f"(v[3]), "+f"(v[4]), "+f"(v[5]), "+f"(v[6]),
                 "+f"(v[7])::"memory");
}

// By a whole warp, to its quarter of the lanes: sixteen neighbouring columns.
__device__ inline void tmem_store(uint32_t address, const uint32_t (&v)[16]) {
  asm volatile(
      "tcgen05.st.sync.aligned.32x32b.x16.b32 [%0], {%1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16};" ::"r"(address),
      "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3]), "r"(v[4]), "r"(v[5]), "r"(v[6]), "r"(v[7]), "r"(v[8]), "r"(v[9]),
      "r"(v[10]), "r"(v[11]), "r"(v[12]), "r"(v[13]), "r"(v[14]), "r"(v[15])
      : "memory");
}
__device__ inline void tmem_wait_store() { asm volatile("tcgen05.wait::st.sync.aligned;" ::: "memory"); }

// ---- bf16 arithmetic

__device__ inline uint32_t mul_bf16x2(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}

}  // namespace nvfp4::sm100
