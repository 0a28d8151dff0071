// SPDX-License-Identifier: Apache-2.0
#include "format_op.h"

#include <torch/csrc/stable/ops.h>

#include "nvfp4_moe.h"

namespace nvfp4_moe_op {
namespace {

constexpr int64_t kBlockSize = 16;

void check_matrix(const Tensor& tensor, const char* name, const char* columns) {
  if (tensor.dim() != 2)
    refuse(text(name, ".dim()"), tensor.dim(), text("it must be 2, [rows, ", columns, "]"), "Reshape it.");
}

// Sizes and coordinates are unsigned in the library.
uint64_t to_uint64(const char* name, int64_t value) {
  if (value < 0) refuse(name, value, "it must not be negative", "Pass 0 or more.");
  return static_cast<uint64_t>(value);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> quantize(const Tensor& x, std::optional<double> global_scale, bool swizzled) {
  check_dtype(x, "x", {ScalarType::BFloat16});
  check_matrix(x, "x", "cols");
  const int64_t rows = x.size(0), cols = x.size(1), sf_cols = cols / kBlockSize;
  if (cols % kBlockSize != 0)
    refuse("x.size(1)", cols, "it must be a multiple of 16, the block size", "Pad the columns with zeros.");

  Tensor packed = torch::stable::new_empty(x, {rows, cols / 2}, ScalarType::Byte);
  Tensor block_scale = swizzled ? torch::stable::new_empty(x, {sf_size(rows, sf_cols)}, ScalarType::Byte)
                                : torch::stable::new_empty(x, {rows, sf_cols}, ScalarType::Byte);
  Tensor scales = torch::stable::new_empty(x, {global_scale ? 1 : rows}, ScalarType::Float);
  if (global_scale) *mutable_data<float>(scales) = static_cast<float>(*global_scale);
  if (x.numel() == 0) {
    if (swizzled) torch::stable::zero_(block_scale);
    return {packed, block_scale, scales};
  }
  nvfp4_moe_quantize_args args{};
  args.struct_size = sizeof args;
  args.scale_policy = global_scale ? NVFP4_MOE_SCALE_STATIC : NVFP4_MOE_SCALE_DYNAMIC;
  args.num_rows = rows;
  args.num_cols = cols;
  args.x = data<void>(x);
  args.x_row_stride = row_stride(x, "x");
  args.packed = mutable_data<uint8_t>(packed);
  args.block_scale = mutable_data<uint8_t>(block_scale);
  args.global_scale = mutable_data<float>(scales);
  args.sf_layout = swizzled ? NVFP4_MOE_SF_SWIZZLED_128X4 : NVFP4_MOE_SF_LINEAR;
  check_status(nvfp4_moe_quantize(&args));
  return {packed, block_scale, scales};
}

Tensor dequantize(const Tensor& packed, const Tensor& block_scale, double global_scale) {
  check_matrix(packed, "packed", "cols/2");
  const int64_t rows = packed.size(0), cols = packed.size(1) * 2;
  check_dtype(packed, "packed", kPackedTypes);
  check_contiguous(packed, "packed");
  check_dtype(block_scale, "block_scale", kScaleTypes);
  check_shape(block_scale, "block_scale", {{"rows", rows}, {"cols/16", cols / kBlockSize}});
  check_contiguous(block_scale, "block_scale");
  Tensor out = torch::stable::new_empty(packed, {rows, cols}, ScalarType::Float);
  if (out.numel() == 0) return out;
  check_status(nvfp4_moe_dequantize(data<uint8_t>(packed), data<uint8_t>(block_scale), static_cast<float>(global_scale),
                                    rows, cols, mutable_data<float>(out)));
  return out;
}

int64_t sf_size(int64_t num_rows, int64_t num_sf_cols) {
  return static_cast<int64_t>(
      nvfp4_moe_sf_size(to_uint64("num_rows", num_rows), to_uint64("num_sf_cols", num_sf_cols)));
}

int64_t sf_offset(int64_t row, int64_t sf_col, int64_t num_sf_cols) {
  return static_cast<int64_t>(
      nvfp4_moe_sf_offset(to_uint64("row", row), to_uint64("sf_col", sf_col), to_uint64("num_sf_cols", num_sf_cols)));
}

}  // namespace nvfp4_moe_op
