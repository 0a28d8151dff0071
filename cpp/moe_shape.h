// SPDX-License-Identifier: Apache-2.0
// The tensors of a MoE layer's weights: how long each is, in one place.
#pragma once

#include <optional>
#include <type_traits>
#include <vector>

#include "tensors.h"

namespace nvfp4_moe_op {

// In the order of the header and of the ops.
struct MoeTensors {
  const Tensor& w13;
  const Tensor& w13_block_scale;
  const Tensor& w13_global_scale;
  const Tensor& w2;
  const Tensor& w2_block_scale;
  const Tensor& w2_global_scale;
  const std::optional<Tensor>& w13_bias;
  const std::optional<Tensor>& w2_bias;

  std::vector<Tensor> all() const {
    std::vector<Tensor> tensors{w13, w13_block_scale, w13_global_scale, w2, w2_block_scale, w2_global_scale};
    if (w13_bias) tensors.push_back(*w13_bias);
    if (w2_bias) tensors.push_back(*w2_bias);
    return tensors;
  }
};

// L experts of H x I, whose w13 stacks so many projections: gate and up, or one.
struct MoeShape {
  int64_t num_experts, hidden_size, intermediate_size, projections;

  // Refuse tensors of other shapes, types, strides or devices.
  void check(const MoeTensors& tensors, const Checks& check) const {
    const int64_t h = hidden_size, i = intermediate_size;
    const bool gated = projections == 2;
    const Dim L{"L", num_experts}, H{"H", h}, rows{gated ? "2I" : "I", projections * i};
    const Dim scales{gated ? "2" : "1", projections};
    check.contiguous(tensors.w13, "w13", kPackedTypes, {L, rows, {"H/2", h / 2}});
    check.contiguous(tensors.w13_block_scale, "w13_block_scale", kScaleTypes, {L, rows, {"H/16", h / 16}});
    check.contiguous(tensors.w13_global_scale, "w13_global_scale", {ScalarType::Float}, {L, scales});
    check.contiguous(tensors.w2, "w2", kPackedTypes, {L, H, {"I/2", i / 2}});
    check.contiguous(tensors.w2_block_scale, "w2_block_scale", kScaleTypes, {L, H, {"I/16", i / 16}});
    check.contiguous(tensors.w2_global_scale, "w2_global_scale", {ScalarType::Float}, {L});
    if (tensors.w13_bias) check.contiguous(*tensors.w13_bias, "w13_bias", {ScalarType::BFloat16}, {L, rows});
    if (tensors.w2_bias) check.contiguous(*tensors.w2_bias, "w2_bias", {ScalarType::BFloat16}, {L, H});
  }
};

// Give a pointer of the header a tensor's address.
template <class T>
void point(T*& address, const Tensor& tensor) {
  if constexpr (std::is_const_v<T>)
    address = data<std::remove_const_t<T>>(tensor);
  else
    address = mutable_data<T>(tensor);
}

// The same for a struct that has all of them: nvfp4_moe_layer_weights, nvfp4_moe_checkpoint_buffers.
template <class Struct>
void point_at(Struct& target, const MoeTensors& tensors) {
  point(target.w13, tensors.w13);
  point(target.w13_block_scale, tensors.w13_block_scale);
  point(target.w13_global_scale, tensors.w13_global_scale);
  point(target.w2, tensors.w2);
  point(target.w2_block_scale, tensors.w2_block_scale);
  point(target.w2_global_scale, tensors.w2_global_scale);
  if (tensors.w13_bias) point(target.w13_bias, *tensors.w13_bias);
  if (tensors.w2_bias) point(target.w2_bias, *tensors.w2_bias);
}

}  // namespace nvfp4_moe_op
