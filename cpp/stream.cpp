// SPDX-License-Identifier: Apache-2.0
#include "stream.h"

#include <dlfcn.h>

#include "error.h"

namespace nvfp4_moe_op {
namespace {

using CurrentStream = int32_t (*)(int32_t device_index, void** stream);

// Found at run time in the torch that is already loaded, so that one .so serves torch with and without CUDA.
CurrentStream find_current_stream() {
  void* torch_cuda = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  if (!torch_cuda) return nullptr;
  return reinterpret_cast<CurrentStream>(dlsym(torch_cuda, "aoti_torch_get_current_cuda_stream"));
}

}  // namespace

int32_t device_kind(const Device& device, bool portable) {
  if (device.is_cpu() && !portable) return NVFP4_MOE_DEVICE_CPU;
  if (device.is_cuda()) return portable ? NVFP4_MOE_DEVICE_CUDA_PORTABLE : NVFP4_MOE_DEVICE_CUDA;
  refuse("device", device_name(device), "it must be cpu or cuda", "Move the tensors to one of them.");
}

int32_t device_ordinal(const Device& device) {
  if (device.is_cpu()) return 0;
  if (device.index() < 0)
    refuse("device", "cuda without an index", "it must name one GPU", "Pass torch.device(\"cuda\", 0), say.");
  return device.index();
}

StreamGuard::StreamGuard(const Device& device) {
  if (device.is_cpu()) return;
  static const CurrentStream current_stream = find_current_stream();
  if (!current_stream)
    refuse("device", device_name(device), "this torch has no CUDA", "Install a CUDA build of torch, or use the CPU.");
  device_.emplace(device.index());
  void* stream = nullptr;
  if (current_stream(device.index(), &stream) != 0)
    refuse("device", device_name(device), "torch has no current stream there",
           "Initialise CUDA in this process first, torch.cuda.init().");
  stream_ = static_cast<CUstream_st*>(stream);
}

}  // namespace nvfp4_moe_op
