// SPDX-License-Identifier: Apache-2.0
// Memory that torch gives to the library: scratch of a call, and the storage of prepared weights.
#pragma once

#include <optional>
#include <vector>

#include "tensors.h"

namespace nvfp4_moe_op {

// Scratch memory as the library wants it.
struct Workspace {
  void* address = nullptr;  // nullptr: the library's own
  uint64_t size = 0;
};

// The library wants scratch aligned to 256 bytes; torch aligns host memory to 64.
constexpr uint64_t kWorkspaceAlignment = 256;

// The aligned part of a tensor of bytes, u8 or bf16; workspace_size ops answer with room for this.
Workspace aligned_workspace(const std::optional<Tensor>& workspace, const Checks& check);

// Where prepare puts what it makes of weights. Empty where weights are used in place.
struct Storage {
  std::vector<Tensor> tensors;  // u8, one or none

  void* address() const { return tensors.empty() ? nullptr : mutable_data<void>(tensors[0]); }
  uint64_t size() const { return tensors.empty() ? 0 : tensors[0].numel(); }

  // What a prepared handle points into.
  std::vector<Tensor> or_weights(std::vector<Tensor> weights) const { return tensors.empty() ? weights : tensors; }
};

// Where prepare writes num_bytes: the tensor given, else the storage that the handle has, which graphs and others may
// point into, else new u8 [num_slices, bytes of one] on the device of `like`. Empty for 0 bytes.
Storage storage_for(const Storage& has, const std::optional<Tensor>& given, const Checks& check, const Tensor& like,
                    int64_t num_slices, uint64_t num_bytes);

// What an op answers when asked where prepare put the weights: none where they are used in place, and before it.
std::optional<Tensor> tensor_of(const Storage& storage);

}  // namespace nvfp4_moe_op
