// SPDX-License-Identifier: Apache-2.0
// Rows of bf16 to NVFP4, one block of threads a row.
#include "quantize_row.cuh"

extern "C" __global__ void __launch_bounds__(BLOCK_THREADS) quantize_rows(const __grid_constant__ QuantizeParams p) {
  __shared__ float scratch[32];
  const float static_scale = nvfp4::static_scale_of(p);
  nvfp4::for_each_row_of_block(p.input.source, [&](int32_t r) {
    const nvfp4::Row row = nvfp4::row_at(p.input.source, r);
    if (!row.visit) return;
    const nvfp4::LoadRow load(p.input.x, p.input.x_row_stride, row.source);
    nvfp4::quantize_row(p, static_scale, r, row, load, scratch);
  });
  if (p.next_scale && blockIdx.x + threadIdx.x == 0) *p.next_scale_copy = __ldcg(p.next_scale);
}
