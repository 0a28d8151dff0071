// SPDX-License-Identifier: Apache-2.0
#include <cstdlib>

#include "driver.h"

namespace standin {
namespace {

std::string text(const char* name, const char* otherwise = "") {
  const char* value = std::getenv(name);
  return value ? value : otherwise;
}
uint32_t number(const char* name, uint32_t otherwise) {
  const char* value = std::getenv(name);
  return value ? static_cast<uint32_t>(std::strtoul(value, nullptr, 10)) : otherwise;
}

Settings read() {
  Settings s;
  const std::string capability = text("STANDIN_CAPABILITY"), mode = text("STANDIN_MODE", "late");
  if (const auto dot = capability.find('.'); dot != std::string::npos)
    s.capability = std::atoi(capability.c_str()) * 10 + std::atoi(capability.c_str() + dot + 1);
  s.images = text("STANDIN_IMAGES"), s.report = text("STANDIN_REPORT"),
  s.callers = text("STANDIN_CALLERS", "nvfp4_moe");
  s.mode = mode == "early" ? kEarly : mode == "mixed" ? kMixed : kLate;
  s.flags = (number("STANDIN_POISON", 1) ? kPoison : 0u) | (number("STANDIN_STRICT", 1) ? kStrict : 0u) |
            (number("STANDIN_POISON_COMMITS", 0) ? kPoisonCommits : 0u);
  s.seed = number("STANDIN_SEED", 1), s.delay_us = number("STANDIN_DELAY_US", 0);
  s.slow_warp = number("STANDIN_SLOW_WARP", 0);
  s.alloc_shift = number("STANDIN_ALLOC_SHIFT", 3), s.slots_each = number("STANDIN_SLOTS", 4);
  s.timeout_ns = number("STANDIN_TIMEOUT_S", 20) * 1000000000ull;
  return s;
}

}  // namespace

const Settings& settings() {
  static const Settings s = read();
  return s;
}

}  // namespace standin
