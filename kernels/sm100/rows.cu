// SPDX-License-Identifier: Apache-2.0
// Rows of bf16 into the lines that mode bf16's GEMMs read, one block of threads a row; one thread eight columns.
#include "../common/lines.cuh"
#include "../common/rows.cuh"
#include "params.h"

namespace nvfp4 {
namespace {

// Eight columns in the order of place_in_unit(); x may start at any element.
__device__ uint4 load_unit(const __nv_bfloat16* at) {
  uint32_t bits[8];
  if (reinterpret_cast<uintptr_t>(at) % 16 == 0) {
    const uint4 v = *reinterpret_cast<const uint4*>(at);
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) bits[i] = words[i / 2] >> (i % 2 * 16) & 0xFFFF;
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) bits[i] = __bfloat16_as_ushort(at[i]);
  }
  return make_uint4(bits[0] | bits[4] << 16, bits[1] | bits[5] << 16, bits[2] | bits[6] << 16, bits[3] | bits[7] << 16);
}

}  // namespace
}  // namespace nvfp4

extern "C" __global__ void __launch_bounds__(BLOCK_THREADS)
    arrange_sm100(const __grid_constant__ ArrangeSm100Params p) {
  using namespace nvfp4;
  for_each_row_of_block(p.source, [&](int32_t r) {
    const Row row = row_at(p.source, r);
    const auto* const x = static_cast<const __nv_bfloat16*>(p.x) + row.source * p.x_row_stride;
    const int padded = (p.num_cols + kBf16Cols - 1) / kBf16Cols * kBf16Cols;
    for (int col = threadIdx.x * 8; col < padded; col += BLOCK_THREADS * 8) {
      const bool valid = row.source >= 0 && col < p.num_cols;
      const uint4 unit = valid ? load_unit(x + col) : make_uint4(0, 0, 0, 0);
      *reinterpret_cast<uint4*>(static_cast<uint8_t*>(p.out) + row_bf16(r, col, p.num_rows)) = unit;
    }
  });
}
