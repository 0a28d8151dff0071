// SPDX-License-Identifier: Apache-2.0
// The thread that issues the tensor core's work, in order: copies of scales, multiplications, commits. Every wait is
// followed by a fence, and scales have columns of their own for each stage.
#pragma once
#include "load.cuh"

namespace nvfp4::sm100 {

template <class F>
class Multiplier {
 public:
  __device__ explicit Multiplier(const Cta<F>& cta)
      : cta_(cta), p_(cta.p), ring_(cta.shape.stages), sums_(cta.shape.sums), pieces_(kPieces) {}

  __device__ void run() {
    const int steps = steps_of(p_.k);
    for_each_tile(cta_, [&](const Tile& tile) {
      wait(cta_, control().sums_empty, sums_.at, sums_.turn ^ 1, SM100_BARRIER_SUMS_EMPTY);
      fence_after();
      const int n = columns_of(F::kBf16, tile.num_rows);
      for (int first = 0; first < steps; first += kTileSteps) {
        wait(cta_, control().full, ring_.at, ring_.turn, SM100_BARRIER_FULL);
        fence_after();
        const int in_slab = min(kTileSteps, steps - first);
        if constexpr (F::kBf16) {
          multiply_bf16(n, in_slab, first == 0);
        } else {
          multiply_nvfp4(n, in_slab, first == 0);
        }
        commit(control().empty[ring_.at]);
        ring_.advance();
      }
      commit(control().sums_full[sums_.at]);
      sums_.advance();
    });
  }

 private:
  __device__ Control& control() const { return cta_.control(); }

  // A stage of e2m1: its scales to tensor memory, then its products.
  __device__ void multiply_nvfp4(int n, int steps, bool is_first) const {
    const Shape& shape = cta_.shape;
    const uint32_t stage = cta_.stage(ring_.at), rows = stage + shape.rows_at, row_scales = stage + shape.row_scales_at;
    const uint32_t scales = cta_.operands() + ring_.at * shape.stage_columns;
    const uint32_t of_rows = scales + F::kHalves * kTileSteps * kScaleColumns;
    const int row_columns = shape.scale_tiles * kScaleColumns;  // of a step
    for (int i = 0; i < steps; ++i) {
#pragma unroll
      for (int half = 0; half < F::kHalves; ++half) {
        copy_scales(scales + (half * kTileSteps + i) * kScaleColumns,
                    scale_descriptor(stage + half * kTileBytes + kTileCodeBytes + i * kStepScaleBytes));
      }
      for (int j = 0; 128 * j < n; ++j) {
        copy_scales(of_rows + i * row_columns + j * kScaleColumns,
                    scale_descriptor(row_scales + (i * shape.scale_tiles + j) * kStepScaleBytes));
      }
    }
    for (int i = 0; i < steps; ++i) {
#pragma unroll
      for (int half = 0; half < F::kHalves; ++half) {
        mma_nvfp4(cta_.sums(sums_.at, half), operand_descriptor(stage + half * kTileBytes + i * kStepCols / 2),
                  operand_descriptor(rows + i * kStepCols / 2), nvfp4_instruction(n),
                  scales + (half * kTileSteps + i) * kScaleColumns, of_rows + i * row_columns, !is_first || i > 0);
      }
    }
  }

  // A stage of bf16: its weights come in pieces of 64 columns from the warps that dequantise.
  __device__ void multiply_bf16(int n, int steps, bool is_first) {
    const uint32_t rows = cta_.stage(ring_.at) + cta_.shape.rows_at;
    for (int i = 0; i < steps; ++i) {
      const uint32_t line = rows + i * p_.list.tile_rows * kLineBytes;
#pragma unroll
      for (int half = 0; half < F::kHalves; ++half) {
        wait(cta_, control().piece_full, pieces_.at, pieces_.turn, SM100_BARRIER_PIECE_FULL);
        fence_after();
        const uint32_t piece = cta_.operands() + pieces_.at * kPieceColumns;
#pragma unroll
        for (int k = 0; k < kStepCols; k += 16) {
          mma_bf16(cta_.sums(sums_.at, half), piece + k / 2, operand_descriptor(line + k * 2), bf16_instruction(n),
                   !is_first || i > 0 || k > 0);
        }
        commit(control().piece_empty[pieces_.at]);
        pieces_.advance();
      }
    }
  }

  const Cta<F>& cta_;
  const GemmSm100Params& p_;
  Ring ring_, sums_, pieces_;
};

}  // namespace nvfp4::sm100
