// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

namespace nvfp4 {

// Position in the ring of stages.
template <class C>
struct Ring {
  uint32_t stage = 0, parity = 0;

  __device__ void advance() {
    if (++stage == C::kStages) {
      stage = 0;
      parity ^= 1;
    }
  }

  __device__ void advance(uint32_t stages) {
    parity ^= (stage + stages) / C::kStages & 1;
    stage = (stage + stages) % C::kStages;
  }
};

}  // namespace nvfp4
