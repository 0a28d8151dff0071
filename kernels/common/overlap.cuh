// SPDX-License-Identifier: Apache-2.0
// Programmatic dependent launch: a kernel's start overlaps the end of the one before it. Every kernel of a linear, and
// of a layer's forward but the first, keeps one rule:
//
//   1. wait_for_previous()   what the previous kernel wrote is visible;
//   2. let_next_start()      only now may the next kernel's blocks start;
//   3. read what earlier kernels wrote, and write.
//
//   kernel n      | start | waits |.let next.| works ............ | ends
//   kernel n + 1                             | start | waits ...... |.let next.| works ...
//   kernel n + 2                                                               | start | waits ...
//
// Hence: when kernel n + 1 starts, kernel n has passed its wait, and every kernel before n has ended. What those wrote,
// kernel n + 1 may read before its own wait, such as routing tables when n is a quantiser or a GEMM after routing.
// Where such tables say that a kernel has no work, it lets the next one start at once (pass_by), which may then read
// before its wait only what this one could. Source: PTX ISA, "griddepcontrol".
#pragma once

namespace nvfp4 {

// Until the kernel before this one has ended and its writes are visible. At once where it was launched without overlap.
__device__ inline void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next kernel's blocks may start, as room becomes free, once every block has said so or ended.
__device__ inline void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// What a kernel without work to do ahead begins with.
__device__ inline void follow_previous() {
  wait_for_previous();
  let_next_start();
}

// All that a block without work does, where tables that were complete when this kernel began say so. The first block
// waits, so that whoever waits for this kernel has waited for those before it.
__device__ inline void pass_by() {
  let_next_start();
  if (blockIdx.x + blockIdx.y == 0) wait_for_previous();
}

}  // namespace nvfp4
