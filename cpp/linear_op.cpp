#include "linear_op.h"

#include <torch/csrc/stable/ops.h>

#include "choices.h"
#include "handle_table.h"
#include "stream.h"

namespace nvfp4_moe_op {
namespace {

struct Linear {
  Linear(const Device& device, const nvfp4_moe_linear_desc& desc, nvfp4_moe_linear* handle)
      : device(device), desc(desc), handle(handle) {}

  const Device device;
  const nvfp4_moe_linear_desc desc;
  const Handle<nvfp4_moe_linear, nvfp4_moe_linear_destroy> handle;
  std::vector<Tensor> kept;  // what the handle points into
  // The header's rule for handles: const calls share, all others are alone.
  std::shared_mutex use;
};

// Never destroyed: tensors must not be freed after torch itself is gone.
HandleTable<Linear>& linears() {
  static auto& table = *new HandleTable<Linear>("linear");
  return table;
}

nvfp4_moe_linear_args checked_args(const Linear& linear, const Tensor& x, const std::optional<Tensor>& workspace,
                                   const Tensor& out) {
  const int64_t num_tokens = x.dim() == 2 ? x.size(0) : 0;
  check_dtype(x, "x", {ScalarType::BFloat16});
  check_shape(x, "x", {{"T", num_tokens}, {"in_features", linear.desc.in_features}});
  check_device(x, "x", linear.device, "linear");
  check_dtype(out, "out", {ScalarType::BFloat16});
  check_shape(out, "out", {{"T", num_tokens}, {"out_features", linear.desc.out_features}});
  check_device(out, "out", linear.device, "linear");

  nvfp4_moe_linear_args args{};
  args.struct_size = sizeof args;
  args.num_tokens = to_int32("x.size(0)", num_tokens);
  args.x = data<void>(x);
  args.x_row_stride = row_stride(x, "x");
  args.out = mutable_data<void>(out);
  args.out_row_stride = row_stride(out, "out");
  const Workspace scratch = aligned_workspace(workspace, linear.device, "linear");
  args.workspace = scratch.address;
  args.workspace_size = scratch.size;
  return args;
}

}  // namespace

int64_t linear_create(const Device& device, bool portable, std::string mode, std::string scale_policy,
                      int64_t in_features, int64_t out_features, int64_t num_parts) {
  nvfp4_moe_linear_desc desc{};
  desc.struct_size = sizeof desc;
  desc.device_kind = device_kind(device, portable);
  desc.device_ordinal = device_ordinal(device);
  desc.mode = mode_from_name(mode);
  desc.scale_policy = scale_policy_from_name(scale_policy);
  desc.in_features = to_int32("in_features", in_features);
  desc.out_features = to_int32("out_features", out_features);
  desc.num_parts = to_int32("num_parts", num_parts);

  nvfp4_moe_linear* handle = nullptr;
  check_status(nvfp4_moe_linear_create(&desc, &handle));
  return linears().add(std::make_shared<Linear>(device, desc, handle));
}

void linear_destroy(int64_t linear) { linears().remove(linear); }

void linear_prepare(const Tensor& weight, const Tensor& block_scale, const Tensor& global_scale,
                    const std::optional<Tensor>& bias, std::vector<int64_t> part_rows, double input_scale,
                    int64_t linear_id) {
  const std::shared_ptr<Linear> linear = linears().find(linear_id);
  const int64_t in = linear->desc.in_features, num_parts = linear->desc.num_parts ? linear->desc.num_parts : 1;
  const Dim out_features{"out_features", linear->desc.out_features};

  check_shape(weight, "weight", {out_features, {"in_features/2", in / 2}});
  check_shape(block_scale, "block_scale", {out_features, {"in_features/16", in / 16}});
  check_shape(global_scale, "global_scale", {{"num_parts", num_parts}});
  check_dtype(weight, "weight", {ScalarType::Byte});
  check_dtype(block_scale, "block_scale", {ScalarType::Float8_e4m3fn, ScalarType::Byte});
  check_dtype(global_scale, "global_scale", {ScalarType::Float});
  std::vector<std::pair<const char*, const Tensor*>> all = {
      {"weight", &weight}, {"block_scale", &block_scale}, {"global_scale", &global_scale}};
  if (bias) {
    check_shape(*bias, "bias", {out_features});
    check_dtype(*bias, "bias", {ScalarType::BFloat16});
    all.push_back({"bias", &*bias});
  }
  for (const auto& [name, tensor] : all) {
    check_device(*tensor, name, linear->device, "linear");
    check_contiguous(*tensor, name);
  }
  std::vector<int32_t> rows;
  for (int64_t count : part_rows) rows.push_back(to_int32("part_rows", count));
  if (!rows.empty() && static_cast<int64_t>(rows.size()) != num_parts)
    refuse("len(part_rows)", rows.size(), text("num_parts is ", num_parts), "Pass the rows of every part.");

  nvfp4_moe_linear_weights weights{};
  weights.struct_size = sizeof weights;
  weights.input_scale = static_cast<float>(input_scale);
  weights.weight = data<uint8_t>(weight);
  weights.block_scale = data<uint8_t>(block_scale);
  weights.global_scale = data<float>(global_scale);
  weights.part_rows = rows.empty() ? nullptr : rows.data();
  weights.bias = bias ? data<void>(*bias) : nullptr;

  const StreamGuard guard(linear->device);
  std::unique_lock alone(linear->use);
  uint64_t storage_size = 0;
  check_status(nvfp4_moe_linear_storage_size(linear->handle.get(), &storage_size));
  std::vector<Tensor> keep;
  void* storage = nullptr;
  if (storage_size == 0) {
    for (const auto& [name, tensor] : all) keep.push_back(*tensor);
  } else {
    keep.push_back(torch::stable::new_empty(weight, {static_cast<int64_t>(storage_size)}, ScalarType::Byte));
    storage = mutable_data<void>(keep.back());
  }
  check_status(nvfp4_moe_linear_prepare(linear->handle.get(), &weights, storage, storage_size, guard.stream()));
  linear->kept = std::move(keep);
}

int64_t linear_workspace_size(int64_t linear_id, int64_t max_tokens) {
  const std::shared_ptr<Linear> linear = linears().find(linear_id);
  std::shared_lock shared(linear->use);
  uint64_t size = 0;
  check_status(nvfp4_moe_linear_workspace_size(linear->handle.get(), to_int32("max_tokens", max_tokens), &size));
  return static_cast<int64_t>(size + kWorkspaceAlignment);
}

void linear_forward(const Tensor& x, const std::optional<Tensor>& workspace, int64_t linear_id, const Tensor& out) {
  const std::shared_ptr<Linear> linear = linears().find(linear_id);
  const auto args = checked_args(*linear, x, workspace, out);
  const StreamGuard guard(linear->device);
  std::shared_lock shared(linear->use);
  check_status(nvfp4_moe_linear_forward(linear->handle.get(), &args, guard.stream()));
}

void linear_calibrate(const Tensor& x, const std::optional<Tensor>& workspace, int64_t linear_id, const Tensor& out) {
  const std::shared_ptr<Linear> linear = linears().find(linear_id);
  const auto args = checked_args(*linear, x, workspace, out);
  const StreamGuard guard(linear->device);
  std::unique_lock alone(linear->use);
  check_status(nvfp4_moe_linear_calibrate(linear->handle.get(), &args, guard.stream()));
}

double linear_calibrated_scale(int64_t linear_id) {
  const std::shared_ptr<Linear> linear = linears().find(linear_id);
  std::unique_lock alone(linear->use);
  float input_scale = 0;
  check_status(nvfp4_moe_linear_calibrated_scale(linear->handle.get(), &input_scale));
  return input_scale;
}

void linear_set_input_scale(int64_t linear_id, double input_scale) {
  const std::shared_ptr<Linear> linear = linears().find(linear_id);
  std::unique_lock alone(linear->use);
  check_status(nvfp4_moe_linear_set_input_scale(linear->handle.get(), static_cast<float>(input_scale)));
}

}  // namespace nvfp4_moe_op
