// Rows of bf16 to NVFP4, one block of threads a row, one thread a block of 16. Saturates and counts.
#include "../common/format.cuh"
#include "../common/rows.cuh"

namespace nvfp4 {
namespace {

__device__ void report(DeviceStatus* status, const Block& block, int64_t token) {
  if (!block.saturated && block.nonfinite == 0) return;
  using ull = unsigned long long;
  if (block.saturated) atomicAdd(reinterpret_cast<ull*>(&status->saturated_blocks), 1ull);
  if (block.nonfinite) atomicAdd(reinterpret_cast<ull*>(&status->nonfinite_values), static_cast<ull>(block.nonfinite));
  const ull calls = *reinterpret_cast<const volatile ull*>(&status->calls);
  atomicMin(reinterpret_cast<ull*>(&status->first_bad), calls << 32 | static_cast<ull>(token));
}

// e2m1 * block_scale, exact in bf16; two values to a word.
__device__ void store_decoded(__nv_bfloat16* out, const Block& block) {
  const float scale = e4m3_decode(block.scale);
  uint32_t words[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const uint32_t pair = static_cast<uint32_t>(block.codes >> (8 * i));
    const __nv_bfloat162 two = __floats2bfloat162_rn(e2m1_decode(pair) * scale, e2m1_decode(pair >> 4) * scale);
    words[i] = *reinterpret_cast<const uint32_t*>(&two);
  }
  reinterpret_cast<uint4*>(out)[0] = make_uint4(words[0], words[1], words[2], words[3]);
  reinterpret_cast<uint4*>(out)[1] = make_uint4(words[4], words[5], words[6], words[7]);
}

__device__ void quantize_row(const QuantizeParams& p, int32_t row, int64_t source, float (&scratch)[32]) {
  const auto* x = static_cast<const __nv_bfloat16*>(p.x) + source * p.x_row_stride;
  const float global_scale =
      p.static_scale != 0.0f ? p.static_scale : dynamic_global_scale(source < 0 ? 0.0f : row_amax(x, p.num_cols, scratch));
  const QuantScale scale = QuantScale::from_global_scale(global_scale);
  if (threadIdx.x == 0 && p.row_scale) p.row_scale[row] = global_scale;
  const int64_t token = (p.row_to_token_slot ? p.row_to_token_slot[row] / p.source.top_k : source) + p.token_offset;
  const int num_blocks = p.num_cols / kBlockSize;
  for (int b = threadIdx.x; b < num_blocks; b += blockDim.x) {
    Block block = {};
    if (source >= 0) {
      float values[kBlockSize];
      load_block(x + b * kBlockSize, values);
      block = quantize_block(values, scale);
      report(p.status, block, token);
    }
    if (p.decoded) store_decoded(static_cast<__nv_bfloat16*>(p.decoded) + int64_t{row} * p.num_cols + b * kBlockSize, block);
    if (p.packed) reinterpret_cast<uint64_t*>(p.packed)[int64_t{row} * num_blocks + b] = block.codes;
    if (p.block_scale) {
      const uint64_t at = p.swizzled ? sf_offset_128x4(row, b, num_blocks) : uint64_t(row) * num_blocks + b;
      p.block_scale[at] = static_cast<uint8_t>(block.scale);
    }
  }
}

}  // namespace
}  // namespace nvfp4

extern "C" __global__ void __launch_bounds__(256) quantize_rows(const __grid_constant__ QuantizeParams p) {
  __shared__ float scratch[32];
  const int32_t rows = nvfp4::num_rows(p.source);
  for (int32_t r = blockIdx.x; r < rows; r += gridDim.x) {
    const nvfp4::Row row = nvfp4::row_at(p.source, r);
    if (row.visit) nvfp4::quantize_row(p, r, row.source, scratch);
  }
}

// Calibration: the largest finite magnitude that these rows hold.
extern "C" __global__ void __launch_bounds__(256) amax_rows(const __grid_constant__ AmaxParams p) {
  __shared__ float scratch[32];
  const int32_t rows = nvfp4::num_rows(p.source);
  for (int32_t r = blockIdx.x; r < rows; r += gridDim.x) {
    const nvfp4::Row row = nvfp4::row_at(p.source, r);
    if (!row.visit || row.source < 0) continue;
    const auto* x = static_cast<const __nv_bfloat16*>(p.x) + row.source * p.x_row_stride;
    const float amax = nvfp4::row_amax(x, p.num_cols, scratch);
    // Non-negative floats order as their bits do, and above the bits of -1 read as signed.
    if (threadIdx.x == 0) atomicMax(reinterpret_cast<int*>(p.amax), __float_as_int(amax));
  }
}
