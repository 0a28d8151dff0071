// SPDX-License-Identifier: Apache-2.0
// What the warp roles share, and the producer: one thread that keeps the ring of stages full by plain bulk copies,
// across tile borders.
#pragma once
#include "../common/overlap.cuh"
#include "../common/wait.cuh"
#include "config.cuh"
#include "ptx.cuh"

namespace nvfp4::sm100 {

// Barriers, after the stages.
struct Control {
  uint64_t full[kMostStages];    // a stage's copies have landed
  uint64_t empty[kMostStages];   // a stage has been read
  uint64_t sums_full[2];         // all products of a tile are in
  uint64_t sums_empty[2];        // four warps have read them
  uint64_t piece_full[kPieces];  // four warps have dequantised
  uint64_t piece_empty[kPieces];
  uint32_t tmem;
};
static_assert(sizeof(Control) <= kControlBytes, "");

// One form of a GEMM: bf16 or e2m1 rows; with a gate or without.
template <bool kBf16_, int kHalves_>
struct Form {
  static constexpr bool kBf16 = kBf16_;
  static constexpr int kHalves = kHalves_;
  static constexpr int kThreads = kBf16 ? GEMM_SM100_BF16_THREADS : GEMM_SM100_THREADS;
};

// Where everything of this CTA lies.
template <class F>
struct Cta {
  const GemmSm100Params& p;
  Shape shape;
  uint8_t* shared;

  __device__ Cta(const GemmSm100Params& params, uint8_t* bytes)
      : p(params), shape(shape_of(F::kBf16, F::kHalves, params.list.tile_rows)), shared(bytes) {}
  __device__ Control& control() const {
    return *reinterpret_cast<Control*>(shared + GEMM_SM100_SHARED_BYTES - kControlBytes);
  }
  __device__ uint32_t stage(uint32_t i) const { return shared_address(shared) + i * shape.stage_bytes; }
  __device__ uint32_t sums(uint32_t set, int half) const {
    return control().tmem + shape.sum_columns(set, F::kHalves, half, p.list.tile_rows);
  }
  __device__ uint32_t operands() const { return control().tmem + shape.operands_at; }
};

// Until a barrier of one of the rings of Control has completed a phase. `barrier` is what a record of a wait in vain
// says.
template <class F>
__device__ void wait(const Cta<F>& cta, uint64_t* ring, uint32_t at, uint32_t parity, uint32_t barrier) {
  bounded_wait(ring[at], parity, barrier + at, cta.p.bound);
}

// Place in a ring, and which of its turns: roles count alike.
struct Ring {
  uint32_t at = 0, turn = 0, size;

  __device__ explicit Ring(int places) : size(places) {}
  __device__ void advance() {
    if (++at == size) at = 0, turn ^= 1;
  }
};

// In the order that all roles share.
template <class F, class Body>
__device__ void for_each_tile(const Cta<F>& cta, Body body) {
  nvfp4::for_each_tile<1, kRowStep>(cta.p.list, body);
}

template <class F>
class Producer {
 public:
  __device__ explicit Producer(const Cta<F>& cta) : cta_(cta), p_(cta.p), ring_(cta.shape.stages) {}

  __device__ void run() {
    const int slabs = slabs_of(p_.k);
    bool is_first = true;
    for_each_tile(cta_, [&](const Tile& tile) {
      const uint8_t* const weights =
          p_.tiles + tile.expert * p_.expert_stride + tile_offset(tile.first_m_tile, 0, slabs, F::kHalves, 0);
      const int ahead = is_first ? min(slabs, cta_.shape.stages) : 0;
      if (is_first) load_ahead(weights, tile, ahead);
      is_first = false;
      for (int slab = 0; slab < slabs; ++slab) {
        if (slab >= ahead) {
          wait(cta_, control().empty, ring_.at, ring_.turn ^ 1, SM100_BARRIER_EMPTY);
          load_weights(ring_.at, weights, tile, slab);
        }
        load_rows(ring_.at, tile, slab);
        ring_.advance();
      }
    });
    if (is_first) pass_by();
  }

 private:
  __device__ Control& control() const { return cta_.control(); }
  __device__ int columns(const Tile& tile) const { return columns_of(F::kBf16, tile.num_rows); }
  // Steps of 64 columns that a slab has.
  __device__ int steps(int slab) const { return min(kTileSteps, steps_of(p_.k) - slab * kTileSteps); }
  __device__ static int scale_tiles(int columns) { return (columns + 127) / 128; }

  // All stages' weights, before the kernel before this one has ended: it may still write token rows.
  __device__ void load_ahead(const uint8_t* weights, const Tile& tile, int stages) const {
    for (int slab = 0; slab < stages; ++slab) load_weights(slab, weights, tile, slab);
    follow_previous();
  }

  // Also says how many bytes the stage waits for, those of token rows among them.
  __device__ void load_weights(uint32_t stage, const uint8_t* weights, const Tile& tile, int slab) const {
    constexpr int kBytes = F::kHalves * kTileBytes;
    // An expert's row tiles are done together; those of a linear may be many rounds apart.
    const uint64_t policy = read_policy(p_.list.groups != nullptr);
    arrive_expect(control().full[stage], kBytes + row_bytes(tile, slab));
    bulk_copy(cta_.stage(stage), weights + int64_t{slab} * kBytes, kBytes, control().full[stage], policy);
  }

  __device__ int row_bytes(const Tile& tile, int slab) const {
    const int n = columns(tile);
    if (F::kBf16) return steps(slab) * n * kLineBytes;
    return n * kLineBytes + steps(slab) * scale_tiles(n) * kStepScaleBytes;
  }

  __device__ void load_rows(uint32_t stage, const Tile& tile, int slab) const {
    const auto* const rows = static_cast<const uint8_t*>(p_.rows);
    const int n = columns(tile), tile_rows = p_.list.tile_rows;
    const uint32_t to = cta_.stage(stage) + cta_.shape.rows_at;
    uint64_t& full = control().full[stage];
    const uint64_t policy = read_policy(false);
    if constexpr (F::kBf16) {
      for (int i = 0; i < steps(slab); ++i) {
        const int64_t line = slab * kTileSteps + i;
        bulk_copy(to + i * tile_rows * kLineBytes, rows + (line * p_.num_rows + tile.first_row) * kLineBytes,
                  n * kLineBytes, full, policy);
      }
    } else {
      bulk_copy(to, rows + (slab * p_.num_rows + tile.first_row) * kLineBytes, n * kLineBytes, full, policy);
      load_row_scales(stage, tile, slab, n, policy);
    }
  }

  __device__ void load_row_scales(uint32_t stage, const Tile& tile, int slab, int n, uint64_t policy) const {
    const uint32_t to = cta_.stage(stage) + cta_.shape.row_scales_at;
    for (int i = 0; i < steps(slab); ++i) {
      for (int j = 0; j < scale_tiles(n); ++j) {
        const int64_t row = (slab * kTileSteps + i) * p_.num_rows + tile.first_row + 128 * j;
        bulk_copy(to + (i * cta_.shape.scale_tiles + j) * kStepScaleBytes, p_.block_scale + row * kScaleStepBytes,
                  kStepScaleBytes, control().full[stage], policy);
      }
    }
  }

  const Cta<F>& cta_;
  const GemmSm100Params& p_;
  Ring ring_;
};

}  // namespace nvfp4::sm100
