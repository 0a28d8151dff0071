// SPDX-License-Identifier: Apache-2.0
// Rows of bf16 to e4m3, one block of threads a row, with a scale from the row's largest finite magnitude: the law of
// rust/format/row.rs. e4m3 by the conversion of sm_89 and later.
#include "../quantize/quantize_row.cuh"
#include "layout.cuh"
#include "params.h"

namespace nvfp4 {
namespace {

__device__ float fp8_row_scale(float amax) {
  return amax == 0.0f ? 1.0f : fmaxf(__fdiv_rn(amax, kE4m3Max), kMinGlobalScale);
}

// Two values, the first in the low byte; ties to even, saturating; NaN is 0x7F.
__device__ uint32_t e4m3_pair(float low, float high) {
  uint16_t both;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(both) : "f"(high), "f"(low));
  return both;
}

__device__ void quantize_row_fp8(const QuantizeFp8Params& p, int32_t row, const Row& source, float (&scratch)[32]) {
  const int num_blocks = p.num_cols / kBlockSize;
  const int padded_blocks = (num_blocks + kSlabSteps - 1) / kSlabSteps * kSlabSteps;
  const LoadRow load(p.input.x, p.input.x_row_stride, source.source);
  const float scale = fp8_row_scale(row_amax(num_blocks, load, scratch)), encode = __fdiv_rn(1.0f, scale);
  if (threadIdx.x == 0) p.row_scale[row] = scale;
  const int64_t token = token_of(p.input, row, source);
  auto* const out = reinterpret_cast<uint32_t*>(p.out + row * p.out_row_stride);
  for (int first = 0; first < padded_blocks; first += blockDim.x) {
    const int b = first + threadIdx.x;
    uint32_t words[4] = {};
    if (b < num_blocks) {
      float values[kBlockSize];
      load(b, values);
      Block seen = {};
      seen.nonfinite = count_nonfinite(values, block_amax(values));
      if (source.counts) report(p.input.status, seen, token);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        words[i] = e4m3_pair(values[4 * i] * encode, values[4 * i + 1] * encode) |
                   e4m3_pair(values[4 * i + 2] * encode, values[4 * i + 3] * encode) << 16;
      }
    }
    __syncthreads();  // out may be x: what this round writes has been read, and lies before what the next ones read
    if (b >= padded_blocks) continue;
#pragma unroll
    for (int i = 0; i < 4; ++i) out[fp8_row_word(b, i)] = words[i];
  }
}

}  // namespace
}  // namespace nvfp4

extern "C" __global__ void __launch_bounds__(BLOCK_THREADS)
    quantize_rows_fp8(const __grid_constant__ QuantizeFp8Params p) {
  __shared__ float scratch[32];
  nvfp4::for_each_row_of_block(p.input.source, [&](int32_t r) {
    const nvfp4::Row row = nvfp4::row_at(p.input.source, r);
    if (row.visit) nvfp4::quantize_row_fp8(p, r, row, scratch);
  });
}
