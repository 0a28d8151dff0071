// SPDX-License-Identifier: Apache-2.0
// Mode bf16: four warps bring weights from a stage to tensor memory as bf16, exactly, a piece of 128 rows x 64 columns
// at a time. A thread has a row.
#pragma once
#include "load.cuh"

namespace nvfp4::sm100 {

// e2m1 in the fields of bf16 is 2^-126 of its value, and a block scale as f32 bits shifted is 2^-120 of its own. Both
// factors together pass bf16's range, so that weights keep 2^-8 of them, which the sums get back.
constexpr float kScaleFactor = 0x1p120f, kCodeFactor = 0x1p118f, kMissingFactor = 256.0f;

// A block scale, twice, times what codes as bf16 bits lack.
__device__ inline uint32_t scale_pair(uint32_t e4m3) {
  const float scale = __uint_as_float(e4m3 << 20) * kScaleFactor * kCodeFactor;
  return __float_as_uint(scale) | __float_as_uint(scale) >> 16;  // its low half is 0
}

// Eight codes, the first in the lowest nibble, to four words in the order of place_in_unit().
__device__ inline void dequantize(uint32_t codes, uint32_t scale, uint32_t* words) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int magnitude = 6 - 4 * i, sign = 12 - 4 * i;  // by how much nibble i moves up
    const uint32_t moved = magnitude >= 0 ? codes << (magnitude & 31) : codes >> (-magnitude & 31);
    words[i] = mul_bf16x2(masked_or(codes << sign, 0x80008000u, moved & 0x01C001C0u), scale);
  }
}

__device__ inline uint4 load_shared_16(uint32_t address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address));
  return v;
}
__device__ inline uint32_t load_shared_4(uint32_t address) {
  uint32_t v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address));
  return v;
}

template <class F>
class Dequantizer {
 public:
  __device__ explicit Dequantizer(const Cta<F>& cta) : cta_(cta), ring_(cta.shape.stages), pieces_(kPieces) {}

  __device__ void run() {
    const int steps = steps_of(cta_.p.k);
    for_each_tile(cta_, [&](const Tile&) {
      for (int first = 0; first < steps; first += kTileSteps) {
        wait(cta_, control().full, ring_.at, ring_.turn, SM100_BARRIER_FULL);
        const uint32_t stage = cta_.stage(ring_.at);
        for (int i = 0; i < min(kTileSteps, steps - first); ++i) {
#pragma unroll 1
          for (int half = 0; half < F::kHalves; ++half) piece(stage + half * kTileBytes, i);
        }
        __syncwarp();
        if (threadIdx.x % 32 == 0) arrive(control().empty[ring_.at]);
        ring_.advance();
      }
    });
  }

 private:
  __device__ Control& control() const { return cta_.control(); }

  // Step `i` of the tile at `tile`.
  __device__ void piece(uint32_t tile, int i) {
    const int quarter = threadIdx.x / 32 % 4, row = quarter * 32 + threadIdx.x % 32;
    const uint32_t scales = load_shared_4(tile + tile_scale(row, 4 * i));
    wait(cta_, control().piece_empty, pieces_.at, pieces_.turn ^ 1, SM100_BARRIER_PIECE_EMPTY);
    __syncwarp();  // tcgen05.st is for lanes that go together
    fence_after();
    const uint32_t to = cta_.operands() + pieces_.at * kPieceColumns + (static_cast<uint32_t>(quarter * 32) << 16);
#pragma unroll
    for (int unit = 0; unit < 2; ++unit) {
      const uint4 codes = load_shared_16(tile + tile_code(row, i * kStepCols + unit * 32));
      const uint32_t low = scale_pair(scales >> (16 * unit) & 0xFF),
                     high = scale_pair(scales >> (16 * unit + 8) & 0xFF);
      uint32_t words[16];
      dequantize(codes.x, low, words);
      dequantize(codes.y, low, words + 4);
      dequantize(codes.z, high, words + 8);
      dequantize(codes.w, high, words + 12);
      tmem_store(to + unit * 16, words);
    }
    tmem_wait_store();
    fence_before();
    __syncwarp();
    if (threadIdx.x % 32 == 0) arrive(control().piece_full[pieces_.at]);
    pieces_.advance();
  }

  const Cta<F>& cta_;
  Ring ring_, pieces_;
};

}  // namespace nvfp4::sm100
