// SPDX-License-Identifier: Apache-2.0
#include "process_op.h"

#include "error.h"

namespace nvfp4_moe_op {

int64_t version() { return nvfp4_moe_version(); }

std::string cpu_isa() {
  std::string name(nvfp4_moe_cpu_isa(nullptr, 0), '\0');
  nvfp4_moe_cpu_isa(name.data(), name.size() + 1);
  return name;
}

void set_num_threads(int64_t num_threads) {
  check_status(nvfp4_moe_set_num_threads(to_int32("num_threads", num_threads)));
}

std::tuple<int64_t, std::string> last_failure_read() { return {last_failure().status, last_failure().sentence}; }

}  // namespace nvfp4_moe_op
