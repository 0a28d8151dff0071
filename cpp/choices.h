// SPDX-License-Identifier: Apache-2.0
// Words of the Python side for the header's choices.
#pragma once

#include <string>

#include "error.h"

namespace nvfp4_moe_op {

inline int32_t mode_from_name(const std::string& name) {
  if (name == "default") return NVFP4_MOE_MODE_DEFAULT;
  if (name == "bf16") return NVFP4_MOE_MODE_BF16;
  if (name == "nvfp4") return NVFP4_MOE_MODE_NVFP4;
  if (name == "fp8") return NVFP4_MOE_MODE_FP8;
  refuse("mode", text('"', name, '"'), "it must be \"default\", \"bf16\", \"nvfp4\" or \"fp8\"", "Pick one of them.");
}

inline int32_t scale_policy_from_name(const std::string& name) {
  if (name == "static") return NVFP4_MOE_SCALE_STATIC;
  if (name == "dynamic") return NVFP4_MOE_SCALE_DYNAMIC;
  refuse("scale_policy", text('"', name, '"'), "it must be \"static\" or \"dynamic\"", "Pick one of them.");
}

}  // namespace nvfp4_moe_op
