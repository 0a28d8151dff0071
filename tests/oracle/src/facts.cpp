// SPDX-License-Identifier: Apache-2.0
#include "nvfp4-moe-oracle/src/facts.hpp"

#include <algorithm>
#include <vector>

#include "nvfp4-moe-oracle/src/lib.rs.h"

namespace nvfp4::oracle {
namespace {

#define NVFP4_ROWS(rows) rows,
constexpr uint32_t kRowTileSizes[] = {GEMM_SM90_ROW_TILES(NVFP4_ROWS)};
constexpr uint32_t kFp8RowTileSizes[] = {GEMM_SM90_FP8_ROW_TILES(NVFP4_ROWS)};
constexpr uint32_t kSm120RowTileSizes[] = {GEMM_SM120_ROW_TILES(NVFP4_ROWS)};
#undef NVFP4_ROWS

template <int kMTiles, int kRowStep = 8, bool kByWarps = false>
void walk(const TileList& list, rust::Vec<Tile>& tiles) {
  for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
    for_each_tile<kMTiles, kRowStep, kByWarps>(list, [&](const nvfp4::Tile& tile) {
      tiles.push_back(
          Tile{blockIdx.x, tile.expert, tile.first_m_tile, tile.num_m_tiles, tile.first_row, tile.num_rows});
    });
  }
}

RouteParams params_of(const Routing& routing) {
  RouteParams p = {};
  p.num_tokens = routing.num_tokens;
  p.top_k = routing.top_k;
  p.num_local_experts = routing.num_local_experts;
  p.num_segments = routing.num_segments;
  p.segment_tokens = routing.segment_tokens;
  p.chunk_slots = routing.chunk_slots;
  return p;
}

}  // namespace

float activation(int32_t kind, float limit, float alpha, float beta, float gate, float up) {
  return activate(Activation{kind, limit, alpha, beta}, gate, up);
}

Block quantize(const std::array<float, kBlockSize>& values, float global_scale) {
  float x[kBlockSize];
  std::copy(values.begin(), values.end(), x);
  const nvfp4::Block block = quantize_block(x, QuantScale::from_global_scale(global_scale));
  return {block.codes(), block.scale, block.saturated, block.nonfinite};
}

rust::Vec<uint32_t> row_tile_sizes(uint32_t column_bytes) {
  rust::Vec<uint32_t> sizes;
  const auto add = [&](uint32_t rows) { sizes.push_back(rows); };
  if (column_bytes == 1) {
    std::for_each(std::begin(kFp8RowTileSizes), std::end(kFp8RowTileSizes), add);
  } else {
    std::for_each(std::begin(kRowTileSizes), std::end(kRowTileSizes), add);
  }
  return sizes;
}

uint32_t threads_of_gemm(uint32_t rows, uint32_t column_bytes, bool is_linear) {
#define NVFP4_FP8_THREADS(n) \
  if (column_bytes == 1 && rows == n) return ConfigOf<n, 1, Epilogue::kGemm1>::kThreads;
#define NVFP4_THREADS(n) \
  if (rows == n)         \
    return is_linear ? ConfigOf<n, 2, Epilogue::kLinear>::kThreads : ConfigOf<n, 2, Epilogue::kGemm1>::kThreads;
  GEMM_SM90_FP8_ROW_TILES(NVFP4_FP8_THREADS)
  GEMM_SM90_ROW_TILES(NVFP4_THREADS)
#undef NVFP4_FP8_THREADS
#undef NVFP4_THREADS
  return 0;
}

rust::Vec<uint32_t> sm120_row_tile_sizes() {
  rust::Vec<uint32_t> sizes;
  for (const uint32_t rows : kSm120RowTileSizes) sizes.push_back(rows);
  return sizes;
}

uint32_t sm120_threads_of_gemm(uint32_t rows) {
#define NVFP4_THREADS(n) \
  if (rows == n) return sm120::ConfigOf<n, sm120::Rows::kNvfp4, Epilogue::kGemm1Any>::kThreads;
  GEMM_SM120_ROW_TILES(NVFP4_THREADS)
#undef NVFP4_THREADS
  return 0;
}

namespace {

template <int kN, sm120::Rows kRows, Epilogue kEpilogue>
uint32_t pipeline() {
  using C = sm120::ConfigOf<kN, kRows, kEpilogue>;
  static_assert(sm120::kFitsLaunch<C>);
  return C::kStages << 24 | C::kSlabs << 20 | sizeof(sm120::SharedStorage<C>);
}

}  // namespace

uint32_t sm120_pipeline(uint32_t rows, bool is_nvfp4, bool is_gemm1) {
#define NVFP4_PIPELINE(n)                                                      \
  if (rows == n && is_nvfp4)                                                   \
    return is_gemm1 ? pipeline<n, sm120::Rows::kNvfp4, Epilogue::kGemm1Any>()  \
                    : pipeline<n, sm120::Rows::kNvfp4, Epilogue::kGemm2Any>(); \
  if (rows == n) return pipeline<n, sm120::Rows::kBf16, Epilogue::kGemm1Any>();
  GEMM_SM120_ROW_TILES(NVFP4_PIPELINE)
#undef NVFP4_PIPELINE
  return 0;
}

int32_t sm120_row_of_code(int32_t lane, int32_t r, int32_t i) { return sm120::place_of_a(lane, r, i).row; }
int32_t sm120_column_of_code(int32_t lane, int32_t r, int32_t i) { return sm120::place_of_a(lane, r, i).column; }

int32_t sm120_chunk_offset(bool is_nvfp4, int32_t line_bytes, int32_t row, int32_t chunk) {
  if (!is_nvfp4) return sm120::chunk_offset<false, 128>(row, chunk);
  return line_bytes == 128  ? sm120::chunk_offset<true, 128>(row, chunk)
         : line_bytes == 64 ? sm120::chunk_offset<true, 64>(row, chunk)
                            : sm120::chunk_offset<true, 32>(row, chunk);
}

uint32_t tile_bytes() { return kTileBytes; }

uint32_t paired_tile_bytes() { return kPairedTileBytes; }

int32_t fp8_span() { return kFp8Span; }

rust::Vec<Tile> walk(const Launch& launch) {
  std::vector<RowGroup> groups;
  for (const Group& group : launch.groups) {
    groups.push_back({group.expert, group.first_row, group.num_rows, group.first_tile});
  }
  TileList list = {};
  list.groups = groups.empty() ? nullptr : groups.data();
  list.last_group = static_cast<int32_t>(groups.size()) - 1;
  list.num_rows = launch.num_rows;
  list.m_tiles = launch.m_tiles;
  list.tile_rows = launch.tile_rows;
  gridDim.x = launch.num_ctas;
  rust::Vec<Tile> tiles;
  if (launch.is_sm100) {
    walk<1, sm100::kRowStep>(list, tiles);
    return tiles;
  }
  switch (launch.weight_tiles) {
    case 1: launch.by_warps ? walk<1, 8, true>(list, tiles) : walk<1>(list, tiles); break;
    case 2: launch.by_warps ? walk<2, 8, true>(list, tiles) : walk<2>(list, tiles); break;
    case 4: launch.by_warps ? walk<4, 8, true>(list, tiles) : walk<4>(list, tiles); break;
  }
  return tiles;
}

Slots slots_of_segment(const Routing& routing, int32_t segment) {
  const SlotRange slots(params_of(routing), segment);
  return {slots.first, slots.end};
}

int32_t chunk_of(const Routing& routing, int32_t routed_before) {
  return chunk_of_segment(params_of(routing), routed_before);
}

uint32_t small_routing_bytes(const Routing& routing) { return 4 * small_routing_words(params_of(routing)); }
uint32_t cluster_routing_bytes(const Routing& routing, uint32_t warps) {
  return 4 * cluster_routing_words(params_of(routing), warps);
}

}  // namespace nvfp4::oracle
