// SPDX-License-Identifier: Apache-2.0
// What of kernels/host.hpp is no plain function of plain numbers, in forms that Rust can call.
#pragma once
#include <array>

#include "host.hpp"
#include "rust/cxx.h"

namespace nvfp4::oracle {

struct Block;
struct Launch;
struct Routing;
struct Slots;
struct Tile;

float activation(int32_t kind, float limit, float alpha, float beta, float gate, float up);
Block quantize(const std::array<float, kBlockSize>& values, float global_scale);
rust::Vec<uint32_t> row_tile_sizes(uint32_t column_bytes);
uint32_t threads_of_gemm(uint32_t rows, uint32_t column_bytes, bool is_linear);
rust::Vec<uint32_t> sm120_row_tile_sizes();
uint32_t sm120_threads_of_gemm(uint32_t rows);
uint32_t sm120_pipeline(uint32_t rows, bool is_nvfp4, bool is_gemm1);
int32_t sm120_row_of_code(int32_t lane, int32_t r, int32_t i);
int32_t sm120_column_of_code(int32_t lane, int32_t r, int32_t i);
int32_t sm120_chunk_offset(bool is_nvfp4, int32_t line_bytes, int32_t row, int32_t chunk);
uint32_t tile_bytes();
uint32_t paired_tile_bytes();
int32_t fp8_span();
rust::Vec<Tile> walk(const Launch& launch);
Slots slots_of_segment(const Routing& routing, int32_t segment);
int32_t chunk_of(const Routing& routing, int32_t routed_before);
uint32_t small_routing_bytes(const Routing& routing);
uint32_t cluster_routing_bytes(const Routing& routing, uint32_t warps);

}  // namespace nvfp4::oracle
