//! How a call is cut up, and where its scratch lies.
//!
//! Tokens are processed in *chunks*: contiguous ranges whose routed slots fit the rows of the workspace. Routing finds
//! their borders on the device; the host launches as many as the worst routing needs, and empty ones return at once.
//! GEMM2 and combine go over the hidden columns in *slices*, so that its result need not be held whole.

use super::kernels::{ROUTE_SHARED_BYTES, params};
use super::storage::TILE;
use super::tiles::{PORTABLE_ROWS, tile_rows};
use crate::config::{Kernels, LayerConfig, LinearConfig, Mode};
use crate::format::{BLOCK_SIZE, sf_size_128x4};
use crate::workspace::{Region, Walk};
use std::ffi::c_void;

/// Bytes that rows of h may take before a call is cut in chunks.
const H_BUDGET: usize = 48 << 20;
/// Rows of a local expert that a chunk has room for at least: with that many, reading weights again costs nothing. The worst
/// routing of 8192 tokens of DeepSeek-V4-Pro then has 6 chunks, and a uniform one under EP8 fills two thirds of one.
const CHUNK_ROWS_PER_EXPERT: usize = 192;
/// Bytes of GEMM2's result before its columns are cut in slices, or as much as h takes where that is more: each slice ends
/// with multiprocessors that idle. A uniform routing of 8192 tokens of DeepSeek-V4-Pro under EP8 has one slice, as would one
/// of 4 % more rows.
const Y_BUDGET: usize = 88 << 20;
const SLICE_TILES: usize = params::SLICE_TILES as usize;
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
    /// e4m3.
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
            Form::Fp8 => (cols, 0),
            Form::Swizzled => (cols / 2, sf_size_128x4(rows as u64, (cols / BLOCK_SIZE) as u64) as usize),
        };
        Operand {
            rows: walk.region(rows * row_bytes),
            block_scale: walk.region(scales),
            global_scale: walk.region(if form == Form::Bf16 { 0 } else { rows }),
        }
    }
}

/// What a chunk has room for.
struct Room {
    /// Routed slots.
    slots: usize,
    /// Rows, padding included.
    rows: usize,
    x_by_row: bool,
    /// Bytes that a slice of y shares with what is read before it is written.
    shared_bytes: usize,
}

impl Room {
    /// For at least `fewest_slots`, if there are as many.
    fn new(kernels: Kernels, config: &LayerConfig, max_tokens: usize, fewest_slots: usize) -> Self {
        let (inter, local) = (config.intermediate_size, config.num_local_experts);
        let roomy = (H_BUDGET / (2 * inter)).max(CHUNK_ROWS_PER_EXPERT * local).max(fewest_slots);
        let slots = roomy.min(max_tokens * config.top_k);
        let y_bytes = |rows: usize, least: usize| {
            let bytes = |tiles: usize| 2 * rows * tiles * TILE;
            let budget = Y_BUDGET.max(2 * rows * inter).max(least);
            // Not a slice's own size, which would shrink where one more row narrows the slices.
            bytes(config.hidden_size.div_ceil(TILE)).min(budget.max(bytes(SLICE_TILES))).max(least)
        };
        if kernels == Kernels::Portable {
            // Every expert that has rows may need all but one of them as padding.
            let rows = (slots + (ALIGNED_ROWS - 1) * local.min(slots)) / ALIGNED_ROWS * ALIGNED_ROWS;
            return Room { slots, rows, x_by_row: true, shared_bytes: y_bytes(rows, 4 * rows * 2 * inter) };
        }
        // Quantised rows of x and their scales. All tokens of a call, or where that is more than y takes, a chunk's rows;
        // where those are more, too, as many as leave h and x no more than h and y take.
        let x_bytes = match config.mode {
            Mode::Bf16 => 0,
            Mode::Fp8 => config.hidden_size + 4,
            Mode::Nvfp4 => 2 * config.hidden_size + 4,
        };
        let shared_bytes = y_bytes(slots, 0) + if x_bytes > 0 { 4 * slots } else { 0 };
        let x_by_row = max_tokens * x_bytes > shared_bytes;
        if !x_by_row || slots * x_bytes <= shared_bytes {
            return Room { slots, rows: slots, x_by_row, shared_bytes };
        }
        let rows = ((slots * 2 * inter + shared_bytes) / (2 * inter + x_bytes)).max(fewest_slots.min(slots));
        let shared_bytes = shared_bytes + (slots - rows) * 2 * inter;
        Room { slots: rows, rows, x_by_row, shared_bytes: shared_bytes.max(rows * x_bytes) }
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
    /// 64-row weight tiles of w2 in a slice, with as many rows as there is room for. Where there are fewer, slices are
    /// wider, and the last ones empty.
    pub slice_tiles: usize,
    pub slot_to_row: Region<i32>,
    pub row_to_slot: Region<i32>,
    pub row_offsets: Region<i32>,
    pub row_counts: Region<i32>,
    pub active_experts: Region<i32>,
    pub tile_starts: Region<i32>,
    pub num_active: Region<i32>,
    pub chunk_first_token: Region<i32>,
    pub slice_tiles_found: Region<i32>,
    pub segment_counts: Region<i32>,
    pub segment_totals: Region<i32>,
    pub h: Operand,
    /// Does `x` hold a chunk's gathered rows? Else its tokens.
    pub x_by_row: bool,
    /// GEMM1's input where it is not the caller's x, of a chunk.
    pub x: Operand,
    /// bf16: GEMM2's slice of y; before that, where SwiGLU is a kernel of its own, f32: GEMM1's gate and up.
    pub sums: Region<f32>,
    pub workspace_size: u64,
}

impl LayerPlan {
    /// For calls of up to `max_tokens` tokens. Every region grows with `max_tokens`, so a larger plan's workspace serves
    /// smaller calls.
    pub fn new(kernels: Kernels, config: &LayerConfig, max_tokens: usize) -> Self {
        let (hidden, local) = (config.hidden_size, config.num_local_experts);
        let slots = max_tokens * config.top_k;
        // Few tokens: a segment for each of the block's warps, 32 at most, of slots for most of its lanes. Many: 256
        // segments, of whole tokens.
        let segment_tokens = match max_tokens <= SMALL_TOKENS {
            true => max_tokens.div_ceil(32).max(32 / config.top_k).max(1),
            false => max_tokens.div_ceil(256).max(SMALL_TOKENS / 32),
        };
        let segment_slots = segment_tokens * config.top_k;
        let room = Room::new(kernels, config, max_tokens, 2 * segment_slots);
        // A segment that starts below chunk_slots ends within the rows, so it never straddles a border.
        let chunk_slots = if slots <= room.slots { slots.max(1) } else { room.slots - segment_slots + 1 };
        let chunks = slots.saturating_sub(1) / chunk_slots + 1;
        let segment_room = if max_tokens <= SMALL_TOKENS { max_tokens.min(32) } else { 256 };

        let hidden_tiles = hidden.div_ceil(TILE);
        let fitting = room.shared_bytes / (2 * room.rows * TILE).max(1) / SLICE_TILES * SLICE_TILES;
        // As many slices as are needed, of equal size.
        let slices = hidden_tiles.div_ceil(fitting.max(SLICE_TILES));
        let slice_tiles = hidden_tiles.div_ceil(slices).next_multiple_of(SLICE_TILES).min(hidden_tiles);

        let mut walk = Walk::default();
        let mut plan = LayerPlan {
            kernels,
            rows: room.rows,
            row_alignment: if kernels == Kernels::Hopper { 1 } else { ALIGNED_ROWS },
            chunks,
            chunk_slots,
            segments: max_tokens.div_ceil(segment_tokens),
            segment_tokens,
            tile_rows: match kernels {
                Kernels::Hopper => tile_rows(max_tokens, config.top_k, config.num_experts),
                Kernels::Portable => PORTABLE_ROWS,
            },
            slice_tiles,
            slot_to_row: walk.region(slots),
            row_to_slot: walk.region(chunks * room.rows),
            row_offsets: walk.region(chunks * (local + 1)),
            row_counts: walk.region(chunks * local),
            active_experts: walk.region(chunks * local),
            tile_starts: walk.region(chunks * (local + 1)),
            num_active: walk.region(chunks),
            chunk_first_token: walk.region(chunks + 1),
            slice_tiles_found: walk.region(chunks),
            segment_counts: walk.region(segment_room * local),
            segment_totals: walk.region(segment_room),
            h: Operand::new(&mut walk, Form::of(config.mode, kernels), room.rows, config.intermediate_size),
            x_by_row: room.x_by_row,
            x: Operand::default(),
            sums: Region::default(),
            workspace_size: 0,
        };
        let x_rows = if room.x_by_row { room.rows } else { max_tokens };
        let x_form = Form::of_x(config.mode, kernels);
        if kernels == Kernels::Hopper {
            // GEMM1 has read a chunk's x before GEMM2 writes its y: they share their place.
            let mut x_walk = walk.clone();
            plan.x = x_form.map_or_else(Operand::default, |form| Operand::new(&mut x_walk, form, x_rows, hidden));
            plan.sums = walk.region(room.shared_bytes.div_ceil(4));
            plan.workspace_size = walk.size().max(x_walk.size());
        } else {
            plan.x = x_form.map_or_else(Operand::default, |form| Operand::new(&mut walk, form, x_rows, hidden));
            plan.sums = walk.region(room.shared_bytes.div_ceil(4));
            plan.workspace_size = walk.size();
        }
        plan
    }

    /// Where GEMM2 writes, and combine reads: bf16 [rows, columns of the slice].
    pub fn y(&self, base: *mut u8) -> *mut c_void {
        self.sums.pointer(base).cast()
    }

    /// How many values of y there is room for.
    pub fn y_room(&self) -> i64 {
        2 * self.sums.len as i64
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
        assert!(plan.rows >= 3 * 8192 * 6 / 16, "one chunk holds 1.5 times a uniform routing's slots: {}", plan.rows);
        assert_eq!(plan.slice_tiles, 56, "two slices at most");
        assert!(plan.y_room() >= 8192 * 6 / 8 * 104 / 100 * 7168, "one for 4 % more rows than a uniform routing has");
    }

    #[test]
    fn x_lies_by_token_until_a_chunks_rows_are_fewer() {
        let plan = |mode, tokens| LayerPlan::new(Kernels::Hopper, &layer(7168, 3072, 384, 48, mode), tokens);
        assert!(!plan(Mode::Nvfp4, 4096).x_by_row && !plan(Mode::Fp8, 8192).x_by_row);
        let by_row = plan(Mode::Nvfp4, 8192);
        assert!(
            by_row.x_by_row && by_row.chunk_slots >= 8192 * 6 / 8 * 115 / 100,
            "15 % more than uniform routing has"
        );
        assert!(by_row.sums.len * 4 >= by_row.rows * (2 * 7168 + 4));
        assert!(plan(Mode::Fp8, 65_536).workspace_size < 160_000_000, "bounded, however many tokens");
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
