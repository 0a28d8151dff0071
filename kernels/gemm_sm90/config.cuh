// What a GEMM kernel is made of: tile, warps, shared memory. One instance a row-tile size; rust/cuda/tiles.rs chooses.
#pragma once
#include <cuda_bf16.h>

#include "../params.h"
#include "layout.cuh"

namespace nvfp4 {

enum class Epilogue { kGemm1, kGemm2, kLinear };

// A CTA multiplies kM weight tiles of 64 rows with kN token rows. kM x kK warpgroups compute: those along K take slabs in
// turn and are summed at the end, so that few tokens, which need few CTAs, still have enough warps to dequantise.
template <int kN_, int kM_, int kK_, int kSlabs_, int kStages_>
struct Config {
  static constexpr int kN = kN_;          // token rows of a tile
  static constexpr int kM = kM_;          // warpgroups along the weight rows
  static constexpr int kK = kK_;          // warpgroups along the reduction
  static constexpr int kSlabs = kSlabs_;  // slabs of 64 columns in a pipeline stage
  static constexpr int kGroupSlabs = kSlabs / kK;  // of these, a warpgroup's; in one run
  static constexpr int kStages = kStages_;
  static constexpr int kConsumers = kM * kK * 128;
  static constexpr int kProducers = 128;
  static constexpr int kThreads = kProducers + kConsumers;
  // k16 steps whose A fragments are in registers at once.
  static constexpr int kStepsAtOnce = kN >= 128 ? 2 : kSlabSteps;
  // Registers of a thread where the even share is too few for the accumulators; 0 = the even share, which is 96 for 640
  // threads. setmaxnreg deals out what the CTA was launched with: 512 * 104 + 128 * 64 = 640 * 96.
  static constexpr int kConsumerRegisters = kN >= 128 ? 104 : 0;
  static constexpr int kProducerRegisters = 64;
  static_assert(kSlabs % kK == 0, "every warpgroup along K gets as many slabs");
};

// Stages fill shared memory. They are large, because every wait and every arrival costs as many instructions as half a
// slab of few rows, and instructions are what few rows are short of.
using ConfigN8 = Config<8, 1, 4, 16, 4>;
using ConfigN16 = Config<16, 1, 4, 8, 6>;
using ConfigN32 = Config<32, 2, 2, 4, 6>;
using ConfigN64 = Config<64, 4, 1, 2, 6>;
using ConfigN128 = Config<128, 4, 1, 1, 8>;

template <class C>
struct SharedStorage {
  alignas(1024) uint8_t rows[C::kStages][C::kSlabs][C::kN * 128];  // rows_descriptor's layout
  alignas(128) uint8_t tiles[C::kStages][C::kM][C::kSlabs * kTileBytes];
  float partial[C::kK - 1 + (C::kK == 1)][C::kM][C::kK == 1 ? 1 : C::kN / 2][128];  // sums of warpgroups along K
  uint64_t full[C::kStages];
  uint64_t empty[C::kStages];
};

template <class C>
constexpr bool fits_launch() {
  return C::kThreads == GEMM_SM90_THREADS && sizeof(SharedStorage<C>) <= GEMM_SM90_SHARED_BYTES;
}
static_assert(fits_launch<ConfigN8>() && fits_launch<ConfigN16>() && fits_launch<ConfigN32>() && fits_launch<ConfigN64>() &&
                  fits_launch<ConfigN128>(),
              "every instance has the launch shape of params.h");

}  // namespace nvfp4
