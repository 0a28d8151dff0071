// SPDX-License-Identifier: Apache-2.0
//! Laws of plans and storage that hold for every family.

use super::family::Family;
use super::hopper::Hopper;
use super::kernels::{self, params};
use super::plan::{LayerPlan, check_local_experts};
use super::portable::Portable;
use super::sm100::Sm100;
use super::sm120::Sm120;
use super::storage::ExpertSlice;
use crate::activation::{Activation, ActivationKind};
use crate::config::{Device, KernelChoice, LayerConfig, Mode, ScalePolicy};

const MODES: [Mode; 3] = [Mode::Bf16, Mode::Nvfp4, Mode::Fp8];
const FAMILIES: [&dyn Family; 4] = [&Hopper, &Portable, &Sm100, &Sm120];

/// DeepSeek-V4-Pro under EP8, mode bf16.
pub fn layer_config() -> LayerConfig {
    LayerConfig {
        device: Device::Cuda(0, KernelChoice::Own),
        mode: Mode::Bf16,
        scale_policy: ScalePolicy::Dynamic,
        hidden_size: 7168,
        intermediate_size: 3072,
        num_experts: 384,
        num_local_experts: 48,
        first_local_expert: 0,
        top_k: 6,
        activation: Activation::swiglu(10.0, 0.0, 0.0).unwrap(),
        has_bias: false,
        tile_rows: None,
        fp8_max_error: 0.0,
        scale_block_size: 16,
    }
}

fn layer(hidden_size: usize, intermediate_size: usize, num_experts: usize, local: usize, mode: Mode) -> LayerConfig {
    LayerConfig { mode, hidden_size, intermediate_size, num_experts, num_local_experts: local, ..layer_config() }
}

fn plan_of(family: &dyn Family, config: &LayerConfig, tokens: usize) -> LayerPlan {
    let tile_rows = family.tile_table(config).unwrap().rows(tokens);
    LayerPlan::new(&family.plan_rules(config), config, tile_rows, tokens)
}

fn slice_of(family: &dyn Family, config: &LayerConfig) -> ExpertSlice {
    let matrix = |walk: &mut _, rows, cols| family.matrix(walk, config.weight_form(), rows, cols);
    ExpertSlice::new(config.shape(), config.has_bias, matrix)
}

#[test]
fn a_slice_costs_9_bits_a_weight_and_no_more_where_tiles_fit() {
    for family in FAMILIES {
        let slice = slice_of(family, &layer_config());
        assert_eq!(slice.stride, (3 * 7168 * 3072 * 9 / 16) as u64 + 256, "{family:?}");
    }
    let pairs = LayerConfig { mode: Mode::Fp8, scale_block_size: 32, ..layer_config() };
    assert_eq!(slice_of(&Hopper, &pairs).stride, (3 * 7168 * 3072 * 17 / 32) as u64 + 256, "one scale for 32 weights");
    let biased = LayerConfig { has_bias: true, ..layer_config() };
    let biases = 2 * (2 * 3072 + 7168);
    assert_eq!(slice_of(&Hopper, &biased).stride, slice_of(&Hopper, &layer_config()).stride + biases, "at the end");
    let ungated = Activation::new(ActivationKind::Relu2, 0.0, 0.0, 0.0).unwrap();
    let slice = slice_of(&Hopper, &LayerConfig { activation: ungated, ..layer_config() });
    assert_eq!(slice.stride, (2 * 7168 * 3072 * 9 / 16) as u64 + 256, "w13 is w1");
    let odd = layer(144, 48, 8, 8, Mode::Bf16);
    let slice = slice_of(&Hopper, &odd);
    assert_eq!((slice.w13.m_tiles, slice.w13.slabs, slice.w2.m_tiles, slice.w2.slabs), (2, 3, 3, 1));
    let slice = slice_of(&Hopper, &layer(144, 48, 8, 8, Mode::Fp8));
    assert_eq!((slice.w13.m_tiles, slice.w13.slabs, slice.w2.m_tiles, slice.w2.slabs), (2, 4, 3, 2), "two by two");
    let slice = slice_of(&Portable, &odd);
    assert_eq!((slice.w13.codes.len, slice.w13.block_scale.len), (96 * 72, 128 * 12), "scales padded to 128 x 4");
    assert_eq!((slice.w2.codes.len, slice.w2.block_scale.len), (144 * 24, 256 * 4));
}

#[test]
fn pro_under_ep8_with_8192_tokens_stays_within_150_megabytes() {
    for mode in MODES {
        let plan = plan_of(&Hopper, &layer(7168, 3072, 384, 48, mode), 8192);
        assert!(plan.workspace_size <= 150_000_000, "{mode:?}: {}", plan.workspace_size);
    }
    let plan = plan_of(&Hopper, &layer(7168, 3072, 384, 48, Mode::Bf16), 8192);
    assert!(plan.chunk_slots >= 8192 * 6 / 8 * 114 / 100, "14 % more than a uniform routing has: {}", plan.chunk_slots);
    assert_eq!(plan.chunks, 7);
    let plan = plan_of(&Hopper, &layer(4096, 2048, 256, 256, Mode::Bf16), 8192);
    assert_eq!((plan.chunks, plan.rows), (1, 8192 * 6), "all experts here, 192 rows each");
}

/// DeepSeek-V4-Flash under EP8 would take 2, 3 and 5 by bytes alone.
#[test]
fn powers_of_two_of_tokens_fill_their_chunks() {
    let chunks = |tokens| {
        let plan = plan_of(&Hopper, &layer(4096, 2048, 256, 32, Mode::Fp8), tokens);
        assert!(plan.workspace_size <= 150_000_000 * 105 / 100, "{tokens} tokens: {}", plan.workspace_size);
        plan.chunks
    };
    assert_eq!([2048, 4096, 8192].map(chunks), [1, 2, 4]);
}

#[test]
fn sm100_needs_no_more_workspace_than_hopper_but_for_aligned_rows() {
    for (mode, scale_policy) in
        [(Mode::Bf16, ScalePolicy::Dynamic), (Mode::Nvfp4, ScalePolicy::Dynamic), (Mode::Nvfp4, ScalePolicy::Static)]
    {
        let config = LayerConfig { scale_policy, ..layer(7168, 3072, 384, 48, mode) };
        for tokens in [1, 64, 1024, 8192, 65_536] {
            let (hopper, sm100) = (plan_of(&Hopper, &config, tokens), plan_of(&Sm100, &config, tokens));
            // Of a row: h, y, and its slot in each chunk's table.
            let padding = 7 * 48.min(6 * tokens) * (2 * 7168 + 2 * 3072 + 4 * sm100.chunks) + 8192;
            let most = hopper.workspace_size + padding as u64;
            assert!(sm100.workspace_size <= most, "{mode:?}, {tokens} tokens: {} > {most}", sm100.workspace_size);
        }
        assert!(plan_of(&Sm100, &config, 8192).workspace_size <= 150_000_000 + 7 * 48 * 20_480, "{mode:?}");
    }
}

#[test]
fn lines_have_room_for_what_kernels_touch() {
    for (cols, code_lines, bf16_lines, steps) in [(16, 1, 1, 1), (256, 1, 4, 4), (272, 2, 5, 5), (7168, 28, 112, 112)] {
        let plan = |mode| plan_of(&Sm100, &layer(64, cols, 8, 8, mode), 3);
        let (codes, bf16) = (plan(Mode::Nvfp4), plan(Mode::Bf16));
        let rows = codes.h.line_rows;
        assert_eq!((rows, bf16.h.line_rows), ((18 + 7 * 8) & !7, rows), "3 tokens of 6 slots over 8 experts");
        assert_eq!(codes.h.rows.len, code_lines * rows * 128);
        assert_eq!(codes.h.block_scale.len, steps * rows * 16 + 512, "32 rows are read from the last on");
        assert_eq!(bf16.h.rows.len, bf16_lines * rows * 128 + 1024, "16 rows are read from the last 8 on");
        assert_eq!((codes.h_rows.len, bf16.h_rows.len), (codes.rows * cols, 0), "a dynamic scale needs a quantiser");
        let parts = bf16.h_parts(cols);
        assert_eq!(parts.len(), bf16_lines);
        assert!(parts.iter().enumerate().all(|(line, part)| *part == (line * rows * 128, 64, 64)), "{parts:?}");
    }
    let hopper = plan_of(&Hopper, &layer(64, 48, 8, 8, Mode::Bf16), 3);
    assert_eq!(hopper.h_parts(48), [(0, 48, 48)]);
}

#[test]
fn capability_12_needs_no_more_workspace_than_hopper() {
    for (hidden, inter, experts, local) in [(7168, 3072, 384, 48), (4096, 2048, 256, 32), (5120, 8192, 16, 16)] {
        for mode in [Mode::Bf16, Mode::Nvfp4] {
            let dynamic = layer(hidden, inter, experts, local, mode);
            let fixed = LayerConfig { scale_policy: ScalePolicy::Static, ..dynamic.clone() };
            for tokens in [1, 64, 1000, 8192] {
                let size = |family, config: &LayerConfig| plan_of(family, config, tokens).workspace_size;
                let (hopper, own) = (size(&Hopper, &dynamic), size(&Sm120, &dynamic));
                assert!(size(&Sm120, &fixed) <= own, "GEMM1 quantises h by itself: {mode:?}, {tokens} tokens");
                let scales_of_a_tile = 128 * (hidden + inter) / 16; // block scales are padded to 128 rows
                let most = hopper + scales_of_a_tile as u64 + 4096;
                assert!(own <= most, "{own} after {hopper}: {hidden} x {inter}, {mode:?}, {tokens} tokens");
            }
        }
    }
}

#[test]
fn a_static_scale_of_h_is_copied_where_gemm1_quantises_by_it() {
    let dynamic = layer(64, 64, 8, 8, Mode::Nvfp4);
    let fixed = LayerConfig { scale_policy: ScalePolicy::Static, ..dynamic.clone() };
    for family in [&Sm100 as &dyn Family, &Sm120] {
        let plan = plan_of(family, &fixed, 3);
        assert!(plan.gemm1_quantizes && plan.h.global_scale.len > 0, "{family:?}");
        assert!(!plan_of(family, &dynamic, 3).gemm1_quantizes, "{family:?}");
    }
    assert!(!plan_of(&Hopper, &fixed, 3).gemm1_quantizes && !plan_of(&Portable, &fixed, 3).gemm1_quantizes);
}

/// 8.6, 8.9 and 12.x have 99 KB a block, others 163 KB and more.
#[test]
fn routing_counts_in_the_shared_memory_that_a_gpu_has() {
    let config = layer(64, 64, 512, 512, Mode::Bf16);
    let plan = plan_of(&Portable, &config, 1024);
    assert_eq!(plan.one_block_routing(&config, kernels::ROUTE_SHARED_BYTES), Some(33 * 512 * 4 + 1024 * 6 * 8));
    assert_eq!(plan.one_block_routing(&config, 101_376), None, "others route then");
    assert_eq!(plan.cluster_routing(&config, 163_840), None, "4 warps a block for 512 experts");
    let many = plan_of(&Portable, &config, 8192);
    let bytes = 32 * 32 * 6 * 8 + (32 * 513 + 2 * 512) * 4;
    assert_eq!(
        many.cluster_routing(&config, 163_840),
        Some((32, bytes)),
        "a warp for each of 256 segments of 32 tokens"
    );
    assert_eq!(many.cluster_routing(&config, 0), None, "there are no clusters");
    let most = plan_of(&Portable, &config, 65_536);
    assert_eq!(most.cluster_routing(&config, 163_840), None, "slots of 32 segments of 256 tokens are too many to keep");
    assert!(check_local_experts(25_344, 101_376).is_ok() && check_local_experts(25_345, 163_840).is_ok());
    let text = check_local_experts(25_345, 101_376).unwrap_err().to_string();
    assert!(text.contains("is 25345; on CUDA it must be at most 25344, whose counters fit 101376 bytes"), "{text}");
}

#[test]
fn x_lies_by_token_until_a_chunks_rows_are_fewer() {
    let plan = |mode, tokens| plan_of(&Hopper, &layer(7168, 3072, 384, 48, mode), tokens);
    let (few, many) = (plan(Mode::Nvfp4, 4096), plan(Mode::Nvfp4, 8192));
    assert!(!few.x_by_row && many.x_by_row);
    assert!(many.gemm_out.len * 4 >= many.rows * 2 * 7168, "x and y of a row take as much");
    assert!(plan(Mode::Fp8, 65_536).workspace_size < 200_000_000, "bounded, however many tokens");
    for top_k in [1, 2, 6] {
        let config = LayerConfig { top_k, ..layer(64, 16, 384, 48, Mode::Nvfp4) };
        assert!(!plan_of(&Hopper, &config, 100).x_by_row, "few tokens");
    }
}

#[test]
fn workspace_never_shrinks_with_more_tokens() {
    for (hidden, inter, experts, local) in [(7168, 3072, 384, 48), (4096, 2048, 256, 256), (64, 16, 512, 3)] {
        for (mode, kernels) in
            MODES.into_iter().flat_map(|mode| FAMILIES.into_iter().map(move |kernels| (mode, kernels)))
        {
            let config = layer(hidden, inter, experts, local, mode);
            let mut before = 0;
            for tokens in (0..3000).chain((3000..140_000).step_by(997)) {
                let size = plan_of(kernels, &config, tokens).workspace_size;
                assert!(size >= before, "{kernels:?}, {tokens} tokens: {size} after {before}");
                before = size;
            }
        }
    }
}

#[test]
fn every_slot_fits_whatever_the_routing() {
    for tokens in [1, 7, 1024, 1025, 8192, 131_072] {
        let plan = plan_of(&Hopper, &layer(7168, 3072, 384, 48, Mode::Bf16), tokens);
        let segment_slots = plan.segment_tokens * 6;
        // A chunk's last segment starts below chunk_slots and adds at most segment_slots.
        assert!(plan.chunks == 1 || plan.chunk_slots - 1 + segment_slots <= plan.rows);
        assert!(plan.chunks * plan.chunk_slots >= tokens * 6);
        assert!(plan.segments * plan.segment_tokens >= tokens);
        assert!(plan.segments <= params::ROUTE_MAX_SEGMENTS as usize);
        assert!((plan.segments - 1) * plan.segment_tokens < tokens);
    }
}

#[test]
fn padding_fits_whatever_the_routing() {
    for (tokens, local) in [(1, 1), (1, 48), (3, 48), (129, 7), (4096, 384)] {
        let config = layer(64, 16, 384, local, Mode::Nvfp4);
        let plan = plan_of(&Portable, &config, tokens);
        assert_eq!((plan.rows % 128, plan.chunks), (0, 1));
        // The worst: one more row than a multiple for as many experts as there can be, the rest to one of them.
        let experts = local.min(tokens * 6);
        let padded = (tokens * 6 - (experts - 1)).next_multiple_of(128) + (experts - 1) * 128;
        assert!(padded <= plan.rows && plan.rows < padded + 128, "{padded} in {}", plan.rows);
    }
}
