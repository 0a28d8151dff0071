// SPDX-License-Identifier: Apache-2.0
#include "linear_op.h"

#include <torch/csrc/stable/ops.h>

#include "choices.h"
#include "memory.h"
#include "owned.h"
#include "stream.h"

namespace nvfp4_moe_op {
namespace {

struct Known {
  Device device;
  nvfp4_moe_linear_desc desc;
  Storage storage;

  Checks checks() const { return {device, "linear"}; }
};

using Linear = Owned<Known, nvfp4_moe_linear, nvfp4_moe_linear_destroy>;

// Never destroyed: tensors must not be freed after torch itself is gone.
Table<Linear>& linears() {
  static auto& table = *new Table<Linear>("linear");
  return table;
}

nvfp4_moe_linear_args checked_args(const Known& known, const Tensor& x, const std::optional<Tensor>& workspace,
                                   const Tensor& out) {
  const Checks check = known.checks();
  const Dim T{"T", x.dim() == 2 ? x.size(0) : kAnySize};
  check(x, "x", {ScalarType::BFloat16}, {T, {"in_features", known.desc.in_features}});
  check(out, "out", {ScalarType::BFloat16}, {T, {"out_features", known.desc.out_features}});

  nvfp4_moe_linear_args args{};
  args.struct_size = sizeof args;
  args.num_tokens = to_int32("x.size(0)", T.size);
  args.x = data<void>(x);
  args.x_row_stride = row_stride(x, "x");
  args.out = mutable_data<void>(out);
  args.out_row_stride = row_stride(out, "out");
  const Workspace scratch = aligned_workspace(workspace, check);
  args.workspace = scratch.address;
  args.workspace_size = scratch.size;
  return args;
}

// The caller's scratch, or on a GPU a piece of torch's, freed as soon as the call is enqueued: torch gives it only to
// what comes later on the same stream, or in the same graph. One piece for all linears would be written by two streams
// at once.
std::optional<Tensor> scratch_of_call(const Linear& linear, const std::optional<Tensor>& given, const Tensor& x) {
  if (given || linear.known.desc.device_kind == NVFP4_MOE_DEVICE_CPU || x.dim() != 2) return given;
  uint64_t size = 0;
  check_status(nvfp4_moe_linear_workspace_size(linear.handle.get(), to_int32("x.size(0)", x.size(0)), &size));
  if (size == 0) return std::nullopt;
  return torch::stable::new_empty(x, {static_cast<int64_t>(size + kWorkspaceAlignment)}, ScalarType::Byte);
}

// The rows of each part, as many as there are parts, or none for one part.
std::vector<int32_t> checked_rows(const std::vector<int64_t>& part_rows, int64_t num_parts) {
  std::vector<int32_t> rows;
  for (int64_t count : part_rows) rows.push_back(to_int32("part_rows", count));
  if (!rows.empty() && static_cast<int64_t>(rows.size()) != num_parts)
    refuse("len(part_rows)", rows.size(), text("num_parts is ", num_parts), "Pass the rows of every part.");
  return rows;
}

uint64_t storage_size(const Linear& linear) {
  uint64_t size = 0;
  check_status(nvfp4_moe_linear_storage_size(linear.handle.get(), &size));
  return size;
}

}  // namespace

int64_t linear_create(const Device& device, bool portable, std::string mode, std::string scale_policy,
                      int64_t in_features, int64_t out_features, int64_t num_parts, int64_t tile_rows,
                      std::string name) {
  nvfp4_moe_linear_desc desc{};
  desc.struct_size = sizeof desc;
  desc.device_kind = device_kind(device, portable);
  desc.device_ordinal = device_ordinal(device);
  desc.mode = mode_from_name(mode);
  desc.scale_policy = scale_policy_from_name(scale_policy);
  desc.in_features = to_int32("in_features", in_features);
  desc.out_features = to_int32("out_features", out_features);
  desc.num_parts = to_int32("num_parts", num_parts);
  desc.tile_rows = to_int32("tile_rows", tile_rows);

  nvfp4_moe_linear* handle = nullptr;
  check_status(nvfp4_moe_linear_create(&desc, &handle));
  return linears().add(Known{device, desc, {}}, handle, name);
}

void linear_destroy(int64_t linear) { linears().remove(linear); }

void linear_prepare(const Tensor& weight, const Tensor& block_scale, const Tensor& global_scale,
                    const std::optional<Tensor>& bias, std::vector<int64_t> part_rows, double input_scale,
                    const std::optional<Tensor>& storage, int64_t linear_id) {
  linears().with_unique(linear_id, [&](Linear& linear) {
    const nvfp4_moe_linear_desc& desc = linear.known.desc;
    const Checks check = linear.known.checks();
    const int64_t in = desc.in_features, num_parts = desc.num_parts ? desc.num_parts : 1;
    const Dim out_features{"out_features", desc.out_features};
    check.contiguous(weight, "weight", kPackedTypes, {out_features, {"in_features/2", in / 2}});
    check.contiguous(block_scale, "block_scale", kScaleTypes, {out_features, {"in_features/16", in / 16}});
    check.contiguous(global_scale, "global_scale", {ScalarType::Float}, {{"num_parts", num_parts}});
    if (bias) check.contiguous(*bias, "bias", {ScalarType::BFloat16}, {out_features});
    const std::vector<int32_t> rows = checked_rows(part_rows, num_parts);

    nvfp4_moe_linear_weights weights{};
    weights.struct_size = sizeof weights;
    weights.input_scale = static_cast<float>(input_scale);
    weights.weight = data<uint8_t>(weight);
    weights.block_scale = data<uint8_t>(block_scale);
    weights.global_scale = data<float>(global_scale);
    weights.part_rows = rows.empty() ? nullptr : rows.data();
    weights.bias = bias ? data<void>(*bias) : nullptr;

    const StreamGuard guard(linear.known.device);
    const Storage target = storage_for(linear.known.storage, storage, check, weight, 1, storage_size(linear));
    check_status(
        nvfp4_moe_linear_prepare(linear.handle.get(), &weights, target.address(), target.size(), guard.stream()));
    linear.kept = target.or_weights({weight, block_scale, global_scale});
    if (bias && target.tensors.empty()) linear.kept.push_back(*bias);
    linear.known.storage = target;
  });
}

std::optional<Tensor> linear_storage(int64_t linear_id) {
  return linears().with_shared(linear_id, [](const Linear& linear) { return tensor_of(linear.known.storage); });
}

int64_t linear_storage_size(int64_t linear_id) {
  return linears().with_shared(linear_id,
                               [](const Linear& linear) { return static_cast<int64_t>(storage_size(linear)); });
}

int64_t linear_workspace_size(int64_t linear_id, int64_t max_tokens) {
  return linears().with_shared(linear_id, [&](const Linear& linear) {
    uint64_t size = 0;
    check_status(nvfp4_moe_linear_workspace_size(linear.handle.get(), to_int32("max_tokens", max_tokens), &size));
    return static_cast<int64_t>(size + kWorkspaceAlignment);
  });
}

void linear_forward(const Tensor& x, const std::optional<Tensor>& workspace, int64_t linear_id, const Tensor& out) {
  linears().with_shared(linear_id, [&](const Linear& linear) {
    const StreamGuard guard(linear.known.device);
    const std::optional<Tensor> scratch = scratch_of_call(linear, workspace, x);
    const auto args = checked_args(linear.known, x, scratch, out);
    check_status(nvfp4_moe_linear_forward(linear.handle.get(), &args, guard.stream()));
  });
}

void linear_calibrate(const Tensor& x, const std::optional<Tensor>& workspace, int64_t linear_id, const Tensor& out) {
  linears().with_unique(linear_id, [&](Linear& linear) {
    const StreamGuard guard(linear.known.device);
    const std::optional<Tensor> scratch = scratch_of_call(linear, workspace, x);
    const auto args = checked_args(linear.known, x, scratch, out);
    check_status(nvfp4_moe_linear_calibrate(linear.handle.get(), &args, guard.stream()));
  });
}

double linear_calibrated_scale(int64_t linear_id) {
  return linears().with_unique(linear_id, [](Linear& linear) -> double {
    float input_scale = 0;
    check_status(nvfp4_moe_linear_calibrated_scale(linear.handle.get(), &input_scale));
    return input_scale;
  });
}

void linear_set_input_scale(int64_t linear_id, double input_scale) {
  linears().with_unique(linear_id, [&](Linear& linear) {
    check_status(nvfp4_moe_linear_set_input_scale(linear.handle.get(), static_cast<float>(input_scale)));
  });
}

}  // namespace nvfp4_moe_op
