// SPDX-License-Identifier: Apache-2.0
// The stand-in's reading of operands and its arithmetic, on the host: one CTA, whose shared memory is an array. Include
// after CuTe, which brings CUDA's vector types.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "../device/standin.h"

#ifndef __noinline__
#define __noinline__
#endif

inline float __uint_as_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 4; ++i) c += static_cast<int8_t>(a >> (8 * i)) * static_cast<int8_t>(b >> (8 * i));
  return c;
}
inline void atomicOr(uint32_t* at, uint32_t bits) { *at |= bits; }
inline void atomicAnd(uint32_t* at, uint32_t bits) { *at &= bits; }

namespace standin {

struct Mistake : std::runtime_error {
  uint32_t error;
  uint64_t a, b, c;
  Mistake(uint32_t e, uint64_t x, uint64_t y, uint64_t z)
      : std::runtime_error("error " + std::to_string(e)), error(e), a(x), b(y), c(z) {}
};

inline std::vector<uint8_t> shared_memory(1 << 18);
inline std::vector<uint32_t> tensor_memory(kNumColumns* kNumLanes);
inline Cta host_cta;

struct Running {
  Cta& cta = host_cta;
  uint32_t& cell(uint32_t column, uint32_t lane) const { return tensor_memory[column * kNumLanes + lane]; }
  uint32_t& word(uint32_t column, uint32_t lane) const { return cell(column, lane); }
};

inline void fail(const Running&, uint32_t error, uint64_t a = 0, uint64_t b = 0, uint64_t c = 0) {
  throw Mistake(error, a, b, c);
}
inline bool poisons() { return true; }
inline uint32_t load_shared(uint32_t address) {
  uint32_t word;
  memcpy(&word, &shared_memory[address], sizeof word);
  return word;
}

// As a CTA begins, with all of tensor memory.
inline void begin() {
  memset(&host_cta, 0, sizeof host_cta);
  host_cta.shared_limit = static_cast<uint32_t>(shared_memory.size());
  for (auto& owner : host_cta.owner) owner = 1;
  for (size_t i = 0; i < shared_memory.size(); i += 4) memcpy(&shared_memory[i], &kStartPoison, 4);
  tensor_memory.assign(tensor_memory.size(), kPoisonWord);
}

// What is compared, and what differs.
struct Tally {
  long compared = 0, wrong = 0;
  template <class... T>
  void expect(bool equal, const char* what, T... values) {
    ++compared;
    if (equal || ++wrong > 10) return;
    printf("  ");
    if constexpr (sizeof...(values) == 0)
      printf("%s", what);
    else
      printf(what, values...);
    printf("\n");
  }
};

}  // namespace standin

#include "../device/execute.cuh"
