// SPDX-License-Identifier: Apache-2.0
// The counters of a device, as ops.
#pragma once

#include <tuple>

#include "tensors.h"

namespace nvfp4_moe_op {

// (saturated_blocks, nonfinite_values, out_of_range_ids, first_bad_token)
std::tuple<int64_t, int64_t, int64_t, int64_t> device_status_read(const Device& device);
void device_status_reset(const Device& device);

}  // namespace nvfp4_moe_op
