// SPDX-License-Identifier: Apache-2.0
// The stand-in's copies and multiplications of kernels/sm100's operands, against float64; and its refusals, by name.
#pragma once
#include "../host/gpu.h"
#include "on_host.h"

namespace numbers {
using namespace standin;
namespace ours = nvfp4::sm100;

constexpr uint32_t kA = 8192, kB = kA + 16384, kScalesA = 131072, kScalesB = 139264;  // in shared memory
constexpr uint32_t kSums = 32, kScaleColumnsA = 400, kScaleColumnsB = 416;
constexpr Running running;

inline Op copy_of(uint32_t to, uint32_t from) { return {kCopy, 0, 0, to, 0, 0, 0, 0, ours::scale_descriptor(from), 0}; }

// 128 x n x 256 of e2m1, by four steps. The largest error as a part of the sum of magnitudes.
inline double error_of_nvfp4(uint32_t n) {
  Random random(n);
  begin();
  const auto code = [&](uint32_t base, uint32_t row, uint32_t col) -> uint8_t& {
    return shared_memory[base + ours::tile_code(row, col)];
  };
  const uint32_t tiles = n > 128 ? 2 : 1;
  const auto scale = [&](uint32_t base, uint32_t of_tiles, uint32_t row, uint32_t block) -> uint8_t& {
    return shared_memory[base + (block / 4 * of_tiles + row / 128) * 512 + sf_offset(row % 128, block % 4, 4)];
  };
  for (uint32_t col = 0; col < 256; col += 2) {
    for (uint32_t row = 0; row < 128; ++row) code(kA, row, col) = random();
    for (uint32_t row = 0; row < n; ++row) code(kB, row, col) = random();
  }
  for (uint32_t block = 0; block < 16; ++block) {
    for (uint32_t row = 0; row < 128; ++row) scale(kScalesA, 1, row, block) = random() % 0x7F;
    for (uint32_t row = 0; row < 128 * tiles; ++row) scale(kScalesB, tiles, row, block) = random() % 0x7F;
  }
  for (uint32_t i = 0; i < 4; ++i) {
    execute_copy(running, copy_of(kScaleColumnsA + 4 * i, kScalesA + 512 * i));
    for (uint32_t j = 0; j < tiles; ++j)
      execute_copy(running, copy_of(kScaleColumnsB + 4 * (i * tiles + j), kScalesB + 512 * (i * tiles + j)));
  }
  for (uint32_t i = 0; i < 4; ++i)
    execute_mma(running, {kMma, 0, 0, kSums, ours::nvfp4_instruction(n), kScaleColumnsA + 4 * i,
                          kScaleColumnsB + 4 * i * tiles, i > 0 ? kAccumulate : 0,
                          ours::operand_descriptor(kA + 32 * i), ours::operand_descriptor(kB + 32 * i)});
  double worst = 0;
  for (uint32_t m = 0; m < 128; ++m)
    for (uint32_t row = 0; row < n; ++row) {
      double sum = 0, magnitude = 0;
      for (uint32_t k = 0; k < 256; ++k) {
        const double product =
            e2m1_value(code(kA, m, k) >> (k % 2 * 4) & 15) * e4m3_value(scale(kScalesA, 1, m, k / 16)) *
            e2m1_value(code(kB, row, k) >> (k % 2 * 4) & 15) * e4m3_value(scale(kScalesB, tiles, row, k / 16));
        sum += product, magnitude += std::fabs(product);
      }
      worst = std::max(worst, std::fabs(__uint_as_float(running.cell(kSums + row, m)) - sum) / magnitude);
    }
  return worst;
}

// 128 x n x 16 of bf16 or f16, or x 32 of 8 bits; A in shared or in tensor memory.
inline double error_of_floats(Kind kind, uint32_t type, uint32_t n, bool a_in_tmem) {
  Random random(n + type);
  begin();
  const uint32_t depth = kind == kF16 ? 16 : 32, bytes = 32 / depth;
  const auto value = [&](uint32_t bits) {
    return kind == kF16 ? (type ? bf16(bits) : f16(bits)) : type ? e5m2(bits) : e4m3(bits);
  };
  const auto at = [&](uint32_t base, uint32_t row, uint32_t k) -> uint8_t* {
    return &shared_memory[base + nvfp4::swizzled(row, k * bytes)];
  };
  const auto fill = [&](uint32_t base, uint32_t rows) {
    for (uint32_t row = 0; row < rows; ++row)
      for (uint32_t k = 0; k < depth; ++k) {
        // Finite, of moderate exponents, signs and mantissas at random.
        uint32_t bits = kind == kF16 ? (type ? 0x3F80 + random() % 0x80 : 0x3800 + random() % 0x0C00) : random() % 0x60;
        bits |= random() % 2 << (8 * bytes - 1);
        memcpy(at(base, row, k), &bits, bytes);
      }
  };
  fill(kA, 128), fill(kB, n);
  uint64_t a = ours::operand_descriptor(kA);
  if (a_in_tmem) {
    a = 256;
    for (uint32_t row = 0; row < 128; ++row)
      for (uint32_t w = 0; w < 8; ++w) memcpy(&running.cell(256 + w, row), at(kA, row, w * 4 / bytes), 4);
    set_bits(host_cta.written, {256, 264});
  }
  const uint32_t instruction = (ours::bf16_instruction(n) & ~(7u << 7 | 7u << 10)) | type << 7 | type << 10;
  execute_mma(running, {kMma, 0, 0, kSums, instruction, 0, 0, kind << kKindShift | (a_in_tmem ? kAInTmem : 0), a,
                        ours::operand_descriptor(kB)});
  double worst = 0;
  for (uint32_t m = 0; m < 128; ++m)
    for (uint32_t row = 0; row < n; ++row) {
      double sum = 0, magnitude = 0;
      for (uint32_t k = 0; k < depth; ++k) {
        uint32_t x = 0, y = 0;
        memcpy(&x, at(kA, m, k), bytes), memcpy(&y, at(kB, row, k), bytes);
        const double product = double(value(x)) * value(y);
        sum += product, magnitude += std::fabs(product);
      }
      worst = std::max(worst, std::fabs(__uint_as_float(running.cell(kSums + row, m)) - sum) / magnitude);
    }
  return worst;
}

// Does a scale that is no number make NaN of its row's sums, and of no other's?
inline bool nan_stays_in_its_row() {
  error_of_nvfp4(8);
  running.cell(kScaleColumnsA + 1, 32 + 5) = 0x30307F30;  // row 37, its third block
  execute_mma(running, {kMma, 0, 0, kSums, ours::nvfp4_instruction(8), kScaleColumnsA, kScaleColumnsB, 0,
                        ours::operand_descriptor(kA), ours::operand_descriptor(kB)});
  bool right = true;
  for (uint32_t m = 0; m < 128; ++m)
    for (uint32_t n = 0; n < 8; ++n)
      right = right && std::isnan(__uint_as_float(running.cell(kSums + n, m))) == (m == 37);
  return right;
}

// Which mistake is found in an operation on right operands after `change` changed it.
template <class F>
uint32_t refusal(F change) {
  error_of_nvfp4(8);
  Op op{kMma,
        0,
        0,
        kSums,
        ours::nvfp4_instruction(8),
        kScaleColumnsA,
        kScaleColumnsB,
        0,
        ours::operand_descriptor(kA),
        ours::operand_descriptor(kB)};
  try {
    change(op);
    execute_mma(running, op);
  } catch (const Mistake& mistake) {
    return mistake.error;
  }
  return kNone;
}

}  // namespace numbers

inline void check_numbers(standin::Tally& tally) {
  using namespace numbers;
  for (uint32_t n : {8, 64, 192, 256}) {
    const double error = error_of_nvfp4(n);
    tally.expect(error < 1e-6, "nvfp4 of %d rows: error %g", n, error);
  }
  for (uint32_t n : {16, 128}) {
    for (uint32_t type : {0, 1}) {
      for (bool in_tmem : {false, true}) {
        const double half = error_of_floats(kF16, type, n, in_tmem), byte = error_of_floats(kF8, type, n, in_tmem);
        tally.expect(half < 1e-6 && byte < 1e-6, "16 bits of %d rows: error %g, 8 bits %g", n, half, byte);
      }
    }
  }
  tally.expect(nan_stays_in_its_row(), "a scale of NaN");
  tally.expect(refusal([](Op&) {}) == kNone, "right operands are refused");
  tally.expect(refusal([](Op& op) { op.idesc |= 1u << 23; }) == kInstruction, "scales of ue8m0");
  tally.expect(refusal([](Op& op) { op.a ^= 1ull << 46; }) == kDescriptor, "a descriptor of Hopper");
  tally.expect(refusal([](Op& op) { op.b |= 0x3FFF; }) == kSmemRange, "an address past shared memory");
  tally.expect(refusal([](Op& op) { op.d = 508; }) == kTmemAddress, "sums past tensor memory");
  tally.expect(refusal([](Op& op) { op.sfa = 480; }) == kNotWritten, "scales that nobody copied");
  tally.expect(refusal([](Op& op) { op.b = nvfp4::sm100::operand_descriptor(196608); }) == kPoisoned,
               "rows not there yet");
  tally.expect(refusal([](Op&) { running.cell(kScaleColumnsB, 33) ^= 1; }) == kScalesDiffer, "quarters that differ");
}
