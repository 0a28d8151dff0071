// Programmatic dependent launch: a kernel's start overlaps the end of the one before it. Every kernel of a linear, and
// of a layer's forward but the first, waits before it touches what earlier ones wrote, and lets the next start only
// then: so whatever is complete where one kernel waits no more, is complete for all that follow it. Kernels that find
// no work in such tables let the next start at once (pass_by); that one waits all the same. Source: PTX ISA,
// "griddepcontrol".
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
