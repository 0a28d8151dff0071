// SPDX-License-Identifier: Apache-2.0
// The format on host memory, as ops.
#pragma once

#include <optional>
#include <tuple>

#include "tensors.h"

namespace nvfp4_moe_op {

// bf16 [rows, cols] -> e2m1x2 u8 [rows, cols/2]; e4m3 as u8, [rows, cols/16] or, swizzled, [sf_size]; f32 global
// scales: [1], the one given, or without one (dynamic) [rows].
std::tuple<Tensor, Tensor, Tensor> quantize(const Tensor& x, std::optional<double> global_scale, bool swizzled);

// e2m1x2 u8 [rows, cols/2], linear e4m3 [rows, cols/16] -> f32 [rows, cols]
Tensor dequantize(const Tensor& packed, const Tensor& block_scale, double global_scale);

int64_t sf_size(int64_t num_rows, int64_t num_sf_cols);
int64_t sf_offset(int64_t row, int64_t sf_col, int64_t num_sf_cols);

}  // namespace nvfp4_moe_op
