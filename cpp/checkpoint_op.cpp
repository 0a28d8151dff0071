// SPDX-License-Identifier: Apache-2.0
#include "checkpoint_op.h"

#include "choices.h"
#include "moe_shape.h"
#include "owned.h"

namespace nvfp4_moe_op {
namespace {

// Describing a layer reads all its scales: once is enough.
using Infos = std::unordered_map<int32_t, nvfp4_moe_checkpoint_layer_info>;
using Checkpoint = Owned<Infos, nvfp4_moe_checkpoint, nvfp4_moe_checkpoint_destroy>;

Table<Checkpoint>& checkpoints() {
  static auto& table = *new Table<Checkpoint>("checkpoint");
  return table;
}

// What was described without regard to its activation answers only those who have none.
nvfp4_moe_checkpoint_layer_info info_of(int64_t checkpoint_id, int64_t layer, bool any_activation) {
  const int32_t index = to_int32("layer", layer);
  return checkpoints().with_unique(checkpoint_id, [&](Checkpoint& checkpoint) {
    Infos& infos = checkpoint.known;
    const auto found = infos.find(index);
    if (found != infos.end() && (any_activation || !found->second.any_activation)) return found->second;
    nvfp4_moe_checkpoint_layer_info info{};
    info.struct_size = sizeof info;
    info.any_activation = any_activation;
    check_status(nvfp4_moe_checkpoint_layer_info_read(checkpoint.handle.get(), index, &info));
    return infos[index] = info;
  });
}

std::string format_name(int32_t format) {
  switch (format) {
    case NVFP4_MOE_FORMAT_MODELOPT: return "modelopt";
    case NVFP4_MOE_FORMAT_COMPRESSED_TENSORS: return "compressed-tensors";
    case NVFP4_MOE_FORMAT_DEEPSEEK_V4_MIXED: return "deepseek-v4-mixed";
    case NVFP4_MOE_FORMAT_MXFP4: return "mxfp4";
    default: return text("format ", format);
  }
}

}  // namespace

int64_t checkpoint_open(std::string directory, std::string prefix) {
  nvfp4_moe_checkpoint* handle = nullptr;
  check_status(nvfp4_moe_checkpoint_open_prefix(directory.c_str(), prefix.c_str(), &handle));
  return checkpoints().add(Infos{}, handle);
}

void checkpoint_destroy(int64_t checkpoint) { checkpoints().remove(checkpoint); }

LayerInfo checkpoint_layer_info(int64_t checkpoint_id, int64_t layer, bool any_activation) {
  const auto info = info_of(checkpoint_id, layer, any_activation);
  return {format_name(info.format),
          info.hidden_size,
          info.intermediate_size,
          info.num_experts,
          info.top_k,
          info.swiglu_limit,
          info.routed_scaling_factor,
          info.lossless_cast != 0,
          info.w13_input_scale,
          info.w2_input_scale,
          info.swiglu_alpha,
          info.swiglu_beta,
          kActivations[info.activation],
          info.has_bias != 0};
}

void checkpoint_read_layer(const Tensor& w13, const Tensor& w13_block_scale, const Tensor& w13_global_scale,
                           const Tensor& w2, const Tensor& w2_block_scale, const Tensor& w2_global_scale,
                           const std::optional<Tensor>& w13_bias, const std::optional<Tensor>& w2_bias,
                           int64_t first_expert, int64_t layer, int64_t checkpoint_id) {
  const auto info = info_of(checkpoint_id, layer, true);  // weights do not depend on it
  const MoeTensors tensors{w13,      w13_block_scale, w13_global_scale, w2, w2_block_scale, w2_global_scale,
                           w13_bias, w2_bias};
  const int64_t count = w13.dim() == 3 ? w13.size(0) : 0;
  const Device cpu(DeviceType::CPU);
  const MoeShape shape{count, info.hidden_size, info.intermediate_size, projections_of(info.activation)};
  shape.check(tensors, Checks{cpu, "checkpoint"});

  nvfp4_moe_checkpoint_buffers buffers{};
  buffers.struct_size = sizeof buffers;
  buffers.first_expert = to_int32("first_expert", first_expert);
  buffers.num_experts = to_int32("w13.size(0)", count);
  point_at(buffers, tensors);
  checkpoints().with_shared(checkpoint_id, [&](const Checkpoint& checkpoint) {
    check_status(nvfp4_moe_checkpoint_read_layer(checkpoint.handle.get(), to_int32("layer", layer), &buffers));
  });
}

std::string checkpoint_inspect(int64_t checkpoint_id, int64_t as_json_id) {
  const int32_t as_json = to_int32("as_json", as_json_id);
  return checkpoints().with_shared(checkpoint_id, [&](const Checkpoint& checkpoint) {
    const nvfp4_moe_checkpoint* handle = checkpoint.handle.get();
    size_t length = 0;
    check_status(nvfp4_moe_checkpoint_inspect(handle, as_json, nullptr, 0, &length));
    std::string report(length, '\0');
    check_status(nvfp4_moe_checkpoint_inspect(handle, as_json, report.data(), report.size() + 1, &length));
    return report;
  });
}

}  // namespace nvfp4_moe_op
