// SPDX-License-Identifier: Apache-2.0
// The checkpoint reader as ops, on host tensors. Shapes are those of nvfp4_moe_layer_weights in nvfp4_moe.h.
#pragma once

#include <optional>
#include <string>
#include <tuple>

#include "tensors.h"

namespace nvfp4_moe_op {

int64_t checkpoint_open(std::string directory, std::string prefix);
void checkpoint_destroy(int64_t checkpoint);

// (format, hidden_size, intermediate_size, num_experts, top_k, swiglu_limit, routed_scaling_factor, lossless_cast,
// w13_input_scale, w2_input_scale, swiglu_alpha, swiglu_beta, activation, has_bias) of nvfp4_moe_checkpoint_layer_info
using LayerInfo = std::tuple<std::string, int64_t, int64_t, int64_t, int64_t, double, double, bool, double, double,
                             double, double, std::string, bool>;
LayerInfo checkpoint_layer_info(int64_t checkpoint, int64_t layer, bool any_activation);

// Fill the tensors with experts first_expert .. first_expert + w13.size(0) - 1, gate rows first.
void checkpoint_read_layer(const Tensor& w13, const Tensor& w13_block_scale, const Tensor& w13_global_scale,
                           const Tensor& w2, const Tensor& w2_block_scale, const Tensor& w2_global_scale,
                           const std::optional<Tensor>& w13_bias, const std::optional<Tensor>& w2_bias,
                           int64_t first_expert, int64_t layer, int64_t checkpoint);

// The report of `nvfp4-moe inspect`; as_json as in nvfp4_moe_checkpoint_inspect.
std::string checkpoint_inspect(int64_t checkpoint, int64_t as_json);

}  // namespace nvfp4_moe_op
