// SPDX-License-Identifier: Apache-2.0
#include "layer_op.h"

#include "choices.h"
#include "memory.h"
#include "moe_shape.h"
#include "owned.h"
#include "stream.h"

namespace nvfp4_moe_op {
namespace {

struct Known {
  Device device;
  nvfp4_moe_layer_desc desc;
  Storage storage;

  Checks checks() const { return {device, "layer"}; }
};

using Layer = Owned<Known, nvfp4_moe_layer, nvfp4_moe_layer_destroy>;

// Never destroyed: tensors must not be freed after torch itself is gone.
Table<Layer>& layers() {
  static auto& table = *new Table<Layer>("layer");
  return table;
}

nvfp4_moe_layer_args checked_args(const Known& known, const Tensor& x, const Tensor& topk_ids,
                                  const std::optional<Tensor>& topk_weights, const std::optional<Tensor>& expert_map,
                                  const std::optional<Tensor>& workspace, const Tensor& out,
                                  const std::optional<Tensor>& shared_output, int64_t shared_output_ready) {
  const nvfp4_moe_layer_desc& desc = known.desc;
  const Checks check = known.checks();
  const Dim T{"T", x.dim() == 2 ? x.size(0) : kAnySize}, H{"H", desc.hidden_size}, k{"k", desc.top_k},
      E{"E", desc.num_experts};

  check(x, "x", {ScalarType::BFloat16}, {T, H});
  check(topk_ids, "topk_ids", {ScalarType::Int, ScalarType::Long}, {T, k});
  check(out, "out", {ScalarType::BFloat16}, {T, H});

  nvfp4_moe_layer_args args{};
  args.struct_size = sizeof args;
  args.num_tokens = to_int32("x.size(0)", T.size);
  args.x = data<void>(x);
  args.x_row_stride = row_stride(x, "x");
  args.topk_ids = data<void>(topk_ids);
  args.topk_ids_row_stride = row_stride(topk_ids, "topk_ids");
  args.topk_ids_dtype = has_dtype(topk_ids, ScalarType::Int) ? NVFP4_MOE_DTYPE_I32 : NVFP4_MOE_DTYPE_I64;
  args.out = mutable_data<void>(out);
  args.out_row_stride = row_stride(out, "out");
  if (topk_weights) {
    check(*topk_weights, "topk_weights", {ScalarType::Float}, {T, k});
    args.topk_weights = data<float>(*topk_weights);
    args.topk_weights_row_stride = row_stride(*topk_weights, "topk_weights");
  }
  if (expert_map) {
    check.contiguous(*expert_map, "expert_map", {ScalarType::Int}, {E});
    args.expert_map = data<int32_t>(*expert_map);
    args.num_experts_mapped = desc.num_experts;
  }
  const Workspace scratch = aligned_workspace(workspace, check);
  args.workspace = scratch.address;
  args.workspace_size = scratch.size;
  if (shared_output) {
    check(*shared_output, "shared_output", {ScalarType::BFloat16}, {T, H});
    args.shared_output = data<void>(*shared_output);
    args.shared_output_row_stride = row_stride(*shared_output, "shared_output");
  }
  args.shared_output_ready = reinterpret_cast<CUevent_st*>(shared_output_ready);
  return args;
}

uint64_t storage_size(const Layer& layer) {
  uint64_t size = 0;
  check_status(nvfp4_moe_layer_storage_size(layer.handle.get(), &size));
  return size;
}

}  // namespace

int64_t layer_create(const Device& device, bool portable, std::string mode, std::string scale_policy,
                     int64_t hidden_size, int64_t intermediate_size, int64_t num_experts, int64_t num_local_experts,
                     int64_t first_local_expert, int64_t top_k, double swiglu_limit, double swiglu_alpha,
                     double swiglu_beta, int64_t tile_rows, std::string activation, bool has_bias, double fp8_max_error,
                     int64_t scale_block_size) {
  nvfp4_moe_layer_desc desc{};
  desc.struct_size = sizeof desc;
  desc.device_kind = device_kind(device, portable);
  desc.device_ordinal = device_ordinal(device);
  desc.mode = mode_from_name(mode);
  desc.scale_policy = scale_policy_from_name(scale_policy);
  desc.hidden_size = to_int32("hidden_size", hidden_size);
  desc.intermediate_size = to_int32("intermediate_size", intermediate_size);
  desc.num_experts = to_int32("num_experts", num_experts);
  desc.num_local_experts = to_int32("num_local_experts", num_local_experts);
  desc.first_local_expert = to_int32("first_local_expert", first_local_expert);
  desc.top_k = to_int32("top_k", top_k);
  desc.swiglu_limit = static_cast<float>(swiglu_limit);
  desc.swiglu_alpha = static_cast<float>(swiglu_alpha);
  desc.swiglu_beta = static_cast<float>(swiglu_beta);
  desc.tile_rows = to_int32("tile_rows", tile_rows);
  desc.activation = activation_from_name(activation);
  desc.has_bias = has_bias;
  desc.fp8_max_error = static_cast<float>(fp8_max_error);
  desc.scale_block_size = to_int32("scale_block_size", scale_block_size);

  nvfp4_moe_layer* handle = nullptr;
  check_status(nvfp4_moe_layer_create(&desc, &handle));
  return layers().add(Known{device, desc, {}}, handle);
}

void layer_destroy(int64_t layer) { layers().remove(layer); }

void layer_prepare(const Tensor& w13, const Tensor& w13_block_scale, const Tensor& w13_global_scale, const Tensor& w2,
                   const Tensor& w2_block_scale, const Tensor& w2_global_scale, const std::optional<Tensor>& w13_bias,
                   const std::optional<Tensor>& w2_bias, double w13_input_scale, double w2_input_scale,
                   int64_t row_order, const std::optional<Tensor>& storage, int64_t layer_id) {
  const MoeTensors tensors{w13,      w13_block_scale, w13_global_scale, w2, w2_block_scale, w2_global_scale,
                           w13_bias, w2_bias};
  layers().with_unique(layer_id, [&](Layer& layer) {
    const nvfp4_moe_layer_desc& desc = layer.known.desc;
    const Checks check = layer.known.checks();
    const int64_t projections = projections_of(desc.activation);
    MoeShape{desc.num_local_experts, desc.hidden_size, desc.intermediate_size, projections}.check(tensors, check);
    nvfp4_moe_layer_weights weights{};
    weights.struct_size = sizeof weights;
    weights.up_first = to_int32("row_order", row_order);
    point_at(weights, tensors);
    weights.w13_input_scale = static_cast<float>(w13_input_scale);
    weights.w2_input_scale = static_cast<float>(w2_input_scale);

    const StreamGuard guard(layer.known.device);
    const Storage target =
        storage_for(layer.known.storage, storage, check, w13, desc.num_local_experts, storage_size(layer));
    check_status(
        nvfp4_moe_layer_prepare(layer.handle.get(), &weights, target.address(), target.size(), guard.stream()));
    layer.kept = target.or_weights(tensors.all());
    layer.known.storage = target;
  });
}

std::optional<Tensor> layer_storage(int64_t layer_id) {
  return layers().with_shared(layer_id, [](const Layer& layer) { return tensor_of(layer.known.storage); });
}

int64_t layer_storage_size(int64_t layer_id) {
  return layers().with_shared(layer_id, [](const Layer& layer) { return static_cast<int64_t>(storage_size(layer)); });
}

std::tuple<double, int64_t, int64_t, double, int64_t, int64_t, int64_t, int64_t> layer_weight_error(int64_t layer_id) {
  using Result = std::tuple<double, int64_t, int64_t, double, int64_t, int64_t, int64_t, int64_t>;
  return layers().with_shared(layer_id, [](const Layer& layer) -> Result {
    nvfp4_moe_weight_error error{};
    error.struct_size = sizeof error;
    check_status(nvfp4_moe_layer_weight_error(layer.handle.get(), &error));
    return {error.rel_l2,       error.expert,       error.matrix,    error.block_rel_l2,
            error.block_expert, error.block_matrix, error.block_row, error.block};
  });
}

int64_t layer_workspace_size(int64_t layer_id, int64_t max_tokens) {
  return layers().with_shared(layer_id, [&](const Layer& layer) {
    uint64_t size = 0;
    check_status(nvfp4_moe_layer_workspace_size(layer.handle.get(), to_int32("max_tokens", max_tokens), &size));
    return static_cast<int64_t>(size + kWorkspaceAlignment);
  });
}

void moe_forward(const Tensor& x, const Tensor& topk_ids, const std::optional<Tensor>& topk_weights,
                 const std::optional<Tensor>& expert_map, const std::optional<Tensor>& workspace, int64_t layer_id,
                 const Tensor& out, const std::optional<Tensor>& shared_output, int64_t shared_output_ready) {
  layers().with_shared(layer_id, [&](const Layer& layer) {
    const auto args = checked_args(layer.known, x, topk_ids, topk_weights, expert_map, workspace, out, shared_output,
                                   shared_output_ready);
    const StreamGuard guard(layer.known.device);
    check_status(nvfp4_moe_layer_forward(layer.handle.get(), &args, guard.stream()));
  });
}

void moe_calibrate(const Tensor& x, const Tensor& topk_ids, const std::optional<Tensor>& topk_weights,
                   const std::optional<Tensor>& expert_map, const std::optional<Tensor>& workspace, int64_t layer_id,
                   const Tensor& out, const std::optional<Tensor>& shared_output, int64_t shared_output_ready) {
  layers().with_unique(layer_id, [&](Layer& layer) {
    const auto args = checked_args(layer.known, x, topk_ids, topk_weights, expert_map, workspace, out, shared_output,
                                   shared_output_ready);
    const StreamGuard guard(layer.known.device);
    check_status(nvfp4_moe_layer_calibrate(layer.handle.get(), &args, guard.stream()));
  });
}

std::tuple<double, double> layer_calibrated_scales(int64_t layer_id) {
  return layers().with_unique(layer_id, [](Layer& layer) -> std::tuple<double, double> {
    float w13_input_scale = 0, w2_input_scale = 0;
    check_status(nvfp4_moe_layer_calibrated_scales(layer.handle.get(), &w13_input_scale, &w2_input_scale));
    return {w13_input_scale, w2_input_scale};
  });
}

void layer_set_input_scales(int64_t layer_id, double w13_input_scale, double w2_input_scale) {
  layers().with_unique(layer_id, [&](Layer& layer) {
    check_status(nvfp4_moe_layer_set_input_scales(layer.handle.get(), static_cast<float>(w13_input_scale),
                                                  static_cast<float>(w2_input_scale)));
  });
}

}  // namespace nvfp4_moe_op
