// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

namespace nvfp4 {

// The first of a warp's lanes for which holds(lane), or 32. All lanes call at once.
template <class Holds>
__device__ int32_t first_lane(Holds holds) {
  const uint32_t found = __ballot_sync(~0u, holds(static_cast<int32_t>(threadIdx.x % 32)));
  return found == 0 ? 32 : __ffs(found) - 1;
}

}  // namespace nvfp4
