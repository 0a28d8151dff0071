// SPDX-License-Identifier: Apache-2.0
// How far weights move when they are rounded to e4m3, before they are: the sums of rust/format/rounding.rs.
#include "../prepare/checkpoint.cuh"
#include "params.h"
#include "rounding.cuh"

namespace nvfp4 {
namespace {

// Sums of a block, in sixteenths of the power of two of its scale.
struct BlockError {
  uint32_t squares = 0, errors = 0;

  __device__ void add(uint32_t product, uint32_t rounded) {
    const int difference = static_cast<int>(product) - static_cast<int>(rounded);
    squares += product * product;
    errors += difference * difference;
  }
};

__device__ BlockError block_error(uint2 codes, uint32_t e4m3, int floor) {
  const int below = floor - e4m3_exponent(e4m3);  // binades
  const uint32_t m = e4m3_mantissa(e4m3), table = below > 0 ? codes_at_floor(e4m3, floor) : 0;
  BlockError sums;
#pragma unroll
  for (int i = 0; i < kBlockSize; ++i) {
    const uint32_t code = (i < 8 ? codes.x : codes.y) >> 4 * (i % 8) & 7;
    const uint32_t product = halves_of_code(code) * (8 + m);
    sums.add(product, below > 0 ? halves_of_code(table >> 4 * code & 7) << (below + 3) : rounded_product(code, m));
  }
  return sums;
}

// Index of a block of a matrix among those of its expert, whose matrices may take turns by rows.
__device__ int64_t block_of_expert(const RoundingParams& p, int matrix, int64_t block) {
  if (!p.row_blocks) return matrix * p.matrix_blocks + block;
  return (2 * (block / p.row_blocks) + matrix) * p.row_blocks + block % p.row_blocks;
}

// Adds the sums of a warp's blocks, those of one binade together; -1 is a lane without one.
__device__ void add_to(RoundingSums& matrix, int binade, BlockError sums) {
  const uint32_t peers = __match_any_sync(~0u, binade);
  const uint32_t squares = __reduce_add_sync(peers, sums.squares), errors = __reduce_add_sync(peers, sums.errors);
  if (binade < 0 || static_cast<int>(threadIdx.x % 32) != __ffs(peers) - 1) return;
  atomicAdd(reinterpret_cast<unsigned long long*>(&matrix.squares[binade]), static_cast<unsigned long long>(squares));
  if (errors != 0) {
    atomicAdd(reinterpret_cast<unsigned long long*>(&matrix.errors[binade]), static_cast<unsigned long long>(errors));
  }
}

__device__ uint64_t worst_key(BlockError sums, int64_t block) {
  if (sums.errors == 0) return 0;
  const float share = __fdiv_rn(static_cast<float>(sums.errors), static_cast<float>(sums.squares));
  return static_cast<uint64_t>(__float_as_uint(share) >> 3) << 36 | ((uint64_t{1} << 36) - 1 - block);
}

}  // namespace
}  // namespace nvfp4

// Grid (blocks of a matrix, experts, matrices of an expert).
extern "C" __global__ void __launch_bounds__(BLOCK_THREADS) measure_rounding(const __grid_constant__ RoundingParams p) {
  using namespace nvfp4;
  __shared__ RoundingSums shared;
  auto* const words = reinterpret_cast<unsigned long long*>(&shared);
  constexpr int kWords = sizeof(RoundingSums) / 8;
  if (threadIdx.x < kWords) words[threadIdx.x] = 0;
  __syncthreads();
  const int64_t expert = int64_t{blockIdx.y} * gridDim.z, own = expert + blockIdx.z;
  const uint32_t largest = p.matrices[own].largest;
  uint64_t worst = 0;
  for (int64_t first = int64_t{blockIdx.x} * blockDim.x; first < p.matrix_blocks && largest != 0;
       first += int64_t{gridDim.x} * blockDim.x) {
    const int64_t block = first + threadIdx.x;
    const int64_t at = expert * p.matrix_blocks + block_of_expert(p, blockIdx.z, block);
    const uint32_t scale = block < p.matrix_blocks ? p.block_scale[at] : 0;
    BlockError sums;
    if (scale != 0) {
      sums = block_error(load_8_bytes(p.codes + 8 * at), scale, rounded_floor(largest));
      worst = max(worst, worst_key(sums, block));
    }
    add_to(shared, scale == 0 ? -1 : e4m3_exponent(scale) + 9, sums);
  }
  atomicMax(reinterpret_cast<unsigned long long*>(&shared.worst_block), static_cast<unsigned long long>(worst));
  __syncthreads();
  auto* const out = reinterpret_cast<unsigned long long*>(&p.sums[own]);
  if (threadIdx.x < kWords - 1 && words[threadIdx.x] != 0) atomicAdd(&out[threadIdx.x], words[threadIdx.x]);
  if (threadIdx.x == kWords - 1) atomicMax(&out[kWords - 1], words[kWords - 1]);
}
