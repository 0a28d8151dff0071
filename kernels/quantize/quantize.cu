// SPDX-License-Identifier: Apache-2.0
// Rows of bf16 to NVFP4, one block of threads a row: a kernel for each form of the output.
#include "quantize_row.cuh"

namespace nvfp4 {

template <Form kForm>
__device__ void quantize_rows_to(const QuantizeParams& p) {
  __shared__ float scratch[32];
  const float static_scale = static_scale_of(p);
  for_each_row_of_block(p.input.source, [&](int32_t r) {
    const Row row = row_at(p.input.source, r);
    if (!row.visit) return;
    const LoadRow load(p.input.x, p.input.x_row_stride, row.source);
    quantize_row<kForm>(p, static_scale, r, row, load, scratch);
  });
  if (kForm != Form::kDecoded && p.next_scale && blockIdx.x + threadIdx.x == 0)
    *p.next_scale_copy = __ldcg(p.next_scale);
}

}  // namespace nvfp4

#define NVFP4_QUANTIZE_ROWS(name, form)                                                                        \
  extern "C" __global__ void __launch_bounds__(BLOCK_THREADS) name(const __grid_constant__ QuantizeParams p) { \
    nvfp4::quantize_rows_to<nvfp4::Form::form>(p);                                                             \
  }

NVFP4_QUANTIZE_ROWS(quantize_rows_decoded, kDecoded)
NVFP4_QUANTIZE_ROWS(quantize_rows, kSwizzled)
NVFP4_QUANTIZE_ROWS(quantize_rows_in_lines, kLines)
