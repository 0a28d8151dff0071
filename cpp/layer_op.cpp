#include "layer_op.h"

#include <torch/csrc/stable/ops.h>

#include <vector>

#include "choices.h"
#include "handle_table.h"
#include "stream.h"

namespace nvfp4_moe_op {
namespace {

struct Layer {
  Layer(const Device& device, const nvfp4_moe_layer_desc& desc, nvfp4_moe_layer* handle)
      : device(device), desc(desc), handle(handle) {}

  const Device device;
  const nvfp4_moe_layer_desc desc;
  const Handle<nvfp4_moe_layer, nvfp4_moe_layer_destroy> handle;
  std::vector<Tensor> kept;  // what the handle points into
  // The header's rule for handles: const calls share, all others are alone.
  std::shared_mutex use;
};

// Never destroyed: tensors must not be freed after torch itself is gone.
HandleTable<Layer>& layers() {
  static auto& table = *new HandleTable<Layer>("layer");
  return table;
}

nvfp4_moe_layer_args checked_args(const Layer& layer, const Tensor& x, const Tensor& topk_ids,
                                  const std::optional<Tensor>& topk_weights, const std::optional<Tensor>& expert_map,
                                  const std::optional<Tensor>& workspace, const Tensor& out) {
  const nvfp4_moe_layer_desc& desc = layer.desc;
  const int64_t num_tokens = x.dim() == 2 ? x.size(0) : 0;
  const Dim T{"T", num_tokens}, H{"H", desc.hidden_size}, k{"k", desc.top_k}, E{"E", desc.num_experts};

  check_dtype(x, "x", {ScalarType::BFloat16});
  check_shape(x, "x", {T, H});
  check_device(x, "x", layer.device, "layer");
  check_dtype(topk_ids, "topk_ids", {ScalarType::Int, ScalarType::Long});
  check_shape(topk_ids, "topk_ids", {T, k});
  check_device(topk_ids, "topk_ids", layer.device, "layer");
  check_dtype(out, "out", {ScalarType::BFloat16});
  check_shape(out, "out", {T, H});
  check_device(out, "out", layer.device, "layer");

  nvfp4_moe_layer_args args{};
  args.struct_size = sizeof args;
  args.num_tokens = to_int32("x.size(0)", num_tokens);
  args.x = data<void>(x);
  args.x_row_stride = row_stride(x, "x");
  args.topk_ids = data<void>(topk_ids);
  args.topk_ids_row_stride = row_stride(topk_ids, "topk_ids");
  args.topk_ids_dtype = topk_ids.scalar_type() == ScalarType::Int ? NVFP4_MOE_DTYPE_I32 : NVFP4_MOE_DTYPE_I64;
  args.out = mutable_data<void>(out);
  args.out_row_stride = row_stride(out, "out");
  if (topk_weights) {
    check_dtype(*topk_weights, "topk_weights", {ScalarType::Float});
    check_shape(*topk_weights, "topk_weights", {T, k});
    check_device(*topk_weights, "topk_weights", layer.device, "layer");
    args.topk_weights = data<float>(*topk_weights);
    args.topk_weights_row_stride = row_stride(*topk_weights, "topk_weights");
  }
  if (expert_map) {
    check_dtype(*expert_map, "expert_map", {ScalarType::Int});
    check_shape(*expert_map, "expert_map", {E});
    check_device(*expert_map, "expert_map", layer.device, "layer");
    check_contiguous(*expert_map, "expert_map");
    args.expert_map = data<int32_t>(*expert_map);
    args.num_experts_mapped = desc.num_experts;
  }
  const Workspace scratch = aligned_workspace(workspace, layer.device, "layer");
  args.workspace = scratch.address;
  args.workspace_size = scratch.size;
  return args;
}

}  // namespace

int64_t layer_create(const Device& device, bool portable, std::string mode, std::string scale_policy,
                     int64_t hidden_size, int64_t intermediate_size, int64_t num_experts, int64_t num_local_experts,
                     int64_t first_local_expert, int64_t top_k, double swiglu_limit, double swiglu_alpha,
                     double swiglu_beta) {
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

  nvfp4_moe_layer* handle = nullptr;
  check_status(nvfp4_moe_layer_create(&desc, &handle));
  return layers().add(std::make_shared<Layer>(device, desc, handle));
}

void layer_destroy(int64_t layer) { layers().remove(layer); }

void layer_prepare(const Tensor& w13, const Tensor& w13_block_scale, const Tensor& w13_global_scale, const Tensor& w2,
                   const Tensor& w2_block_scale, const Tensor& w2_global_scale, double w13_input_scale,
                   double w2_input_scale, bool up_first, const std::optional<Tensor>& storage, int64_t layer_id) {
  const std::shared_ptr<Layer> layer = layers().find(layer_id);
  const int64_t hidden = layer->desc.hidden_size, inter = layer->desc.intermediate_size;
  const Dim L{"L", layer->desc.num_local_experts}, H{"H", hidden}, two_i{"2I", 2 * inter};

  check_shape(w13, "w13", {L, two_i, {"H/2", hidden / 2}});
  check_shape(w13_block_scale, "w13_block_scale", {L, two_i, {"H/16", hidden / 16}});
  check_shape(w13_global_scale, "w13_global_scale", {L, {"2", 2}});
  check_shape(w2, "w2", {L, H, {"I/2", inter / 2}});
  check_shape(w2_block_scale, "w2_block_scale", {L, H, {"I/16", inter / 16}});
  check_shape(w2_global_scale, "w2_global_scale", {L});
  check_dtype(w13, "w13", {ScalarType::Byte});
  check_dtype(w13_block_scale, "w13_block_scale", {ScalarType::Float8_e4m3fn, ScalarType::Byte});
  check_dtype(w13_global_scale, "w13_global_scale", {ScalarType::Float});
  check_dtype(w2, "w2", {ScalarType::Byte});
  check_dtype(w2_block_scale, "w2_block_scale", {ScalarType::Float8_e4m3fn, ScalarType::Byte});
  check_dtype(w2_global_scale, "w2_global_scale", {ScalarType::Float});
  const std::pair<const char*, const Tensor*> all[] = {
      {"w13", &w13}, {"w13_block_scale", &w13_block_scale}, {"w13_global_scale", &w13_global_scale},
      {"w2", &w2},   {"w2_block_scale", &w2_block_scale},   {"w2_global_scale", &w2_global_scale}};
  for (const auto& [name, tensor] : all) {
    check_device(*tensor, name, layer->device, "layer");
    check_contiguous(*tensor, name);
  }

  nvfp4_moe_layer_weights weights{};
  weights.struct_size = sizeof weights;
  weights.up_first = up_first;
  weights.w13 = data<uint8_t>(w13);
  weights.w13_block_scale = data<uint8_t>(w13_block_scale);
  weights.w13_global_scale = data<float>(w13_global_scale);
  weights.w2 = data<uint8_t>(w2);
  weights.w2_block_scale = data<uint8_t>(w2_block_scale);
  weights.w2_global_scale = data<float>(w2_global_scale);
  weights.w13_input_scale = static_cast<float>(w13_input_scale);
  weights.w2_input_scale = static_cast<float>(w2_input_scale);

  const StreamGuard guard(layer->device);
  std::unique_lock alone(layer->use);
  uint64_t storage_size = 0;
  std::vector<Tensor> keep;
  if (storage) {
    check_device(*storage, "storage", layer->device, "layer");
    check_contiguous(*storage, "storage");
    check_dtype(*storage, "storage", {ScalarType::Byte});
    storage_size = storage->numel();
    keep.push_back(*storage);
  } else {
    for (const auto& [name, tensor] : all) keep.push_back(*tensor);
  }
  void* const bytes = storage ? mutable_data<void>(*storage) : nullptr;
  check_status(nvfp4_moe_layer_prepare(layer->handle.get(), &weights, bytes, storage_size, guard.stream()));
  layer->kept = std::move(keep);
}

int64_t layer_storage_size(int64_t layer_id) {
  const std::shared_ptr<Layer> layer = layers().find(layer_id);
  std::shared_lock shared(layer->use);
  uint64_t size = 0;
  check_status(nvfp4_moe_layer_storage_size(layer->handle.get(), &size));
  return static_cast<int64_t>(size);
}

int64_t layer_workspace_size(int64_t layer_id, int64_t max_tokens) {
  const std::shared_ptr<Layer> layer = layers().find(layer_id);
  std::shared_lock shared(layer->use);
  uint64_t size = 0;
  check_status(nvfp4_moe_layer_workspace_size(layer->handle.get(), to_int32("max_tokens", max_tokens), &size));
  return static_cast<int64_t>(size + kWorkspaceAlignment);
}

void moe_forward(const Tensor& x, const Tensor& topk_ids, const std::optional<Tensor>& topk_weights,
                 const std::optional<Tensor>& expert_map, const std::optional<Tensor>& workspace, int64_t layer_id,
                 const Tensor& out) {
  const std::shared_ptr<Layer> layer = layers().find(layer_id);
  const auto args = checked_args(*layer, x, topk_ids, topk_weights, expert_map, workspace, out);
  const StreamGuard guard(layer->device);
  std::shared_lock shared(layer->use);
  check_status(nvfp4_moe_layer_forward(layer->handle.get(), &args, guard.stream()));
}

void moe_calibrate(const Tensor& x, const Tensor& topk_ids, const std::optional<Tensor>& topk_weights,
                   const std::optional<Tensor>& expert_map, const std::optional<Tensor>& workspace, int64_t layer_id,
                   const Tensor& out) {
  const std::shared_ptr<Layer> layer = layers().find(layer_id);
  const auto args = checked_args(*layer, x, topk_ids, topk_weights, expert_map, workspace, out);
  const StreamGuard guard(layer->device);
  std::unique_lock alone(layer->use);
  check_status(nvfp4_moe_layer_calibrate(layer->handle.get(), &args, guard.stream()));
}

std::tuple<double, double> layer_calibrated_scales(int64_t layer_id) {
  const std::shared_ptr<Layer> layer = layers().find(layer_id);
  std::unique_lock alone(layer->use);
  float w13_input_scale = 0, w2_input_scale = 0;
  check_status(nvfp4_moe_layer_calibrated_scales(layer->handle.get(), &w13_input_scale, &w2_input_scale));
  return {w13_input_scale, w2_input_scale};
}

void layer_set_input_scales(int64_t layer_id, double w13_input_scale, double w2_input_scale) {
  const std::shared_ptr<Layer> layer = layers().find(layer_id);
  std::unique_lock alone(layer->use);
  check_status(nvfp4_moe_layer_set_input_scales(layer->handle.get(), static_cast<float>(w13_input_scale),
                                                static_cast<float>(w2_input_scale)));
}

}  // namespace nvfp4_moe_op
