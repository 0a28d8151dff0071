// SPDX-License-Identifier: Apache-2.0
// In the place of cpp/stream.cpp, for tests/bench/host_time.py on a machine without a GPU: tensors in host memory are
// taken for those of CUDA device 0, so that the op goes the way of a GPU down to a stand-in driver, which reads no
// memory.
#include "nvfp4_moe.h"
#include "stream.h"

namespace nvfp4_moe_op {

int32_t device_kind(const Device&, bool portable) {
  return portable ? NVFP4_MOE_DEVICE_CUDA_PORTABLE : NVFP4_MOE_DEVICE_CUDA;
}

int32_t device_ordinal(const Device&) { return 0; }

StreamGuard::StreamGuard(const Device&) : stream_(reinterpret_cast<CUstream_st*>(1)) {}

}  // namespace nvfp4_moe_op
