// SPDX-License-Identifier: Apache-2.0
// Calibration: the largest finite magnitude that rows hold, one block of threads a row.
#include "../common/rows.cuh"

extern "C" __global__ void __launch_bounds__(BLOCK_THREADS) amax_rows(const __grid_constant__ AmaxParams p) {
  __shared__ float scratch[32];
  nvfp4::for_each_row_of_block(p.source, [&](int32_t r) {
    const nvfp4::Row row = nvfp4::row_at(p.source, r);
    if (!row.visit || row.source < 0) return;
    const nvfp4::LoadRow load(p.x, p.x_row_stride, row.source);
    const float amax = nvfp4::row_amax(p.num_cols / nvfp4::kBlockSize, load, scratch);
    // Non-negative floats order as their bits do, and above the bits of -1 read as signed.
    if (threadIdx.x == 0) atomicMax(reinterpret_cast<int*>(p.amax), __float_as_int(amax));
  });
}
