// SPDX-License-Identifier: Apache-2.0
#include "status_op.h"

#include "stream.h"

namespace nvfp4_moe_op {

std::tuple<int64_t, int64_t, int64_t, int64_t> device_status_read(const Device& device) {
  const StreamGuard guard(device);
  nvfp4_moe_device_status status{};
  status.struct_size = sizeof status;
  check_status(nvfp4_moe_device_status_read(device_kind(device), device_ordinal(device), &status, guard.stream()));
  return {static_cast<int64_t>(status.saturated_blocks), static_cast<int64_t>(status.nonfinite_values),
          static_cast<int64_t>(status.out_of_range_ids), status.first_bad_token};
}

void device_status_reset(const Device& device) {
  const StreamGuard guard(device);
  check_status(nvfp4_moe_device_status_reset(device_kind(device), device_ordinal(device), guard.stream()));
}

}  // namespace nvfp4_moe_op
