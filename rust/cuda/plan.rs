//! How a call is cut up, and where its scratch lies.
//!
//! Tokens are processed in *chunks*: contiguous ranges whose routed slots fit the rows of the workspace. Routing finds
//! their borders on the device; the host launches as many as the worst routing needs, and empty ones return at once.

use super::kernels::{ROUTE_SHARED_BYTES, params};
use super::storage::TILE;
use super::tiles::{PORTABLE_ROWS, tile_rows};
use crate::config::{Kernels, LayerConfig, LinearConfig, Mode};
use crate::format::{BLOCK_SIZE, sf_size_128x4};
use crate::workspace::{Region, Walk};
use std::ffi::c_void;

/// Bytes of a chunk's h and y before a call is cut in chunks: 8192 tokens of DeepSeek-V4-Pro under EP8 have room for 15 % more
/// rows than a uniform routing gives them, and the worst routing has 7 chunks.
const CHUNK_BYTES: usize = 142 << 20;
/// Rows of a local expert that a chunk has room for even where it takes more, if a uniform routing comes near: with that
/// many, reading weights again costs nothing.
const CHUNK_ROWS_PER_EXPERT: usize = 192;
/// Runs of whole tokens that routing counts by.
const MAX_SEGMENTS: usize = params::ROUTE_MAX_SEGMENTS as usize;
/// Up to this many tokens, one block of threads routes.
const SMALL_TOKENS: usize = 1024;

/// Rows of an expert are padded to this in Blackwell's layouts, so that its block scales start a tile of their own.
const ALIGNED_ROWS: usize = 128;

/// How the rows of a GEMM's input lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// bf16.
    Bf16,
    /// NVFP4, decoded to bf16 but for its global scale. Or e4m3 in the place of bf16.
    Decoded,
    /// e4m3, padded to whole slabs.
    Fp8,
    /// NVFP4 with 128x4 swizzled block scales.
    Swizzled,
}

impl Form {
    /// Of what quantising in this mode leaves, where no form of its own is asked for.
    fn of(mode: Mode, kernels: Kernels) -> Self {
        match (mode, kernels) {
            (Mode::Nvfp4 | Mode::Fp8, Kernels::Hopper) => Form::Decoded,
            (Mode::Nvfp4, Kernels::Portable) => Form::Swizzled,
            _ => Form::Bf16,
        }
    }

    /// Of GEMM1's input; `None` where that is the caller's x.
    fn of_x(mode: Mode, kernels: Kernels) -> Option<Self> {
        match (mode, kernels) {
            (Mode::Bf16, _) | (Mode::Fp8, Kernels::Portable) => None,
            (Mode::Fp8, Kernels::Hopper) => Some(Form::Fp8),
            (Mode::Nvfp4, _) => Some(Form::of(mode, kernels)),
        }
    }
}

/// Of a row of e4m3 as tensor cores read it: whole slabs of 64 columns, each transposed (`kernels/hopper/layout.cuh`).
pub fn fp8_row_bytes(cols: usize) -> usize {
    cols.next_multiple_of(TILE)
}

/// Rows of a GEMM's input: values, block scales and global scales, as far as the form has them.
#[derive(Debug, Default)]
pub struct Operand {
    pub rows: Region<u8>,
    pub block_scale: Region<u8>,
    pub global_scale: Region<f32>,
}

impl Operand {
    fn new(walk: &mut Walk, form: Form, rows: usize, cols: usize) -> Self {
        let (row_bytes, scales) = match form {
            Form::Bf16 | Form::Decoded => (2 * cols, 0),
            Form::Fp8 => (fp8_row_bytes(cols), 0),
            Form::Swizzled => (cols / 2, sf_size_128x4(rows as u64, (cols / BLOCK_SIZE) as u64) as usize),
        };
        Operand {
            rows: walk.region(rows * row_bytes),
            block_scale: walk.region(scales),
            global_scale: walk.region(if form == Form::Bf16 { 0 } else { rows }),
        }
    }

    /// As what quantising to NVFP4 writes: decoded on Hopper, packed elsewhere.
    pub fn as_output(&self, base: *mut u8, kernels: Kernels) -> params::QuantizeParams {
        let row_scale = self.global_scale.pointer(base);
        match kernels {
            Kernels::Hopper => {
                params::QuantizeParams { decoded: self.rows.pointer(base).cast(), row_scale, ..Default::default() }
            }
            Kernels::Portable => params::QuantizeParams {
                packed: self.rows.pointer(base),
                block_scale: self.block_scale.pointer(base),
                row_scale,
                ..Default::default()
            },
        }
    }
}

/// The plan of one MoE forward.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct LayerPlan {
    pub kernels: Kernels,
    /// Rows of a chunk, R, padding included.
    pub rows: usize,
    /// Each expert's rows are padded to a multiple of this.
    pub row_alignment: usize,
    pub chunks: usize,
    /// A segment goes to chunk (routed slots before it) / this.
    pub chunk_slots: usize,
    pub segments: usize,
    pub segment_tokens: usize,
    /// Rows of a GEMM tile.
    pub tile_rows: u32,
    pub slot_to_row: Region<i32>,
    pub row_to_slot: Region<i32>,
    pub row_offsets: Region<i32>,
    pub row_counts: Region<i32>,
    pub groups: Region<params::RowGroup>,
    pub chunk_first_token: Region<i32>,
    pub segment_counts: Region<i32>,
    pub segment_totals: Region<i32>,
    pub h: Operand,
    /// Elements of bf16 from one row of h to the next; in mode fp8 a row of e4m3 has room in the place of its bf16.
    pub h_stride: usize,
    /// Does `x` hold a chunk's gathered rows? Else its tokens.
    pub x_by_row: bool,
    /// GEMM1's input where it is not the caller's x, of a chunk.
    pub x: Operand,
    /// bf16: y, GEMM2's result; before that, where SwiGLU is a kernel of its own, f32: GEMM1's gate and up.
    pub sums: Region<f32>,
    pub workspace_size: u64,
}

impl LayerPlan {
    /// For calls of up to `max_tokens` tokens. Every region grows with `max_tokens`, so a larger plan's workspace serves
    /// smaller calls.
    pub fn new(kernels: Kernels, config: &LayerConfig, max_tokens: usize) -> Self {
        let (hidden, inter, local) = (config.hidden_size, config.intermediate_size, config.num_local_experts);
        let slots = max_tokens * config.top_k;
        // Few tokens: a segment for each of the block's warps, 32 at most, of slots for most of its lanes. Many: 256
        // segments, of whole tokens.
        let segment_tokens = match max_tokens <= SMALL_TOKENS {
            true => max_tokens.div_ceil(32).max(32 / config.top_k).max(1),
            false => max_tokens.div_ceil(MAX_SEGMENTS).max(SMALL_TOKENS / 32),
        };
        let segment_slots = segment_tokens * config.top_k;
        let uniform_slots = (slots * local).div_ceil(config.num_experts);
        let roomy = (CHUNK_BYTES / (2 * inter + 2 * hidden))
            .max((uniform_slots * 115 / 100 + segment_slots).min(CHUNK_ROWS_PER_EXPERT * local))
            .max(2 * segment_slots);
        let slot_rows = slots.min(roomy);
        // A segment that starts below chunk_slots ends within the rows, so it never straddles a border. As many chunks as
        // are needed, of equal size.
        let most = if slots <= slot_rows { slots.max(1) } else { slot_rows - segment_slots + 1 };
        let chunks = slots.div_ceil(most).max(1);
        let chunk_slots = slots.div_ceil(chunks).max(1);
        let segment_room = if max_tokens <= SMALL_TOKENS { max_tokens.min(32) } else { MAX_SEGMENTS };

        // Every expert that has rows may need all but one of them as padding.
        let (row_alignment, rows) = match kernels {
            Kernels::Hopper => (1, slot_rows),
            Kernels::Portable => {
                let padded = slot_rows + (ALIGNED_ROWS - 1) * local.min(slot_rows);
                (ALIGNED_ROWS, padded / ALIGNED_ROWS * ALIGNED_ROWS)
            }
        };
        let gate_up_bytes = if kernels == Kernels::Portable { 4 * rows * 2 * inter } else { 0 };
        let sums_len = (2 * rows * hidden).max(gate_up_bytes) / 4;
        let h_stride = match config.mode {
            Mode::Fp8 => inter.max(fp8_row_bytes(inter) / 2),
            _ => inter,
        };
        // On Hopper x in another form lies by token, or by row where a chunk has fewer: in the place of y either way.
        let x_by_row = kernels == Kernels::Portable || rows < max_tokens;
        let (x_rows, x_form) = (if x_by_row { rows } else { max_tokens }, Form::of_x(config.mode, kernels));

        let mut walk = Walk::default();
        let mut plan = LayerPlan {
            kernels,
            rows,
            row_alignment,
            chunks,
            chunk_slots,
            segments: max_tokens.div_ceil(segment_tokens),
            segment_tokens,
            tile_rows: match kernels {
                Kernels::Hopper => tile_rows(max_tokens, config.top_k, config.num_experts),
                Kernels::Portable => PORTABLE_ROWS,
            },
            slot_to_row: walk.region(slots),
            row_to_slot: walk.region(chunks * rows),
            row_offsets: walk.region(chunks * (local + 1)),
            row_counts: walk.region(chunks * local),
            groups: walk.region(chunks * (local + 2)),
            chunk_first_token: walk.region(chunks + 1),
            segment_counts: walk.region(segment_room * local),
            segment_totals: walk.region(segment_room),
            h: Operand::new(&mut walk, Form::of(config.mode, kernels), rows, h_stride),
            h_stride,
            x_by_row,
            x: Operand::default(),
            sums: Region::default(),
            workspace_size: 0,
        };
        // GEMM1 has read a chunk's x before GEMM2 writes its y: on Hopper they share their place. Elsewhere gate and up do.
        let mut shared = walk.clone();
        let x_walk = if kernels == Kernels::Hopper { &mut shared } else { &mut walk };
        plan.x = x_form.map_or_else(Operand::default, |form| Operand::new(x_walk, form, x_rows, hidden));
        plan.sums = walk.region(sums_len);
        plan.workspace_size = walk.size().max(shared.size());
        plan
    }

    /// Where GEMM2 writes, and combine reads: bf16 [rows, hidden].
    pub fn y(&self, base: *mut u8) -> *mut c_void {
        self.sums.pointer(base).cast()
    }

    /// Shared memory with which one block of threads routes; `None` where it takes more kernels.
    pub fn one_block_routing(&self, config: &LayerConfig) -> Option<u32> {
        let (segments, local) = (self.segments, config.num_local_experts);
        // Counters of each segment and of all; then expert and rank of each slot, 8-byte aligned.
        let counters = ((segments + 1) * local).next_multiple_of(2) * 4;
        let bytes = counters + segments * self.segment_tokens * config.top_k * 8;
        let fits = self.chunks == 1 && segments <= 32 && bytes <= ROUTE_SHARED_BYTES as usize;
        fits.then_some(bytes as u32)
    }
}

/// The plan of one linear forward.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct LinearPlan {
    /// The quantised input; empty in mode bf16, which reads the caller's.
    pub x: Operand,
    pub workspace_size: u64,
}

impl LinearPlan {
    /// For calls of up to `max_tokens` tokens.
    pub fn new(kernels: Kernels, config: &LinearConfig, max_tokens: usize) -> Self {
        let mut walk = Walk::default();
        let rows = if config.mode == Mode::Nvfp4 { max_tokens } else { 0 };
        LinearPlan {
            x: Operand::new(&mut walk, Form::of(config.mode, kernels), rows, config.in_features),
            workspace_size: walk.size(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Device, ScalePolicy, Swiglu};

    const MODES: [Mode; 3] = [Mode::Bf16, Mode::Nvfp4, Mode::Fp8];
    const KERNELS: [Kernels; 2] = [Kernels::Hopper, Kernels::Portable];

    fn layer(hidden: usize, inter: usize, experts: usize, local: usize, mode: Mode) -> LayerConfig {
        LayerConfig {
            device: Device::Cuda(0, Kernels::Hopper),
            mode,
            scale_policy: ScalePolicy::Dynamic,
            hidden_size: hidden,
            intermediate_size: inter,
            num_experts: experts,
            num_local_experts: local,
            first_local_expert: 0,
            top_k: 6,
            swiglu: Swiglu::new(10.0, 0.0, 0.0).unwrap(),
        }
    }

    #[test]
    fn pro_under_ep8_with_8192_tokens_stays_within_150_megabytes() {
        for mode in MODES {
            let plan = LayerPlan::new(Kernels::Hopper, &layer(7168, 3072, 384, 48, mode), 8192);
            assert!(plan.workspace_size <= 150_000_000, "{mode:?}: {}", plan.workspace_size);
        }
        let plan = LayerPlan::new(Kernels::Hopper, &layer(7168, 3072, 384, 48, Mode::Bf16), 8192);
        assert!(
            plan.chunk_slots >= 8192 * 6 / 8 * 114 / 100,
            "14 % more than a uniform routing has: {}",
            plan.chunk_slots
        );
        assert_eq!(plan.chunks, 7);
        let plan = LayerPlan::new(Kernels::Hopper, &layer(4096, 2048, 256, 256, Mode::Bf16), 8192);
        assert_eq!((plan.chunks, plan.rows), (1, 8192 * 6), "all experts here, 192 rows each");
    }

    #[test]
    fn x_lies_by_token_until_a_chunks_rows_are_fewer() {
        let plan = |mode, tokens| LayerPlan::new(Kernels::Hopper, &layer(7168, 3072, 384, 48, mode), tokens);
        let (few, many) = (plan(Mode::Nvfp4, 4096), plan(Mode::Nvfp4, 8192));
        assert!(!few.x_by_row && many.x_by_row);
        assert!(many.sums.len * 4 >= many.rows * 2 * 7168, "x and y of a row take as much");
        assert!(plan(Mode::Fp8, 65_536).workspace_size < 200_000_000, "bounded, however many tokens");
        for top_k in [1, 2, 6] {
            let config = LayerConfig { top_k, ..layer(64, 16, 384, 48, Mode::Nvfp4) };
            assert!(!LayerPlan::new(Kernels::Hopper, &config, 100).x_by_row, "few tokens");
        }
    }

    #[test]
    fn workspace_never_shrinks_with_more_tokens() {
        for (hidden, inter, experts, local) in [(7168, 3072, 384, 48), (4096, 2048, 256, 256), (64, 16, 512, 3)] {
            for (mode, kernels) in
                MODES.into_iter().flat_map(|mode| KERNELS.into_iter().map(move |kernels| (mode, kernels)))
            {
                let config = layer(hidden, inter, experts, local, mode);
                let mut before = 0;
                for tokens in (0..3000).chain((3000..140_000).step_by(997)) {
                    let size = LayerPlan::new(kernels, &config, tokens).workspace_size;
                    assert!(size >= before, "{kernels:?}, {tokens} tokens: {size} after {before}");
                    before = size;
                }
            }
        }
    }

    #[test]
    fn every_slot_fits_whatever_the_routing() {
        for tokens in [1, 7, 1024, 1025, 8192, 131_072] {
            let plan = LayerPlan::new(Kernels::Hopper, &layer(7168, 3072, 384, 48, Mode::Bf16), tokens);
            let segment_slots = plan.segment_tokens * 6;
            // A chunk's last segment starts below chunk_slots and adds at most segment_slots.
            assert!(plan.chunks == 1 || plan.chunk_slots - 1 + segment_slots <= plan.rows);
            assert!(plan.chunks * plan.chunk_slots >= tokens * 6);
            assert!(plan.segments * plan.segment_tokens >= tokens);
            assert!(plan.segments <= MAX_SEGMENTS);
            assert!((plan.segments - 1) * plan.segment_tokens < tokens);
        }
    }

    #[test]
    fn padding_fits_whatever_the_routing() {
        for (tokens, local) in [(1, 1), (1, 48), (3, 48), (129, 7), (4096, 384)] {
            let config = layer(64, 16, 384, local, Mode::Nvfp4);
            let plan = LayerPlan::new(Kernels::Portable, &config, tokens);
            assert_eq!((plan.rows % ALIGNED_ROWS, plan.chunks), (0, 1));
            // The worst: one more row than a multiple for as many experts as there can be, the rest to one of them.
            let experts = local.min(tokens * 6);
            let padded = (tokens * 6 - (experts - 1)).next_multiple_of(ALIGNED_ROWS) + (experts - 1) * ALIGNED_ROWS;
            assert!(padded <= plan.rows && plan.rows < padded + ALIGNED_ROWS, "{padded} in {}", plan.rows);
        }
    }
}
