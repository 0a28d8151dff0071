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

// By their numbers, NVFP4_MOE_ACTIVATION_*.
constexpr const char* kActivations[] = {"swiglu", "swiglu_step", "situ", "gelu_tanh", "relu2", "silu", "gelu"};
static_assert(NVFP4_MOE_ACTIVATION_SWIGLU == 0 && NVFP4_MOE_ACTIVATION_SWIGLU_STEP == 1 &&
                  NVFP4_MOE_ACTIVATION_SITU == 2 && NVFP4_MOE_ACTIVATION_GELU_TANH == 3 &&
                  NVFP4_MOE_ACTIVATION_RELU2 == 4 && NVFP4_MOE_ACTIVATION_SILU == 5 && NVFP4_MOE_ACTIVATION_GELU == 6,
              "in this order");

inline int32_t activation_from_name(const std::string& name) {
  int32_t number = 0;
  for (const char* known : kActivations) {
    if (name == known) return number;
    ++number;
  }
  refuse("activation", text('"', name, '"'),
         "it must be \"swiglu\", \"swiglu_step\", \"situ\", \"gelu_tanh\", \"gelu\"; or \"relu2\" or \"silu\", which "
         "have no gate",
         "Pick one of them.");
}

// Projections that w13 stacks: gate and up, or one.
inline int64_t projections_of(int32_t activation) {
  return activation == NVFP4_MOE_ACTIVATION_RELU2 || activation == NVFP4_MOE_ACTIVATION_SILU ? 1 : 2;
}

}  // namespace nvfp4_moe_op
