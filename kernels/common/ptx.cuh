// SPDX-License-Identifier: Apache-2.0
// PTX that GEMMs of more than one family need, one wrapper an instruction. Sources are sections of the PTX ISA.
#pragma once
#include <cstdint>

namespace nvfp4::ptx {

__device__ inline uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// ---- mbarrier ("Parallel Synchronization and Communication Instructions: mbarrier")

__device__ inline void mbarrier_init(uint64_t& bar, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&bar)), "r"(count) : "memory");
}

// Makes initialised barriers visible to the copy engine.
__device__ inline void fence_mbarrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ inline void mbarrier_arrive(uint64_t& bar) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&bar)) : "memory");
}

// Raises the bytes that the current phase waits for; arrives not.
__device__ inline void mbarrier_expect_tx(uint64_t& bar, uint32_t bytes) {
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&bar)), "r"(bytes)
               : "memory");
}

// ---- Copies ("Data Movement and Conversion Instructions: cp.async, cp.async.bulk")

// Asks for the line at an address.
__device__ inline void prefetch(const void* at) {
  asm volatile("prefetch.global.L1 [%0];" ::"l"(__cvta_generic_to_global(at)));
}

// How L2 is to keep what is read once, or as usual.
__device__ inline uint64_t read_policy(bool once) {
  uint64_t first, normal;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(first));
  asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(normal));
  return once ? first : normal;
}

__device__ inline void cp_async_16(uint32_t dst, const void* src) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(dst), "l"(__cvta_generic_to_global(src)) : "memory");
}

__device__ inline void cp_async_4(uint32_t dst, const void* src) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(dst), "l"(__cvta_generic_to_global(src)) : "memory");
}

// Zeros where not `valid`; nothing is read then.
__device__ inline void cp_async_16_or_zeros(uint32_t dst, const void* src, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(__cvta_generic_to_global(src)),
               "r"(valid ? 16 : 0)
               : "memory");
}

__device__ inline void store_shared_u16(uint32_t dst, uint16_t value) {
  asm volatile("st.shared.u16 [%0], %1;" ::"r"(dst), "h"(value) : "memory");
}

// One of the barrier's expected arrivals, made when all cp.async of this thread so far have landed.
__device__ inline void cp_async_arrive(uint64_t& bar) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(&bar)) : "memory");
}

__device__ inline void cp_async_wait_all() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// ---- Barriers

__device__ inline void named_barrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- Integer arithmetic

// Bytes of high:low by the low four nibbles of `selector`, whose top bits must be 0.
__device__ inline uint32_t select_bytes(uint32_t low, uint32_t high, uint32_t selector) {
  uint32_t d;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(low), "r"(high), "r"(selector));
  return d;
}

// a & mask | b
__device__ inline uint32_t masked_or(uint32_t a, uint32_t mask, uint32_t b) {
  uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(d) : "r"(a), "r"(mask), "r"(b));
  return d;
}

}  // namespace nvfp4::ptx
