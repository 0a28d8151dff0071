// SPDX-License-Identifier: Apache-2.0
//! How a call is cut up, and where its scratch lies.
//!
//! Tokens are processed in *chunks*: contiguous ranges whose routed slots fit the rows of the workspace. Routing finds
//! their borders on the device; the host launches as many as the worst routing needs, and empty ones return at once.

use super::kernels::{Kernel, QUANTIZE_ROWS, QUANTIZE_ROWS_DECODED, QUANTIZE_ROWS_IN_LINES, params};
use crate::config::{LayerConfig, LinearConfig};
use crate::error::{Error, Result};
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

/// How the rows of a GEMM's input lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Form {
    /// bf16.
    #[default]
    Bf16,
    /// NVFP4, decoded to bf16 but for its global scale.
    Decoded,
    /// NVFP4 with 128x4 swizzled block scales.
    Swizzled,
    /// NVFP4 in lines of 128 bytes (`kernels/common/lines.cuh`).
    Lines,
    /// bf16 in such lines.
    Bf16Lines,
    /// e4m3, so many bytes a row.
    Fp8 {
        /// From one row to the next.
        row_bytes: usize,
    },
}

/// What a family of kernels asks of a layer's plan.
#[derive(Debug, Clone, Copy)]
pub struct PlanRules {
    /// Each expert's rows are padded to a multiple of this.
    pub row_alignment: usize,
    /// Of GEMM1's input; `None` where that is the caller's x.
    pub x: Option<Form>,
    /// Does x lie by gathered row? Else by token, while a call has fewer tokens than a chunk has rows.
    pub x_by_row: bool,
    /// May x lie where GEMM2 writes y, which has read a chunk's x before it?
    pub x_in_place_of_y: bool,
    /// Of GEMM2's input.
    pub h: Form,
    /// Elements of bf16 from one row of h to the next.
    pub h_stride: usize,
    /// Does GEMM1 leave rows of bf16, for a quantiser that makes `h` of them?
    pub h_rows: bool,
    /// Does GEMM1 quantise h itself, by a static scale? The quantiser of x copies that for all of the kernel, since the host may
    /// set another meanwhile.
    pub gemm1_quantizes: bool,
    /// The tile whose work follows its rows: lists of such tiles begin with the widest.
    pub widest_first_at: Option<u32>,
    /// Does GEMM1 leave its sums in f32, for a kernel that activates?
    pub gemm1_sums: bool,
}

/// Rows of a GEMM's input: values, block scales and global scales, as far as the form has them.
#[derive(Debug, Default, Clone)]
pub struct Operand {
    form: Form,
    pub rows: Region<u8>,
    pub block_scale: Region<u8>,
    pub global_scale: Region<f32>,
    /// In lines: rows from one line to the next of the same row. Else 0.
    pub line_rows: usize,
}

impl Operand {
    fn new(walk: &mut Walk, form: Form, rows: usize, cols: usize) -> Self {
        let in_lines = matches!(form, Form::Lines | Form::Bf16Lines);
        let line_rows = if in_lines { rows.next_multiple_of(params::SM100_ROW_ALIGNMENT as usize) } else { 0 };
        let lines =
            |cols_of_a_line: u32| cols.div_ceil(cols_of_a_line as usize) * line_rows * params::LINE_BYTES as usize;
        let (bytes, scales) = match form {
            Form::Bf16 | Form::Decoded => (rows * 2 * cols, 0),
            Form::Fp8 { row_bytes } => (rows * row_bytes, 0),
            Form::Swizzled => (rows * cols / 2, sf_size_128x4(rows as u64, (cols / BLOCK_SIZE) as u64) as usize),
            Form::Lines => {
                let steps = cols.div_ceil(params::LINE_STEP_COLS as usize);
                let scales = steps * line_rows * params::LINE_STEP_BYTES as usize + params::LINE_SCALE_SLACK as usize;
                (lines(params::LINE_CODE_COLS), scales)
            }
            Form::Bf16Lines => (lines(params::LINE_BF16_COLS) + params::LINE_BF16_SLACK as usize, 0),
        };
        Operand {
            form,
            rows: walk.region(bytes),
            block_scale: walk.region(scales),
            global_scale: walk.region(if matches!(form, Form::Bf16 | Form::Bf16Lines) { 0 } else { rows }),
            line_rows,
        }
    }

    /// The kernel that quantises rows to NVFP4 in this form.
    pub fn quantizer(&self) -> Kernel {
        match self.form {
            Form::Swizzled => QUANTIZE_ROWS,
            Form::Lines => QUANTIZE_ROWS_IN_LINES,
            _ => QUANTIZE_ROWS_DECODED,
        }
    }

    /// As what quantising to NVFP4 writes.
    pub fn as_output(&self, base: *mut u8) -> params::QuantizeParams {
        let row_scale = self.global_scale.pointer(base);
        match self.form {
            Form::Swizzled | Form::Lines => params::QuantizeParams {
                packed: self.rows.pointer(base),
                block_scale: self.block_scale.pointer(base),
                row_scale,
                line_rows: self.line_rows as i32,
                ..Default::default()
            },
            _ => params::QuantizeParams { decoded: self.rows.pointer(base).cast(), row_scale, ..Default::default() },
        }
    }
}

/// Routing counts every local expert in the shared memory of one block, which has room for so many bytes of counters.
pub fn check_local_experts(local: usize, routing_bytes: u32) -> Result<()> {
    let most = routing_bytes as usize / size_of::<i32>();
    if local <= most {
        return Ok(());
    }
    let rule = format!("on CUDA it must be at most {most}, whose counters fit {routing_bytes} bytes of shared memory");
    Err(Error::argument("num_local_experts", local, rule, "Spread the experts over more ranks."))
}

/// Rows of a chunk where a call takes more, so many bytes of h and y each: as many as [`CHUNK_BYTES`] hold. Or those of a power
/// of two of tokens and of a segment, if that is up to 5 % more: calls have such numbers, and so take a chunk less.
fn chunk_rows(row_bytes: usize, top_k: usize) -> usize {
    let rows = CHUNK_BYTES / row_bytes;
    let even = ((rows / top_k).next_power_of_two() + SMALL_TOKENS / 32) * top_k;
    if even <= rows + rows / 20 { even } else { rows }
}

/// The plan of one MoE forward.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct LayerPlan {
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
    /// Do lists of tiles begin with the widest?
    pub widest_first: bool,
    pub slot_to_row: Region<i32>,
    pub row_to_slot: Region<i32>,
    pub row_offsets: Region<i32>,
    pub row_counts: Region<i32>,
    pub groups: Region<params::RowGroup>,
    pub chunk_first_token: Region<i32>,
    pub segment_counts: Region<i32>,
    pub segment_totals: Region<i32>,
    pub h: Operand,
    /// Elements of bf16 from one row of h to the next; a row of e4m3 has room in the place of its bf16.
    pub h_stride: usize,
    /// Does `x` hold a chunk's gathered rows? Else its tokens.
    pub x_by_row: bool,
    /// GEMM1's input where it is not the caller's x, of a chunk.
    pub x: Operand,
    /// GEMM1 quantises h by the scale that the quantiser of x left where `h` has its first row's.
    pub gemm1_quantizes: bool,
    /// bf16 rows of h that a quantiser reads, which makes `h` of them. Empty where GEMM1 leaves h itself.
    pub h_rows: Region<u16>,
    /// bf16: y, GEMM2's result; before that, where the activation is a kernel of its own, f32: GEMM1's gate and up.
    pub gemm_out: Region<f32>,
    pub workspace_size: u64,
}

impl LayerPlan {
    /// For calls of up to `max_tokens` tokens. Every region grows with `max_tokens`, so a larger plan's workspace serves
    /// smaller calls.
    pub fn new(rules: &PlanRules, config: &LayerConfig, tile_rows: u32, max_tokens: usize) -> Self {
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
        let roomy = chunk_rows(2 * inter + 2 * hidden, config.top_k)
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
        let row_alignment = rules.row_alignment;
        let rows = (slot_rows + (row_alignment - 1) * local.min(slot_rows)) / row_alignment * row_alignment;
        let gemm1_bytes = if rules.gemm1_sums { 4 * rows * config.shape().w13_rows() } else { 0 };
        let gemm_out_len = (2 * rows * hidden).max(gemm1_bytes) / 4;
        let h_stride = rules.h_stride;
        let x_by_row = rules.x_by_row || rows < max_tokens;
        let x_rows = if x_by_row { rows } else { max_tokens };

        let mut walk = Walk::default();
        let mut plan = LayerPlan {
            rows,
            row_alignment,
            chunks,
            chunk_slots,
            segments: max_tokens.div_ceil(segment_tokens),
            segment_tokens,
            tile_rows,
            widest_first: rules.widest_first_at == Some(tile_rows),
            slot_to_row: walk.region(slots),
            row_to_slot: walk.region(chunks * rows),
            row_offsets: walk.region(chunks * (local + 1)),
            row_counts: walk.region(chunks * local),
            groups: walk.region(chunks * (local + 2)),
            chunk_first_token: walk.region(chunks + 1),
            segment_counts: walk.region(segment_room * local),
            segment_totals: walk.region(segment_room),
            h: Operand::new(&mut walk, rules.h, rows, h_stride),
            h_stride,
            x_by_row,
            x: Operand::default(),
            gemm1_quantizes: rules.gemm1_quantizes,
            h_rows: Region::default(),
            gemm_out: Region::default(),
            workspace_size: 0,
        };
        let mut shared = walk.clone();
        let x_walk = if rules.x_in_place_of_y { &mut shared } else { &mut walk };
        plan.x = rules.x.map_or_else(Operand::default, |form| Operand::new(x_walk, form, x_rows, hidden));
        // GEMM2, which writes y, comes after its quantiser.
        plan.h_rows = x_walk.region(if rules.h_rows { rows * inter } else { 0 });
        plan.gemm_out = walk.region(gemm_out_len);
        plan.workspace_size = walk.size().max(shared.size());
        plan
    }

    /// Where GEMM2 writes, and combine reads: bf16 [rows, hidden].
    pub fn y(&self, base: *mut u8) -> *mut c_void {
        self.gemm_out.pointer(base).cast()
    }

    /// Where bf16 h of so many columns lies, as parts that each have a piece of every row: byte offset, elements from one
    /// row to the next, columns. Lines are padded with zeros.
    pub fn h_parts(&self, cols: usize) -> Vec<(usize, usize, usize)> {
        let (line_rows, line_cols) = (self.h.line_rows, params::LINE_BF16_COLS as usize);
        if line_rows == 0 {
            return vec![(0, self.h_stride, cols)];
        }
        let line_bytes = line_rows * params::LINE_BYTES as usize;
        (0..cols.div_ceil(line_cols)).map(|line| (line * line_bytes, line_cols, line_cols)).collect()
    }

    /// Shared memory with which one block of threads routes; `None` where that is more than a block has, or it takes more
    /// kernels.
    pub fn one_block_routing(&self, config: &LayerConfig, routing_bytes: u32) -> Option<u32> {
        let (segments, local) = (self.segments, config.num_local_experts);
        // Counters of each segment and of all; then expert and rank of each slot, 8-byte aligned.
        let counters = ((segments + 1) * local).next_multiple_of(2) * 4;
        let bytes = counters + segments * self.segment_tokens * config.top_k * 8;
        let fits = self.chunks == 1 && segments <= 32 && bytes <= routing_bytes as usize;
        fits.then_some(bytes as u32)
    }

    /// Warps of a block with which one cluster of blocks routes, and its shared memory. `None` where that is more than a block
    /// has; or where warps are so few for the experts, whose counters they sum, that three kernels are as fast (measured on an
    /// H200: 33 segments of 256 experts take 24 us for 21, and 64 take 21 for 22).
    pub fn cluster_routing(&self, config: &LayerConfig, routing_bytes: u32) -> Option<(u32, u32)> {
        let local = config.num_local_experts;
        let warps = self.segments.div_ceil(params::ROUTE_CLUSTER_BLOCKS as usize);
        // Expert and rank of each slot; counters of each segment, and two more of each expert.
        let bytes = warps * self.segment_tokens * config.top_k * 8 + (warps * (local | 1) + 2 * local) * 4;
        let fits = warps <= params::ROUTE_SMALL_THREADS as usize / 32 && bytes <= routing_bytes as usize;
        (fits && local <= 32 * warps).then_some((warps as u32, bytes as u32))
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
    /// For calls of up to `max_tokens` tokens; `x` is the form of a quantised input.
    pub fn new(x: Option<Form>, config: &LinearConfig, max_tokens: usize) -> Self {
        let mut walk = Walk::default();
        let x = x.map_or_else(Operand::default, |form| Operand::new(&mut walk, form, max_tokens, config.in_features));
        LinearPlan { x, workspace_size: walk.size() }
    }
}
