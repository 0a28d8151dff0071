// SPDX-License-Identifier: Apache-2.0
// Between a caller and the CUDA driver: what its parts know of each other.
#pragma once
#include <cuda.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "../device/standin.h"

namespace standin {

// ---- settings.cpp: of the environment, README.md names them

struct Settings {
  int capability = 0;  // 100 for 10.0; 0: the GPU's own
  std::string images, report, callers;
  uint32_t mode, flags, seed, delay_us, slow_warp, alloc_shift, slots_each;
  uint64_t timeout_ns;

  // Shared memory that a CTA may opt in for, 0 for as the GPU has it.
  int shared_limit() const { return capability >= 120 ? 101376 : capability >= 100 ? 232448 : 0; }
};
const Settings& settings();

// ---- preload.cpp

// The driver's own function.
void* real_symbol(const char* name);
#define REAL(name) REAL_OF(name)  // cuda.h names newer versions of some by macros
#define REAL_OF(name)                                                                          \
  ([] {                                                                                        \
    static auto* const found = reinterpret_cast<decltype(&name)>(standin::real_symbol(#name)); \
    return found;                                                                              \
  }())
// A hook for a name of the driver's, or nullptr.
void* hook(std::string_view name);

// ---- images.cpp

struct Image {
  std::string name;
  const void* bytes = nullptr;  // none: the caller's is loaded
};
// What is loaded in the place of a fat binary: NAME.cubin beside a NAME.fatbin of the same bytes.
Image replacement(const void* fatbin);

// ---- report.cpp

void say(const std::string& line);
void remember_kernel(CUmodule module, const char* name);
// Tells of the first error; is there one?
bool failed();
// A module was loaded as `image`; its stand-in, if it has one, is told where its memory is.
void configure(CUmodule module, const Image& image);

}  // namespace standin
