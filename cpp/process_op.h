// SPDX-License-Identifier: Apache-2.0
// The library in this process, as ops: its version, its instruction set, its threads.
#pragma once

#include <cstdint>
#include <string>
#include <tuple>

namespace nvfp4_moe_op {

int64_t version();
std::string cpu_isa();
std::string build_info();
void set_num_threads(int64_t num_threads);

// (status, sentence) of this thread's last failure in an op.
std::tuple<int64_t, std::string> last_failure_read();

}  // namespace nvfp4_moe_op
