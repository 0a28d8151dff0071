// SPDX-License-Identifier: Apache-2.0
// What quantisers report to the host: values that were lost, and the first token that lost one.
#pragma once
#include <cstdint>

#include "../params.h"

namespace nvfp4 {

// Counts a block of `token` that lost something: saturated, or with so many values that were not finite.
__device__ inline void report_block(DeviceStatus* status, bool saturated, uint32_t nonfinite, int64_t token) {
  if (!saturated && nonfinite == 0) return;
  using ull = unsigned long long;
  if (saturated) atomicAdd(reinterpret_cast<ull*>(&status->saturated_blocks), 1ull);
  if (nonfinite) atomicAdd(reinterpret_cast<ull*>(&status->nonfinite_values), static_cast<ull>(nonfinite));
  const ull calls = *reinterpret_cast<const volatile ull*>(&status->calls);
  atomicMin(reinterpret_cast<ull*>(&status->first_bad), calls << 32 | static_cast<ull>(token));
}

}  // namespace nvfp4
