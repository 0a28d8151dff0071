// SPDX-License-Identifier: Apache-2.0
// Mode bf16: eight warps bring weights from a stage to tensor memory as bf16, exactly, in pieces of 128 rows x 64
// columns. Four do one piece and four the next: three instructions a code are more than four warps have time for while
// memory brings the next codes (count). A thread has a row.
#pragma once
#include "load.cuh"

namespace nvfp4::sm100 {

// Eight codes to four words.
__device__ inline void dequantize(uint32_t codes, uint32_t scale, uint32_t* words) {
#pragma unroll
  for (int i = 0; i < 4; ++i) words[i] = mul_bf16x2(spread_codes(codes, i), scale);
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
          for (int half = 0; half < F::kHalves; ++half) {
            if (pieces_.at % 2 == group()) piece(stage + half * kTileBytes, i);
            pieces_.advance();
          }
        }
        __syncwarp();
        if (threadIdx.x % 32 == 0) arrive(control().empty[ring_.at]);
        ring_.advance();
      }
    });
  }

 private:
  __device__ Control& control() const { return cta_.control(); }
  __device__ static uint32_t group() { return (threadIdx.x / 32 - kDequantise) / 4; }

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
      const uint32_t low = spread_scale(scales >> (16 * unit) & 0xFF),
                     high = spread_scale(scales >> (16 * unit + 8) & 0xFF);
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
  }

  const Cta<F>& cta_;
  Ring ring_, pieces_;
};

}  // namespace nvfp4::sm100
