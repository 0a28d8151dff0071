// SPDX-License-Identifier: Apache-2.0
// The six tensors of a MoE layer's weights: how long each is, in one place.
#pragma once

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

  std::vector<Tensor> all() const {
    return {w13, w13_block_scale, w13_global_scale, w2, w2_block_scale, w2_global_scale};
  }
};

// L experts of H x I.
struct MoeShape {
  int64_t num_experts, hidden_size, intermediate_size;

  // Refuse tensors of other shapes, types, strides or devices.
  void check(const MoeTensors& tensors, const Checks& check) const {
    const int64_t h = hidden_size, i = intermediate_size;
    const Dim L{"L", num_experts}, H{"H", h}, two_i{"2I", 2 * i};
    check.contiguous(tensors.w13, "w13", kPackedTypes, {L, two_i, {"H/2", h / 2}});
    check.contiguous(tensors.w13_block_scale, "w13_block_scale", kScaleTypes, {L, two_i, {"H/16", h / 16}});
    check.contiguous(tensors.w13_global_scale, "w13_global_scale", {ScalarType::Float}, {L, {"2", 2}});
    check.contiguous(tensors.w2, "w2", kPackedTypes, {L, H, {"I/2", i / 2}});
    check.contiguous(tensors.w2_block_scale, "w2_block_scale", kScaleTypes, {L, H, {"I/16", i / 16}});
    check.contiguous(tensors.w2_global_scale, "w2_global_scale", {ScalarType::Float}, {L});
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

// The same for a struct that has all six: nvfp4_moe_layer_weights, nvfp4_moe_checkpoint_buffers.
template <class Struct>
void point_at(Struct& target, const MoeTensors& tensors) {
  point(target.w13, tensors.w13);
  point(target.w13_block_scale, tensors.w13_block_scale);
  point(target.w13_global_scale, tensors.w13_global_scale);
  point(target.w2, tensors.w2);
  point(target.w2_block_scale, tensors.w2_block_scale);
  point(target.w2_global_scale, tensors.w2_global_scale);
}

}  // namespace nvfp4_moe_op
