// SPDX-License-Identifier: Apache-2.0
// Torch's current device and stream, as the library takes them.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include <optional>

#include "tensors.h"

struct CUstream_st;

namespace nvfp4_moe_op {

// NVFP4_MOE_DEVICE_*; refuses a device that is neither CPU nor CUDA. `portable` asks for a GPU's portable kernels.
int32_t device_kind(const Device& device, bool portable = false);

// Device index, 0 for the CPU.
int32_t device_ordinal(const Device& device);

// While it lives: `device` is torch's current device, and `stream` is the stream that torch enqueues on there.
// On the CPU nothing is set and the stream is NULL.
class StreamGuard {
 public:
  explicit StreamGuard(const Device& device);
  CUstream_st* stream() const { return stream_; }

 private:
  std::optional<torch::stable::accelerator::DeviceGuard> device_;
  CUstream_st* stream_ = nullptr;
};

}  // namespace nvfp4_moe_op
