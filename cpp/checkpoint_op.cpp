#include "checkpoint_op.h"

#include <unordered_map>

#include "handle_table.h"

namespace nvfp4_moe_op {
namespace {

struct Checkpoint {
  explicit Checkpoint(nvfp4_moe_checkpoint* handle) : handle(handle) {}

  const Handle<nvfp4_moe_checkpoint, nvfp4_moe_checkpoint_destroy> handle;
  // Describing a layer reads all its scales: once is enough.
  std::mutex infos_mutex;
  std::unordered_map<int32_t, nvfp4_moe_checkpoint_layer_info> infos;
};

HandleTable<Checkpoint>& checkpoints() {
  static auto& table = *new HandleTable<Checkpoint>("checkpoint");
  return table;
}

// What was described without regard to its activation answers only those who have none.
nvfp4_moe_checkpoint_layer_info info_of(Checkpoint& checkpoint, int32_t layer, bool any_activation) {
  std::unique_lock lock(checkpoint.infos_mutex);
  const auto known = checkpoint.infos.find(layer);
  if (known != checkpoint.infos.end() && (any_activation || !known->second.any_activation)) return known->second;
  nvfp4_moe_checkpoint_layer_info info{};
  info.struct_size = sizeof info;
  info.any_activation = any_activation;
  check_status(nvfp4_moe_checkpoint_layer_info_read(checkpoint.handle.get(), layer, &info));
  return checkpoint.infos[layer] = info;
}

std::string format_name(int32_t format) {
  switch (format) {
    case NVFP4_MOE_FORMAT_MODELOPT: return "modelopt";
    case NVFP4_MOE_FORMAT_COMPRESSED_TENSORS: return "compressed-tensors";
    case NVFP4_MOE_FORMAT_DEEPSEEK_V4_MIXED: return "deepseek-v4-mixed";
    default: return text("format ", format);
  }
}

}  // namespace

int64_t checkpoint_open(std::string directory, std::string prefix) {
  nvfp4_moe_checkpoint* handle = nullptr;
  check_status(nvfp4_moe_checkpoint_open_prefix(directory.c_str(), prefix.c_str(), &handle));
  return checkpoints().add(std::make_shared<Checkpoint>(handle));
}

void checkpoint_destroy(int64_t checkpoint) { checkpoints().remove(checkpoint); }

LayerInfo checkpoint_layer_info(int64_t checkpoint_id, int64_t layer, bool any_activation) {
  const std::shared_ptr<Checkpoint> checkpoint = checkpoints().find(checkpoint_id);
  const auto info = info_of(*checkpoint, to_int32("layer", layer), any_activation);
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
          info.swiglu_beta};
}

void checkpoint_read_layer(const Tensor& w13, const Tensor& w13_block_scale, const Tensor& w13_global_scale,
                           const Tensor& w2, const Tensor& w2_block_scale, const Tensor& w2_global_scale,
                           int64_t first_expert, int64_t layer, int64_t checkpoint_id) {
  const std::shared_ptr<Checkpoint> checkpoint = checkpoints().find(checkpoint_id);
  const auto info = info_of(*checkpoint, to_int32("layer", layer), true);  // weights do not depend on it
  const int64_t hidden = info.hidden_size, inter = info.intermediate_size;
  const int64_t count = w13.dim() == 3 ? w13.size(0) : 0;
  const Dim L{"L", count}, H{"H", hidden}, two_i{"2I", 2 * inter};

  struct Expected {
    const char* name;
    const Tensor& tensor;
    std::initializer_list<Dim> dims;
    ScalarType dtype;
  };
  const Dim half_h{"H/2", hidden / 2}, sf_h{"H/16", hidden / 16}, half_i{"I/2", inter / 2}, sf_i{"I/16", inter / 16};
  const auto check = [](const Expected& expected) {
    check_shape(expected.tensor, expected.name, expected.dims);
    check_device(expected.tensor, expected.name, Device(DeviceType::CPU), "checkpoint");
    check_contiguous(expected.tensor, expected.name);
    if (expected.dtype == ScalarType::Float8_e4m3fn)
      check_dtype(expected.tensor, expected.name, {ScalarType::Float8_e4m3fn, ScalarType::Byte});
    else
      check_dtype(expected.tensor, expected.name, {expected.dtype});
  };
  check({"w13", w13, {L, two_i, half_h}, ScalarType::Byte});
  check({"w13_block_scale", w13_block_scale, {L, two_i, sf_h}, ScalarType::Float8_e4m3fn});
  check({"w13_global_scale", w13_global_scale, {L, {"2", 2}}, ScalarType::Float});
  check({"w2", w2, {L, H, half_i}, ScalarType::Byte});
  check({"w2_block_scale", w2_block_scale, {L, H, sf_i}, ScalarType::Float8_e4m3fn});
  check({"w2_global_scale", w2_global_scale, {L}, ScalarType::Float});

  nvfp4_moe_checkpoint_buffers buffers{};
  buffers.struct_size = sizeof buffers;
  buffers.first_expert = to_int32("first_expert", first_expert);
  buffers.num_experts = to_int32("w13.size(0)", count);
  buffers.w13 = mutable_data<uint8_t>(w13);
  buffers.w13_block_scale = mutable_data<uint8_t>(w13_block_scale);
  buffers.w13_global_scale = mutable_data<float>(w13_global_scale);
  buffers.w2 = mutable_data<uint8_t>(w2);
  buffers.w2_block_scale = mutable_data<uint8_t>(w2_block_scale);
  buffers.w2_global_scale = mutable_data<float>(w2_global_scale);
  check_status(nvfp4_moe_checkpoint_read_layer(checkpoint->handle.get(), static_cast<int32_t>(layer), &buffers));
}

std::string checkpoint_inspect(int64_t checkpoint_id, int64_t as_json_id) {
  const std::shared_ptr<Checkpoint> checkpoint = checkpoints().find(checkpoint_id);
  const int32_t as_json = to_int32("as_json", as_json_id);
  size_t length = 0;
  check_status(nvfp4_moe_checkpoint_inspect(checkpoint->handle.get(), as_json, nullptr, 0, &length));
  std::string report(length, '\0');
  check_status(
      nvfp4_moe_checkpoint_inspect(checkpoint->handle.get(), as_json, report.data(), report.size() + 1, &length));
  return report;
}

}  // namespace nvfp4_moe_op
