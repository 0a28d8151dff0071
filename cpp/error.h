// SPDX-License-Identifier: Apache-2.0
// Errors of the op. Their texts follow the library's one form: `<name> is <value>; <rule>. <remedy>`.
#pragma once

#include <cstdint>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>

#include "nvfp4_moe.h"

namespace nvfp4_moe_op {

// The parts of a text, one after the other.
template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream stream;
  (stream << ... << parts);
  return stream.str();
}

// What this thread failed with last. Torch hands a RuntimeError with the sentence to Python, which asks here for the
// status that goes with it (nvfp4_moe/errors.py).
struct Failure {
  int32_t status = NVFP4_MOE_OK;
  std::string sentence;
};

inline Failure& last_failure() {
  static thread_local Failure failure;
  return failure;
}

[[noreturn]] inline void fail(int32_t status, const std::string& sentence) {
  last_failure() = {status, sentence};
  throw std::runtime_error(sentence);
}

// Refuse a value.
template <class Value>
[[noreturn]] void refuse(const std::string& name, const Value& value, const std::string& rule,
                         const std::string& remedy) {
  fail(NVFP4_MOE_INVALID_ARGUMENT, text(name, " is ", value, "; ", rule, ". ", remedy));
}

// Throw the library's own sentence unless `status` is NVFP4_MOE_OK.
inline void check_status(int32_t status) {
  if (status == NVFP4_MOE_OK) return;
  std::string sentence(nvfp4_moe_last_error(nullptr, 0), '\0');
  nvfp4_moe_last_error(sentence.data(), sentence.size() + 1);
  fail(status, sentence);
}

// Python's integers have 64 bits, most of the library's have 32.
inline int32_t to_int32(const std::string& name, int64_t value) {
  if (value < std::numeric_limits<int32_t>::min() || value > std::numeric_limits<int32_t>::max())
    refuse(name, value, "it must fit in 32 bits", "Split the work into smaller calls.");
  return static_cast<int32_t>(value);
}

}  // namespace nvfp4_moe_op
