// SPDX-License-Identifier: Apache-2.0
// The torch library "nvfp4_moe": every op's schema and where it runs.
//
// Built on torch's stable ABI from headers alone, so that one .so serves torch 2.11 and later, with and without CUDA.
// Fakes are registered from Python (nvfp4_moe/ops.py).

#include <torch/csrc/stable/library.h>

#include "checkpoint_op.h"
#include "format_op.h"
#include "layer_op.h"
#include "linear_op.h"
#include "process_op.h"
#include "status_op.h"

STABLE_TORCH_LIBRARY(nvfp4_moe, m) {
  m.def(
      "layer_create(Device device, bool portable, str mode, str scale_policy, int hidden_size, int intermediate_size, "
      "int num_experts, int num_local_experts, int first_local_expert, int top_k, float swiglu_limit, "
      "float swiglu_alpha, float swiglu_beta, int tile_rows, str activation, bool has_bias, float fp8_max_error, "
      "int scale_block_size) -> int");
  m.def("layer_destroy(int layer) -> ()");
  m.def(
      "layer_prepare(Tensor w13, Tensor w13_block_scale, Tensor w13_global_scale, Tensor w2, Tensor w2_block_scale, "
      "Tensor w2_global_scale, Tensor? w13_bias, Tensor? w2_bias, float w13_input_scale, float w2_input_scale, "
      "int row_order, Tensor(a!)? storage, int layer) -> ()");
  m.def("layer_storage_size(int layer) -> int");
  m.def("layer_storage(int layer) -> Tensor?");
  m.def(
      "layer_weight_error(int layer) -> (float rel_l2, int expert, int matrix, float block_rel_l2, int block_expert, "
      "int block_matrix, int block_row, int block)");
  m.def("layer_workspace_size(int layer, int max_tokens) -> int");
  m.def(
      "moe_forward(Tensor x, Tensor topk_ids, Tensor? topk_weights, Tensor? expert_map, Tensor(b!)? workspace, "
      "int layer, Tensor(a!) out, Tensor? shared_output=None, int shared_output_ready=0) -> ()");
  m.def(
      "moe_calibrate(Tensor x, Tensor topk_ids, Tensor? topk_weights, Tensor? expert_map, Tensor(b!)? workspace, "
      "int layer, Tensor(a!) out, Tensor? shared_output=None, int shared_output_ready=0) -> ()");
  m.def("layer_calibrated_scales(int layer) -> (float w13_input_scale, float w2_input_scale)");
  m.def("layer_set_input_scales(int layer, float w13_input_scale, float w2_input_scale) -> ()");

  m.def(
      "linear_create(Device device, bool portable, str mode, str scale_policy, int in_features, int out_features, "
      "int num_parts, int tile_rows, str name) -> int");
  m.def("linear_destroy(int linear) -> ()");
  m.def(
      "linear_prepare(Tensor weight, Tensor block_scale, Tensor global_scale, Tensor? bias, int[] part_rows, "
      "float input_scale, Tensor(a!)? storage, int linear) -> ()");
  m.def("linear_storage_size(int linear) -> int");
  m.def("linear_storage(int linear) -> Tensor?");
  m.def("linear_workspace_size(int linear, int max_tokens) -> int");
  m.def("linear_forward(Tensor x, Tensor(b!)? workspace, int linear, Tensor(a!) out) -> ()");
  m.def("linear_calibrate(Tensor x, Tensor(b!)? workspace, int linear, Tensor(a!) out) -> ()");
  m.def("linear_calibrated_scale(int linear) -> float");
  m.def("linear_set_input_scale(int linear, float input_scale) -> ()");

  m.def(
      "quantize(Tensor x, float? global_scale, bool swizzled) "
      "-> (Tensor packed, Tensor block_scale, Tensor global_scale)");
  m.def("dequantize(Tensor packed, Tensor block_scale, float global_scale) -> Tensor");
  m.def("sf_size(int num_rows, int num_sf_cols) -> int");
  m.def("sf_offset(int row, int sf_col, int num_sf_cols) -> int");

  m.def("checkpoint_open(str directory, str prefix) -> int");
  m.def("checkpoint_destroy(int checkpoint) -> ()");
  m.def(
      "checkpoint_layer_info(int checkpoint, int layer, bool any_activation) -> (str format, int hidden_size, int "
      "intermediate_size, "
      "int num_experts, int top_k, float swiglu_limit, float routed_scaling_factor, bool lossless_cast, "
      "float w13_input_scale, float w2_input_scale, float swiglu_alpha, float swiglu_beta, str activation, "
      "bool has_bias)");
  m.def(
      "checkpoint_read_layer(Tensor(a!) w13, Tensor(b!) w13_block_scale, Tensor(c!) w13_global_scale, "
      "Tensor(d!) w2, Tensor(e!) w2_block_scale, Tensor(f!) w2_global_scale, Tensor(g!)? w13_bias, "
      "Tensor(h!)? w2_bias, int first_expert, int layer, int checkpoint) -> ()");
  m.def("checkpoint_inspect(int checkpoint, int as_json) -> str");

  m.def(
      "device_status_read(Device device) "
      "-> (int saturated_blocks, int nonfinite_values, int out_of_range_ids, int first_bad_token)");
  m.def("device_status_reset(Device device) -> ()");
  m.def("version() -> int");
  m.def("cpu_isa() -> str");
  m.def("build_info() -> str");
  m.def("set_num_threads(int num_threads) -> ()");
  m.def("last_failure() -> (int status, str sentence)");
}

using namespace nvfp4_moe_op;

// Calls that take no tensors.
STABLE_TORCH_LIBRARY_IMPL(nvfp4_moe, CompositeExplicitAutograd, m) {
  m.impl("layer_create", TORCH_BOX(&layer_create));
  m.impl("layer_destroy", TORCH_BOX(&layer_destroy));
  m.impl("layer_storage_size", TORCH_BOX(&layer_storage_size));
  m.impl("layer_storage", TORCH_BOX(&layer_storage));
  m.impl("layer_workspace_size", TORCH_BOX(&layer_workspace_size));
  m.impl("layer_weight_error", TORCH_BOX(&layer_weight_error));
  m.impl("layer_calibrated_scales", TORCH_BOX(&layer_calibrated_scales));
  m.impl("layer_set_input_scales", TORCH_BOX(&layer_set_input_scales));
  m.impl("linear_create", TORCH_BOX(&linear_create));
  m.impl("linear_destroy", TORCH_BOX(&linear_destroy));
  m.impl("linear_storage_size", TORCH_BOX(&linear_storage_size));
  m.impl("linear_storage", TORCH_BOX(&linear_storage));
  m.impl("linear_workspace_size", TORCH_BOX(&linear_workspace_size));
  m.impl("linear_calibrated_scale", TORCH_BOX(&linear_calibrated_scale));
  m.impl("linear_set_input_scale", TORCH_BOX(&linear_set_input_scale));
  m.impl("checkpoint_open", TORCH_BOX(&checkpoint_open));
  m.impl("checkpoint_destroy", TORCH_BOX(&checkpoint_destroy));
  m.impl("checkpoint_layer_info", TORCH_BOX(&checkpoint_layer_info));
  m.impl("checkpoint_inspect", TORCH_BOX(&checkpoint_inspect));
  m.impl("sf_size", TORCH_BOX(&sf_size));
  m.impl("sf_offset", TORCH_BOX(&sf_offset));
  m.impl("device_status_read", TORCH_BOX(&device_status_read));
  m.impl("device_status_reset", TORCH_BOX(&device_status_reset));
  m.impl("version", TORCH_BOX(&version));
  m.impl("cpu_isa", TORCH_BOX(&cpu_isa));
  m.impl("build_info", TORCH_BOX(&build_info));
  m.impl("set_num_threads", TORCH_BOX(&set_num_threads));
  m.impl("last_failure", TORCH_BOX(&last_failure_read));
}

// The same functions on both devices: device and stream come from the handle and from torch.
template <class Library>
void implement_on_device(Library& m) {
  m.impl("layer_prepare", TORCH_BOX(&layer_prepare));
  m.impl("moe_forward", TORCH_BOX(&moe_forward));
  m.impl("moe_calibrate", TORCH_BOX(&moe_calibrate));
  m.impl("linear_prepare", TORCH_BOX(&linear_prepare));
  m.impl("linear_forward", TORCH_BOX(&linear_forward));
  m.impl("linear_calibrate", TORCH_BOX(&linear_calibrate));
}

STABLE_TORCH_LIBRARY_IMPL(nvfp4_moe, CUDA, m) { implement_on_device(m); }

STABLE_TORCH_LIBRARY_IMPL(nvfp4_moe, CPU, m) {
  implement_on_device(m);
  m.impl("checkpoint_read_layer", TORCH_BOX(&checkpoint_read_layer));
  m.impl("quantize", TORCH_BOX(&quantize));
  m.impl("dequantize", TORCH_BOX(&dequantize));
}
