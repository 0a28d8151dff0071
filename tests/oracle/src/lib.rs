// SPDX-License-Identifier: Apache-2.0
//! What the headers of `kernels/` state, callable from Rust. The tests compare it with what the library states: the same
//! fact has a home in each language where the device needs one and the host plans by it.

/// `kernels/host.hpp` by way of `facts.hpp`. Plain functions of it are bridged as they are.
#[cxx::bridge(namespace = "nvfp4::oracle")]
pub mod facts {
    /// `RowGroup` of `kernels/params.h`.
    #[derive(Debug, Clone, Copy)]
    struct Group {
        expert: i32,
        first_row: i32,
        num_rows: i32,
        first_tile: i32,
    }

    /// A `TileList` and the launch that walks it.
    #[derive(Debug, Clone)]
    struct Launch {
        /// With their end marks; the last is one. Empty: a linear of `num_rows` rows.
        groups: Vec<Group>,
        num_rows: i32,
        m_tiles: i32,
        tile_rows: i32,
        num_ctas: i32,
        /// Of a CTA: 1, 2 or 4.
        weight_tiles: i32,
        /// By the step of compute capability 10.x; its CTA has one weight tile.
        is_sm100: bool,
        /// Whole warps look for their next tile.
        by_warps: bool,
    }

    /// What one step of `for_each_tile` multiplies.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Tile {
        cta: i32,
        expert: i32,
        first_m_tile: i32,
        num_m_tiles: i32,
        first_row: i32,
        num_rows: i32,
    }

    /// `Block` of `kernels/common/format.cuh`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Block {
        codes: u64,
        scale: u32,
        saturated: bool,
        nonfinite: i32,
    }

    /// A call as routing cuts it up.
    #[derive(Debug, Clone, Copy)]
    struct Routing {
        num_tokens: i32,
        top_k: i32,
        num_local_experts: i32,
        num_segments: i32,
        segment_tokens: i32,
        chunk_slots: i32,
    }

    /// Slots of a segment.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Slots {
        first: u32,
        end: u32,
    }

    #[namespace = "nvfp4"]
    unsafe extern "C++" {
        include!("nvfp4-moe-oracle/src/facts.hpp");

        fn e2m1_decode(code: u32) -> f32;
        fn e2m1_round(x: f32) -> f32;
        fn e2m1_code(value: f32) -> u32;
        fn e4m3_decode(bits: u32) -> f32;
        fn e4m3_encode(a: f32) -> u32;
        fn e4m3_exponent(e4m3: u32) -> i32;
        fn dynamic_global_scale(amax: f32) -> f32;
        fn sf_offset_128x4(row: u64, col: u64, num_cols: u64) -> u64;

        fn row_tiles_of(rows: i32, tile_rows: i32) -> i32;
        fn tiles_of_cta(rows: i32, column_bytes: i32, is_linear: bool) -> i32;
        fn checkpoint_row(m: i32, r: i32, rows: i32, order: i32) -> i32;
        fn checkpoint_row_of(order: i32, row: i32, rows: i32) -> i32;
        fn projection_of_row(order: i32, row: i32, rows: i32) -> i32;
        fn fp8_row_word(block: i32, i: i32) -> i32;
        fn fp8_block(slab: i32, c: i32) -> i32;
        fn fp8_scale(e4m3: u32, largest: u32) -> u32;
        fn fp8_table_low(scale: u32) -> u32;
        fn fp8_table_high(scale: u32) -> u32;
        fn e5m3_scale(e4m3: u32) -> u32;
        #[namespace = "nvfp4::sm120"]
        fn bf16_pair(word: u32, i: i32) -> u32;
        #[namespace = "nvfp4::sm120"]
        fn small_scale_pair(e4m3: u32) -> u32;
        #[namespace = "nvfp4::sm120"]
        fn code_offset(t: i32, r: i32) -> i32;
        #[namespace = "nvfp4::sm120"]
        fn scale_offset(row: i32) -> i32;
        fn scatter_pair(pair: u32, low: u32, high: u32) -> u32;
    }

    #[namespace = "nvfp4"]
    unsafe extern "C++" {
        fn row_code(row: i64, col: i32, num_rows: i64) -> i64;
        fn row_block_scale(row: i64, block: i32, quarter: i32, num_rows: i64) -> i64;
        fn row_bf16(row: i64, col: i32, num_rows: i64) -> i64;
    }

    #[namespace = "nvfp4::sm100"]
    unsafe extern "C++" {
        fn tile_code(row: i32, col: i32) -> i32;
        fn tile_scale(row: i32, block: i32) -> i32;
        fn tile_offset(m: i32, slab: i32, num_slabs: i32, halves: i32, half: i32) -> i64;
        fn spread_codes(codes: u32, i: i32) -> u32;
        fn spread_scale(e4m3: u32) -> u32;
        fn fits(bf16: bool, halves: i32, tile_rows: i32) -> bool;
    }

    unsafe extern "C++" {
        /// `activate`, of an `Activation` with these fields.
        fn activation(kind: i32, limit: f32, alpha: f32, beta: f32, gate: f32, up: f32) -> f32;
        fn quantize(values: &[f32; 16], global_scale: f32) -> Block;
        /// Row-tile sizes that Hopper's GEMMs are compiled for.
        fn row_tile_sizes(column_bytes: u32) -> Vec<u32>;
        /// Threads of the GEMM of bf16 rows with this row-tile size, by its `Config`; 0 if there is none.
        fn threads_of_gemm(rows: u32, column_bytes: u32, is_linear: bool) -> u32;
        /// The same of compute capability 12.x.
        fn sm120_row_tile_sizes() -> Vec<u32>;
        fn sm120_threads_of_gemm(rows: u32) -> u32;
        /// Stages << 24 | slabs of one << 20 | bytes of shared memory.
        fn sm120_pipeline(rows: u32, is_nvfp4: bool, is_gemm1: bool) -> u32;
        /// `place_of_a`.
        fn sm120_row_of_code(lane: i32, r: i32, i: i32) -> i32;
        fn sm120_column_of_code(lane: i32, r: i32, i: i32) -> i32;
        fn sm120_chunk_offset(is_nvfp4: bool, line_bytes: i32, row: i32, chunk: i32) -> i32;
        fn tile_bytes() -> u32;
        fn paired_tile_bytes() -> u32;
        fn fp8_span() -> i32;
        /// Every step of every CTA.
        fn walk(launch: &Launch) -> Vec<Tile>;
        fn slots_of_segment(routing: &Routing, segment: i32) -> Slots;
        fn chunk_of(routing: &Routing, routed_before: i32) -> i32;
        /// Shared memory of route_small.
        fn small_routing_bytes(routing: &Routing) -> u32;
        /// Shared memory of a block of route_cluster with so many warps.
        fn cluster_routing_bytes(routing: &Routing, warps: u32) -> u32;
    }
}
