// SPDX-License-Identifier: Apache-2.0
// The NVFP4 linear as ops. Shapes are those of nvfp4_moe_linear_desc, _weights and _args in nvfp4_moe.h.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "tensors.h"

namespace nvfp4_moe_op {

int64_t linear_create(const Device& device, bool portable, std::string mode, std::string scale_policy,
                      int64_t in_features, int64_t out_features, int64_t num_parts, int64_t tile_rows);
void linear_destroy(int64_t linear);

// part_rows: rows of each fused projection, summing to out_features; empty if there is one. The linear keeps what
// its handle points into: the weights on the CPU, the storage on CUDA.
// That is the one given, else the one it has, else one allocated here.
void linear_prepare(const Tensor& weight, const Tensor& block_scale, const Tensor& global_scale,
                    const std::optional<Tensor>& bias, std::vector<int64_t> part_rows, double input_scale,
                    const std::optional<Tensor>& storage, int64_t linear);

int64_t linear_storage_size(int64_t linear);

// u8 [1, bytes]: where prepare put the weight, none on the CPU and before it.
std::optional<Tensor> linear_storage(int64_t linear);

// Bytes of a workspace tensor for up to max_tokens tokens, room for its alignment included.
int64_t linear_workspace_size(int64_t linear, int64_t max_tokens);

void linear_forward(const Tensor& x, const std::optional<Tensor>& workspace, int64_t linear, const Tensor& out);
void linear_calibrate(const Tensor& x, const std::optional<Tensor>& workspace, int64_t linear, const Tensor& out);

double linear_calibrated_scale(int64_t linear);
void linear_set_input_scale(int64_t linear, double input_scale);

}  // namespace nvfp4_moe_op
