// SPDX-License-Identifier: Apache-2.0
// The MoE layer as ops. Shapes are those of nvfp4_moe_layer_desc, _weights and _args in nvfp4_moe.h.
#pragma once

#include <optional>
#include <string>
#include <tuple>

#include "tensors.h"

namespace nvfp4_moe_op {

int64_t layer_create(const Device& device, bool portable, std::string mode, std::string scale_policy,
                     int64_t hidden_size, int64_t intermediate_size, int64_t num_experts, int64_t num_local_experts,
                     int64_t first_local_expert, int64_t top_k, double swiglu_limit, double swiglu_alpha,
                     double swiglu_beta, int64_t tile_rows, std::string activation, bool has_bias, double fp8_max_error,
                     int64_t scale_block_size);
void layer_destroy(int64_t layer);

// The layer keeps what its handle points into: the weights on the CPU, where there is no storage, the storage on CUDA.
// That is the one given, else the one it has, else one allocated here.
void layer_prepare(const Tensor& w13, const Tensor& w13_block_scale, const Tensor& w13_global_scale, const Tensor& w2,
                   const Tensor& w2_block_scale, const Tensor& w2_global_scale, const std::optional<Tensor>& w13_bias,
                   const std::optional<Tensor>& w2_bias, double w13_input_scale, double w2_input_scale,
                   int64_t row_order, const std::optional<Tensor>& storage, int64_t layer);

int64_t layer_storage_size(int64_t layer);

// u8 [L, bytes of an expert]: where prepare put the weights, none on the CPU and before it.
std::optional<Tensor> layer_storage(int64_t layer);

// nvfp4_moe_weight_error in order, without its size.
std::tuple<double, int64_t, int64_t, double, int64_t, int64_t, int64_t, int64_t> layer_weight_error(int64_t layer);

// Bytes of a workspace tensor for up to max_tokens tokens, room for its alignment included.
int64_t layer_workspace_size(int64_t layer, int64_t max_tokens);

// shared_output_ready: a CUevent as an integer, 0 for none.
void moe_forward(const Tensor& x, const Tensor& topk_ids, const std::optional<Tensor>& topk_weights,
                 const std::optional<Tensor>& expert_map, const std::optional<Tensor>& workspace, int64_t layer,
                 const Tensor& out, const std::optional<Tensor>& shared_output, int64_t shared_output_ready);
void moe_calibrate(const Tensor& x, const Tensor& topk_ids, const std::optional<Tensor>& topk_weights,
                   const std::optional<Tensor>& expert_map, const std::optional<Tensor>& workspace, int64_t layer,
                   const Tensor& out, const std::optional<Tensor>& shared_output, int64_t shared_output_ready);

// (w13_input_scale, w2_input_scale)
std::tuple<double, double> layer_calibrated_scales(int64_t layer);
void layer_set_input_scales(int64_t layer, double w13_input_scale, double w2_input_scale);

}  // namespace nvfp4_moe_op
