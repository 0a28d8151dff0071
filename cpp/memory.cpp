// SPDX-License-Identifier: Apache-2.0
#include "memory.h"

#include <torch/csrc/stable/ops.h>

namespace nvfp4_moe_op {

Workspace aligned_workspace(const std::optional<Tensor>& workspace, const Checks& check) {
  if (!workspace) return {};
  // vLLM's scratch comes in the activations' type.
  const bool is_bf16 = has_dtype(*workspace, ScalarType::BFloat16);
  if (!is_bf16) check_dtype(*workspace, "workspace", {ScalarType::Byte});
  check.on_device(*workspace, "workspace");
  check_contiguous(*workspace, "workspace");
  const auto address = reinterpret_cast<uintptr_t>(mutable_data<uint8_t>(*workspace));
  const uint64_t skip = (kWorkspaceAlignment - address % kWorkspaceAlignment) % kWorkspaceAlignment;
  const uint64_t size = workspace->numel() * (is_bf16 ? 2 : 1);
  if (address == 0 || size < skip) {
    refuse("workspace.numel()", size, text("it must hold ", kWorkspaceAlignment, " bytes at least"),
           "Ask workspace_size for the number, or pass None for the library's own workspace.");
  }
  return {reinterpret_cast<void*>(address + skip), size - skip};
}

Storage storage_for(const Storage& has, const std::optional<Tensor>& given, const Checks& check, const Tensor& like,
                    int64_t num_slices, uint64_t num_bytes) {
  if (given) {
    check_dtype(*given, "storage", {ScalarType::Byte});
    check.on_device(*given, "storage");
    check_contiguous(*given, "storage");
  }
  if (num_bytes == 0) return {};
  if (given) return {{*given}};
  if (!has.tensors.empty()) return has;
  const int64_t slice = static_cast<int64_t>(num_bytes) / num_slices;
  return {{torch::stable::new_empty(like, {num_slices, slice}, ScalarType::Byte)}};
}

std::optional<Tensor> tensor_of(const Storage& storage) {
  if (storage.tensors.empty()) return std::nullopt;
  return storage.tensors[0];
}

}  // namespace nvfp4_moe_op
