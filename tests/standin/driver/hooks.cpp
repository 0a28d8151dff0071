// SPDX-License-Identifier: Apache-2.0
// What the driver says to our library where a stand-in takes a Blackwell's place.
#include <cstdio>
#include <map>

#include "driver.h"

namespace standin {
namespace {

CUresult device_attribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  const CUresult result = REAL(cuDeviceGetAttribute)(value, attribute, device);
  const int capability = settings().capability;
  if (result != CUDA_SUCCESS || capability == 0) return result;
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = capability / 10; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = capability % 10; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = settings().shared_limit(); break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: *value = settings().shared_limit() + 1024; break;
    default: break;
  }
  return result;
}

CUresult module_load_data(CUmodule* module, const void* fatbin) {
  const Image image = replacement(fatbin);
  const CUresult result = REAL(cuModuleLoadData)(module, image.bytes ? image.bytes : fatbin);
  if (result == CUDA_SUCCESS) configure(*module, image);
  return result;
}

CUresult module_get_function(CUfunction* function, CUmodule module, const char* name) {
  remember_kernel(module, name);
  return REAL(cuModuleGetFunction)(function, module, name);
}

// A chip with less shared memory than this one refuses what it has no room for.
bool fits(CUfunction function, unsigned dynamic_bytes) {
  const int limit = settings().shared_limit();
  int fixed = 0;
  REAL(cuFuncGetAttribute)(&fixed, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, function);
  if (limit == 0 || fixed + static_cast<int>(dynamic_bytes) <= limit) return true;
  const char* name = "?";
  REAL(cuFuncGetName)(&name, function);
  char line[256];
  snprintf(line, sizeof line, "shared memory of %s is %d; at most %d on this chip", name,
           fixed + static_cast<int>(dynamic_bytes), limit);
  say(line);
  return false;
}

CUresult func_set_attribute(CUfunction function, CUfunction_attribute attribute, int value) {
  if (attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES && !fits(function, value))
    return CUDA_ERROR_INVALID_VALUE;
  return REAL(cuFuncSetAttribute)(function, attribute, value);
}

CUresult launch(const CUlaunchConfig* config, CUfunction function, void** params, void** extra) {
  if (failed()) return CUDA_ERROR_LAUNCH_FAILED;
  if (!fits(function, config->sharedMemBytes)) return CUDA_ERROR_INVALID_VALUE;
  return REAL(cuLaunchKernelEx)(config, function, params, extra);
}

template <class F>
CUresult then_look(F result) {
  failed();
  return result;
}
CUresult stream_synchronize(CUstream stream) { return then_look(REAL(cuStreamSynchronize)(stream)); }
CUresult context_synchronize() { return then_look(REAL(cuCtxSynchronize)()); }

}  // namespace

void* hook(std::string_view name) {
  static const std::map<std::string_view, void*> hooks = {
      {"cuDeviceGetAttribute", reinterpret_cast<void*>(&device_attribute)},
      {"cuModuleLoadData", reinterpret_cast<void*>(&module_load_data)},
      {"cuModuleGetFunction", reinterpret_cast<void*>(&module_get_function)},
      {"cuFuncSetAttribute", reinterpret_cast<void*>(&func_set_attribute)},
      {"cuLaunchKernelEx", reinterpret_cast<void*>(&launch)},
      {"cuStreamSynchronize", reinterpret_cast<void*>(&stream_synchronize)},
      {"cuCtxSynchronize", reinterpret_cast<void*>(&context_synchronize)},
  };
  const auto found = hooks.find(name);
  return found == hooks.end() ? nullptr : found->second;
}

}  // namespace standin
