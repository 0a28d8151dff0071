// SPDX-License-Identifier: Apache-2.0
#include "process_op.h"

#include "error.h"

namespace nvfp4_moe_op {

int64_t version() { return nvfp4_moe_version(); }

// Of a function that copies its text out.
static std::string text_of(size_t (*copy)(char*, size_t)) {
  std::string text(copy(nullptr, 0), '\0');
  copy(text.data(), text.size() + 1);
  return text;
}

std::string cpu_isa() { return text_of(nvfp4_moe_cpu_isa); }

std::string build_info() { return text_of(nvfp4_moe_build_info); }

void set_num_threads(int64_t num_threads) {
  check_status(nvfp4_moe_set_num_threads(to_int32("num_threads", num_threads)));
}

std::tuple<int64_t, std::string> last_failure_read() { return {last_failure().status, last_failure().sentence}; }

}  // namespace nvfp4_moe_op
