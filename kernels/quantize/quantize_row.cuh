// SPDX-License-Identifier: Apache-2.0
// One row to NVFP4 by a block of threads, one thread a block of 16. Saturates and counts.
#pragma once
#include "../common/format.cuh"
#include "../common/lines.cuh"
#include "../common/rows.cuh"
#include "../common/status.cuh"

namespace nvfp4 {

__device__ inline void report(DeviceStatus* status, const Block& block, int64_t token) {
  report_block(status, block.saturated, block.nonfinite, token);
}

// e2m1 * block_scale, exact in bf16; two values to a word.
__device__ inline void store_decoded(__nv_bfloat16* out, const Block& block) {
  const float scale = e4m3_decode(block.scale);
  uint32_t words[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const __nv_bfloat162 two = __floats2bfloat162_rn(block.values[2 * i] * scale, block.values[2 * i + 1] * scale);
    words[i] = *reinterpret_cast<const uint32_t*>(&two);
  }
  reinterpret_cast<uint4*>(out)[0] = make_uint4(words[0], words[1], words[2], words[3]);
  reinterpret_cast<uint4*>(out)[1] = make_uint4(words[4], words[5], words[6], words[7]);
}

// Block b of a row in Blackwell's layout.
__device__ inline void store_swizzled(const QuantizeParams& p, int32_t row, int b, int num_blocks, const Block& block) {
  reinterpret_cast<uint64_t*>(p.packed)[int64_t{row} * num_blocks + b] = block.codes();
  p.block_scale[sf_offset_128x4(row, b, num_blocks)] = static_cast<uint8_t>(block.scale);
}

// The scale of block b of a row in lines, for tiles that start anywhere.
__device__ inline void store_scale_in_lines(const QuantizeParams& p, int32_t row, int b, uint32_t scale) {
#pragma unroll
  for (int quarter = 0; quarter < 4 && row >= 32 * quarter; ++quarter)
    p.block_scale[row_block_scale(row, b, quarter, p.line_rows)] = static_cast<uint8_t>(scale);
}

// How the rows of an output lie; each form has kernels of its own, so that none pays for another's.
enum class Form { kDecoded, kSwizzled, kLines };

// Block b of a row.
template <Form kForm>
__device__ void store_block(const QuantizeParams& p, int32_t row, int b, int num_blocks, const Block& block) {
  if constexpr (kForm == Form::kDecoded) {
    store_decoded(static_cast<__nv_bfloat16*>(p.decoded) + int64_t{row} * p.num_cols + b * kBlockSize, block);
  } else if constexpr (kForm == Form::kSwizzled) {
    store_swizzled(p, row, b, num_blocks, block);
  } else {
    *reinterpret_cast<uint64_t*>(p.packed + row_code(row, b * kBlockSize, p.line_rows)) = block.codes();
    store_scale_in_lines(p, row, b, block.scale);
  }
}

// The scale of a padding block: a tensor core reads the padding columns of a tile too, and a NaN there would spoil the
// row.
template <Form kForm>
__device__ void store_padding_scale(const QuantizeParams& p, int32_t row, int b, int num_blocks) {
  if constexpr (kForm == Form::kSwizzled) p.block_scale[sf_offset_128x4(row, b, num_blocks)] = 0;
  if constexpr (kForm == Form::kLines) store_scale_in_lines(p, row, b, 0);
}

// Whose values row `row` holds, as the status names them.
__device__ inline int64_t token_of(const QuantizerInput& input, int32_t row, const Row& source) {
  return input.row_to_token_slot ? input.row_to_token_slot[row] / input.source.top_k : source.source;
}

// The global scale of every row, if there is one. A kernel may read it before it waits for the one before it, so that
// it costs no time: only the host writes it, and waits until it is there. Past L1, which may hold what was set before.
__device__ inline float static_scale_of(const QuantizeParams& p) {
  return p.static_scale ? __ldcg(p.static_scale) : 0.0f;
}

// Row `row` of the outputs: NVFP4 of the blocks that load(b, values) gives, or zeros where `source` has no row.
template <Form kForm, class Load>
__device__ void quantize_row(const QuantizeParams& p, float static_scale, int32_t row, const Row& source, Load load,
                             float (&scratch)[32]) {
  const bool empty = source.source < 0;
  const int num_blocks = p.num_cols / kBlockSize;
  float global_scale = static_scale;
  if (!p.static_scale) global_scale = dynamic_global_scale(empty ? 0.0f : row_amax(num_blocks, load, scratch));
  const QuantScale scale = QuantScale::from_global_scale(global_scale);
  if (threadIdx.x == 0) p.row_scale[row] = global_scale;
  const int64_t token = token_of(p.input, row, source);
  for (int b = threadIdx.x; b < num_blocks; b += blockDim.x) {
    Block block = {};
    if (!empty) {
      float values[kBlockSize];
      load(b, values);
      block = quantize_block(values, scale);
      if (source.counts) report(p.input.status, block, token);
    }
    store_block<kForm>(p, row, b, num_blocks, block);
  }
  if constexpr (kForm != Form::kDecoded) {
    for (int b = num_blocks + threadIdx.x; b < (num_blocks + 3) / 4 * 4; b += blockDim.x)
      store_padding_scale<kForm>(p, row, b, num_blocks);
  }
}

}  // namespace nvfp4
