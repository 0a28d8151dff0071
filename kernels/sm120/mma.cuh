// SPDX-License-Identifier: Apache-2.0
// A consumer warp: 16 rows of each of two weight tiles times its token rows, slab by slab.
#pragma once
#include "config.cuh"
#include "ptx.cuh"

namespace nvfp4::sm120 {

// The sums of a warp, as Output::store (../common/epilogue.cuh) takes them, and what it reads of a stage.
template <class C>
class Accumulation {
 public:
  float acc[C::kTiles][C::kWarpRows / 2] = {};

  // Where there is no second weight tile, the first is multiplied twice: memory that nobody wrote is never read.
  __device__ explicit Accumulation(int num_tiles) : tile_stride_(num_tiles > 1 ? C::kSlabs * kTileBytes : 0) {}

  // The slabs of a stage.
  __device__ void add(const SharedStorage<C>& shared, uint32_t stage, int num_slabs) {
#pragma unroll
    for (int slab = 0; slab < C::kSlabs; ++slab) {
      if (slab >= num_slabs) return;
      const uint8_t* const tiles = shared.tiles[stage][0] + slab * kTileBytes;
      if constexpr (C::kIsNvfp4) {
        add_nvfp4(tiles, shared.rows[stage][0], shared.scales[stage][slab], slab);
      } else {
        add_bf16(tiles, shared.rows[stage][slab]);
      }
    }
  }

  __device__ void finish() {
    if constexpr (!C::kIsNvfp4) {
#pragma unroll
      for (auto& of_tile : acc) {
#pragma unroll
        for (float& sum : of_tile) sum *= kMissingFactor;
      }
    }
  }

 private:
  static constexpr int kOctets = C::kWarpRows / 8;  // of token rows

  __device__ static int lane() { return threadIdx.x % 32; }
  __device__ static int warp() { return threadIdx.x % 128 / 32; }
  __device__ static int first_row() { return threadIdx.x / 128 * C::kWarpRows; }  // of this warp's token rows

  // A registers of both tiles.
  __device__ void read_codes(const uint8_t* tiles, uint32_t (&a)[C::kTiles][4]) const {
#pragma unroll
    for (int i = 0; i < C::kTiles; ++i) {
      const uint4 words = *reinterpret_cast<const uint4*>(tiles + i * tile_stride_ + code_offset(threadIdx.x % 128, 0));
      a[i][0] = words.x, a[i][1] = words.y, a[i][2] = words.z, a[i][3] = words.w;
    }
  }

  __device__ void add_nvfp4(const uint8_t* tiles, const uint8_t* rows, const uint32_t* scales, int slab) {
    uint32_t a[C::kTiles][4];
    read_codes(tiles, a);
    const uint32_t sfa = *reinterpret_cast<const uint32_t*>(tiles + scale_tile_of_a(lane()) * tile_stride_ +
                                                            scale_offset(16 * warp() + scale_row_of_a(lane())));
    uint32_t b[kOctets][2];
    read_rows(rows, slab, b);
    uint32_t sfb = 0;
#pragma unroll
    for (int j = 0; j < kOctets; ++j) {
      // Lane c holds the scales of octet j + c.
      if (j % 4 == 0) sfb = scales[first_row() + (8 * (j + lane() % 4) + lane() / 4) % C::kWarpRows];
      with_octet(j % 4, [&](auto octet) {
        ptx::mma_nvf4<0, decltype(octet)::value>(&acc[0][4 * j], a[0], b[j], sfa, sfb);
        ptx::mma_nvf4<1, decltype(octet)::value>(&acc[1][4 * j], a[1], b[j], sfa, sfb);
      });
    }
  }

  template <int kValue>
  struct Constant {
    static constexpr int value = kValue;
  };
  template <class Body>
  __device__ static void with_octet(int octet, Body body) {
    switch (octet) {
      case 0: return body(Constant<0>{});
      case 1: return body(Constant<1>{});
      case 2: return body(Constant<2>{});
      default: return body(Constant<3>{});
    }
  }

  // B registers of a slab: lanes 8 m and on name the rows of matrix m, which are both chunks of an octet, then of the
  // next.
  __device__ static void read_rows(const uint8_t* rows, int slab, uint32_t (&b)[kOctets][2]) {
    const int chunk = 2 * slab + lane() / 8 % 2;
    if constexpr (kOctets == 1) {
      ptx::load_matrices(b[0], rows + chunk_offset<true, C::kLineBytes>(first_row() + lane() % 8, chunk));
    } else {
#pragma unroll
      for (int j = 0; j < kOctets; j += 2) {
        const int row = first_row() + 8 * (j + lane() / 16) + lane() % 8;
        ptx::load_matrices(b[j], b[j + 1], rows + chunk_offset<true, C::kLineBytes>(row, chunk));
      }
    }
  }

  __device__ void add_bf16(const uint8_t* tiles, const uint8_t* rows) {
    uint32_t codes[C::kTiles][4];
    read_codes(tiles, codes);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t a[C::kTiles][2][4];  // of two steps
#pragma unroll
      for (int i = 0; i < C::kTiles; ++i) {
        dequantize(tiles + i * tile_stride_, half, {codes[i][2 * half], codes[i][2 * half + 1]}, a[i]);
      }
#pragma unroll
      for (int j = 0; j < kOctets; ++j) {
        const int row = first_row() + 8 * j + lane() / 4;
        const uint4 b =
            *reinterpret_cast<const uint4*>(rows + chunk_offset<false, C::kLineBytes>(row, 4 * half + lane() % 4));
#pragma unroll
        for (int i = 0; i < C::kTiles; ++i) {
          ptx::mma_bf16(&acc[i][4 * j], a[i][0], b.x, b.y);
          ptx::mma_bf16(&acc[i][4 * j], a[i][1], b.z, b.w);
        }
      }
    }
  }

  // A registers of two steps, of columns 32 half + 8 c and on: `codes` are of rows g and g + 8.
  __device__ static void dequantize(const uint8_t* tile, int half, const uint32_t (&codes)[2], uint32_t (&a)[2][4]) {
#pragma unroll
    for (int high = 0; high < 2; ++high) {  // of the rows
      const int row = 16 * warp() + lane() / 4 + 8 * high;
      const uint32_t scale = scale_pair(tile[scale_offset(row) + 2 * half + lane() % 4 / 2]);
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i / 2][i % 2 * 2 + high] = ptx::mul_bf16x2(bf16_pair(codes[high], i), scale);
    }
  }

  // scale * 2^118, twice.
  __device__ static uint32_t scale_pair(uint32_t e4m3) {
    return ptx::mul_bf16x2(ptx::mul_bf16x2(small_scale_pair(e4m3), kTwoTo119), kTwoTo119);
  }

  const int tile_stride_;  // from the first weight tile of a stage to the second
};

}  // namespace nvfp4::sm120
