// SPDX-License-Identifier: Apache-2.0
// A wait in vain: block 2 of 4 waits a tenth of a second for a barrier that nobody arrives at, the others for one that
// comes. Prints the record, what the driver says after it, and how long a wait that succeeds takes beside a bare one.
// tests/test_gpu_life.py compiles and runs it.
#include <cstdio>

#include "../../kernels/common/wait.cuh"

namespace {

constexpr uint32_t kBarrier = 7;
constexpr int kTries = 1000;

__device__ void init(uint64_t& bar) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(&bar));
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(address) : "memory");
}

__device__ void arrive(uint64_t& bar) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(&bar));
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address) : "memory");
}

__global__ void wait_in_vain(const __grid_constant__ WaitBound bound) {
  __shared__ uint64_t bar;
  init(bar);
  if (blockIdx.x != 2) arrive(bar);
  nvfp4::bounded_wait(bar, 0, kBarrier, bound);
}

// Cycles of kTries phases, each complete before it is waited for.
template <bool kBounded>
__global__ void wait_for_what_is_there(const __grid_constant__ WaitBound bound, long long* cycles) {
  __shared__ uint64_t bar;
  init(bar);
  const long long start = clock64();
  for (uint32_t i = 0; i < kTries; ++i) {
    arrive(bar);
    if constexpr (kBounded) {
      nvfp4::bounded_wait(bar, i & 1, kBarrier, bound);
    } else {
      while (!nvfp4::try_wait(bar, i & 1)) continue;
    }
  }
  *cycles = clock64() - start;
}

}  // namespace

int main() {
  HangRecord* record;
  long long* cycles;
  if (cudaHostAlloc(&record, sizeof *record, cudaHostAllocMapped) != cudaSuccess) return 1;
  if (cudaHostAlloc(&cycles, 2 * sizeof *cycles, cudaHostAllocMapped) != cudaSuccess) return 1;
  *record = {};
  const WaitBound bound = {record, 100000000, 42, 0};
  for (int warm = 0; warm < 2; ++warm) {
    wait_for_what_is_there<true><<<1, 1>>>(bound, cycles);
    wait_for_what_is_there<false><<<1, 1>>>(bound, cycles + 1);
  }
  printf("waits that succeed: %s\n", cudaGetErrorString(cudaDeviceSynchronize()));
  printf("cycles: bounded %lld, bare %lld\n", cycles[0] / kTries, cycles[1] / kTries);
  printf("record before: kernel %u\n", record->kernel);
  wait_in_vain<<<4, 1>>>(bound);
  printf("wait in vain: %s\n", cudaGetErrorString(cudaDeviceSynchronize()));
  const volatile HangRecord& seen = *record;
  printf("record: kernel %u block %u barrier %u parity %u\n", seen.kernel, seen.block, seen.barrier, seen.parity);
  printf("milliseconds: %u\n", seen.milliseconds);
  printf("afterwards: %s\n", cudaGetErrorString(cudaFree(nullptr)));
  return 0;
}
