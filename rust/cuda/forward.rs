//! One MoE forward: route, (quantise,) and for each chunk GEMM1, (quantise,) and by slices GEMM2 and combine.

use super::Stream;
use super::kernels::{Kernel, ROUTE_SHARED_BYTES, params};
use super::layer::CudaLayer;
use super::plan::LayerPlan;
use super::storage::{Matrix, TILE};
use super::tiles::GemmKind;
use super::{BLOCKS_PER_SM, THREADS};
use crate::config::{LayerConfig, Mode, ScalePolicy};
use crate::error::Result;
use crate::layer::{InputScales, LayerArgs};

/// One forward: what it computes, and the workspace at `base`.
#[allow(missing_docs)]
pub struct Call<'a> {
    pub layer: &'a CudaLayer,
    pub config: &'a LayerConfig,
    pub scales: InputScales,
    pub args: &'a LayerArgs,
    pub stream: Stream,
    pub plan: &'a LayerPlan,
    pub base: *mut u8,
}

impl Call<'_> {
    /// Enqueue every step; with `observe`, calibration's too.
    ///
    /// # Safety
    /// The pointers of `args` are device memory as the header states, `base` is a workspace of the plan's size.
    pub unsafe fn run(&self, observe: bool) -> Result<()> {
        let (config, plan) = (self.config, self.plan);
        // SAFETY: by contract.
        unsafe {
            self.route()?;
            if config.mode == Mode::Nvfp4 {
                self.quantize_x()?;
            }
            for chunk in 0..plan.chunks {
                self.gemm1(chunk)?;
                if config.mode == Mode::Nvfp4 {
                    self.quantize_h(chunk)?;
                }
                if observe {
                    self.observe(chunk)?;
                }
                for first_tile in (0..self.layer.slice.w2.m_tiles).step_by(plan.slice_tiles) {
                    let end_tile = (first_tile + plan.slice_tiles).min(self.layer.slice.w2.m_tiles);
                    self.gemm2(chunk, first_tile, end_tile)?;
                    self.combine(chunk, first_tile, end_tile)?;
                }
            }
        }
        Ok(())
    }

    unsafe fn launch<P>(&self, kernel: Kernel, grid: [u32; 3], threads: u32, shared: u32, params: &P) -> Result<()> {
        // SAFETY: by contract of the caller.
        unsafe { self.layer.device.launch(kernel, grid, threads, shared, self.stream, params) }
    }

    /// Blocks that stride over up to `rows` rows.
    fn row_blocks(&self, rows: usize) -> [u32; 3] {
        [(rows as u32).min(self.layer.device.num_sms * BLOCKS_PER_SM), 1, 1]
    }

    unsafe fn route(&self) -> Result<()> {
        let (plan, args, config) = (self.plan, self.args, self.config);
        let params = params::RouteParams {
            tables: params::RoutingTables {
                slot_to_row: plan.slot_to_row.pointer(self.base),
                row_to_slot: plan.row_to_slot.pointer(self.base),
                row_offsets: plan.row_offsets.pointer(self.base),
                row_counts: plan.row_counts.pointer(self.base),
                active_experts: plan.active_experts.pointer(self.base),
                tile_starts: plan.tile_starts.pointer(self.base),
                num_active: plan.num_active.pointer(self.base),
                chunk_first_token: plan.chunk_first_token.pointer(self.base),
            },
            segment_counts: plan.segment_counts.pointer(self.base),
            segment_totals: plan.segment_totals.pointer(self.base),
            status: self.layer.device.status(),
            topk_ids: args.topk_ids.cast(),
            topk_ids_row_stride: args.topk_ids_row_stride as i64,
            expert_map: args.expert_map,
            topk_ids_are_i64: args.topk_ids_are_i64.into(),
            num_tokens: args.num_tokens as i32,
            top_k: config.top_k as i32,
            num_experts: config.num_experts as i32,
            num_local_experts: config.num_local_experts as i32,
            first_local_expert: config.first_local_expert as i32,
            num_segments: plan.segments as i32,
            segment_tokens: plan.segment_tokens as i32,
            chunk_slots: plan.chunk_slots as i32,
            num_chunks: plan.chunks as i32,
            chunk_rows: plan.rows as i32,
            row_alignment: 1,
            tile_rows: plan.tile_rows as i32,
            reserved: 0,
        };
        let warp_bytes = config.num_local_experts as u32 * 4;
        // SAFETY: the tables are regions of the workspace; ids and map by contract.
        unsafe {
            if plan.routes_in_one_block(config.num_local_experts) {
                // The scan wants threads even where segments are few.
                let threads = (plan.segments as u32 * 32).max(THREADS);
                return self.launch(Kernel::RouteSmall, [1, 1, 1], threads, threads / 32 * warp_bytes, &params);
            }
            let warps = (ROUTE_SHARED_BYTES / warp_bytes).clamp(1, THREADS / 32);
            let blocks = [(plan.segments as u32).div_ceil(warps), 1, 1];
            self.launch(Kernel::RouteCount, blocks, warps * 32, warps * warp_bytes, &params)?;
            self.launch(Kernel::RouteScan, [1, 1, 1], 1024, 0, &params)?;
            self.launch(Kernel::RouteScatter, blocks, warps * 32, warps * warp_bytes, &params)
        }
    }

    /// What a static policy quantises with; 0 asks the kernel for each row's own.
    fn static_scale(&self, scale: f32) -> f32 {
        if self.config.scale_policy == ScalePolicy::Static { scale } else { 0.0 }
    }

    unsafe fn quantize_x(&self) -> Result<()> {
        let (plan, args) = (self.plan, self.args);
        let params = params::QuantizeParams {
            source: params::RowSource {
                slot_to_row: plan.slot_to_row.pointer(self.base),
                num_rows: args.num_tokens as i32,
                top_k: self.config.top_k as i32,
                ..Default::default()
            },
            status: self.layer.device.status(),
            x: args.x.cast(),
            x_row_stride: args.x_row_stride as i64,
            decoded: plan.x.pointer(self.base).cast(),
            row_scale: plan.x_scale.pointer(self.base),
            static_scale: self.static_scale(self.scales.w13),
            num_cols: self.config.hidden_size as i32,
            ..Default::default()
        };
        // SAFETY: regions of the workspace; x by contract.
        unsafe { self.launch(Kernel::QuantizeRows, self.row_blocks(args.num_tokens), THREADS, 0, &params) }
    }

    /// The rows of h in a chunk: as many as routing found.
    fn h_rows(&self, chunk: usize) -> params::RowSource {
        let local = self.config.num_local_experts;
        params::RowSource {
            num_rows_on_device: self.plan.row_offsets.pointer(self.base).wrapping_add(chunk * (local + 1) + local),
            top_k: self.config.top_k as i32,
            ..Default::default()
        }
    }

    fn row_to_slot(&self, chunk: usize) -> *const i32 {
        self.plan.row_to_slot.pointer(self.base).wrapping_add(chunk * self.plan.rows)
    }

    /// In place: each row of h becomes its own decoded NVFP4 form.
    unsafe fn quantize_h(&self, chunk: usize) -> Result<()> {
        let inter = self.config.intermediate_size;
        let h = self.plan.h.pointer(self.base);
        let params = params::QuantizeParams {
            source: self.h_rows(chunk),
            status: self.layer.device.status(),
            row_to_token_slot: self.row_to_slot(chunk),
            x: h.cast_const().cast(),
            x_row_stride: inter as i64,
            decoded: h.cast(),
            row_scale: self.plan.h_scale.pointer(self.base),
            static_scale: self.static_scale(self.scales.w2),
            num_cols: inter as i32,
            ..Default::default()
        };
        // SAFETY: regions of the workspace.
        unsafe { self.launch(Kernel::QuantizeRows, self.row_blocks(self.plan.rows), THREADS, 0, &params) }
    }

    /// Calibration: the largest inputs of both GEMMs over a chunk's rows.
    unsafe fn observe(&self, chunk: usize) -> Result<()> {
        let amax: *mut f32 = self.layer.state.pointer();
        let x = params::AmaxParams {
            source: params::RowSource { row_to_slot: self.row_to_slot(chunk), ..self.h_rows(chunk) },
            x: self.args.x.cast(),
            x_row_stride: self.args.x_row_stride as i64,
            amax,
            num_cols: self.config.hidden_size as i32,
            reserved: 0,
        };
        let h = params::AmaxParams {
            source: self.h_rows(chunk),
            x: self.plan.h.pointer(self.base).cast_const().cast(),
            x_row_stride: self.config.intermediate_size as i64,
            amax: amax.wrapping_add(1),
            num_cols: self.config.intermediate_size as i32,
            reserved: 0,
        };
        let blocks = self.row_blocks(self.plan.rows);
        // SAFETY: regions of the workspace, the layer's own state; x by contract.
        unsafe {
            self.launch(Kernel::AmaxRows, blocks, THREADS, 0, &x)?;
            self.launch(Kernel::AmaxRows, blocks, THREADS, 0, &h)
        }
    }

    /// What both GEMMs share.
    fn grouped(&self, chunk: usize, matrix: &Matrix) -> params::GemmParams {
        let (plan, local, base) = (self.plan, self.config.num_local_experts, self.base);
        params::GemmParams {
            tiles: matrix.tiles.pointer(self.layer.storage),
            expert_stride: self.layer.slice.stride,
            alphas: self.layer.slice.alphas.pointer(self.layer.storage),
            row_offsets: plan.row_offsets.pointer(base).wrapping_add(chunk * (local + 1)),
            row_counts: plan.row_counts.pointer(base).wrapping_add(chunk * local),
            active_experts: plan.active_experts.pointer(base).wrapping_add(chunk * local),
            tile_starts: plan.tile_starts.pointer(base).wrapping_add(chunk * (local + 1)),
            num_active: plan.num_active.pointer(base).wrapping_add(chunk),
            top_k: self.config.top_k as i32,
            k_valid: matrix.cols as i32,
            num_slabs: matrix.slabs as i32,
            first_m_tile: 0,
            end_m_tile: matrix.m_tiles as i32,
            ..Default::default()
        }
    }

    unsafe fn launch_gemm(&self, kind: GemmKind, params: &params::GemmParams) -> Result<()> {
        // As many CTAs as tiles in the worst case, up to one a multiprocessor: each strides over the tiles there are.
        let rows = self.plan.tile_rows as usize;
        let row_tiles = self.config.num_local_experts.min(self.plan.rows) + self.plan.rows / rows;
        let tiles = row_tiles * (params.end_m_tile - params.first_m_tile) as usize;
        let blocks = (tiles as u32).clamp(1, self.layer.device.num_sms);
        let kernel = Kernel::GemmSm90(kind, self.plan.tile_rows);
        // SAFETY: by contract of the caller.
        unsafe {
            self.launch(kernel, [blocks, 1, 1], params::GEMM_SM90_THREADS, params::GEMM_SM90_SHARED_BYTES, params)
        }
    }

    unsafe fn gemm1(&self, chunk: usize) -> Result<()> {
        let (plan, args, config) = (self.plan, self.args, self.config);
        let quantised = config.mode == Mode::Nvfp4;
        let params = params::GemmParams {
            x: if quantised { plan.x.pointer(self.base).cast_const().cast() } else { args.x.cast() },
            x_row_stride: if quantised { config.hidden_size } else { args.x_row_stride } as i64,
            row_scale: if quantised { plan.x_scale.pointer(self.base) } else { std::ptr::null_mut() },
            row_to_slot: self.row_to_slot(chunk),
            out: plan.h.pointer(self.base).cast(),
            out_row_stride: config.intermediate_size as i64,
            features: config.intermediate_size as i32,
            swiglu_limit: config.swiglu.limit,
            swiglu_alpha: config.swiglu.alpha,
            swiglu_beta: config.swiglu.beta,
            ..self.grouped(chunk, &self.layer.slice.w13)
        };
        // SAFETY: regions of the workspace, prepared weights; x by contract.
        unsafe { self.launch_gemm(GemmKind::Gemm1, &params) }
    }

    /// Columns of y that weight tiles `first..end` make.
    fn slice_cols(&self, first: usize, end: usize) -> std::ops::Range<usize> {
        first * TILE..(end * TILE).min(self.config.hidden_size)
    }

    unsafe fn gemm2(&self, chunk: usize, first: usize, end: usize) -> Result<()> {
        let (plan, config) = (self.plan, self.config);
        let quantised = config.mode == Mode::Nvfp4;
        let shared = self.grouped(chunk, &self.layer.slice.w2);
        let params = params::GemmParams {
            alphas: shared.alphas.wrapping_add(2),
            x: plan.h.pointer(self.base).cast_const().cast(),
            x_row_stride: config.intermediate_size as i64,
            row_scale: if quantised { plan.h_scale.pointer(self.base) } else { std::ptr::null_mut() },
            out: plan.y.pointer(self.base).cast(),
            out_row_stride: self.slice_cols(first, end).len() as i64,
            features: config.hidden_size as i32,
            first_m_tile: first as i32,
            end_m_tile: end as i32,
            ..shared
        };
        // SAFETY: regions of the workspace, prepared weights.
        unsafe { self.launch_gemm(GemmKind::Gemm2, &params) }
    }

    unsafe fn combine(&self, chunk: usize, first: usize, end: usize) -> Result<()> {
        let (plan, args) = (self.plan, self.args);
        let cols = self.slice_cols(first, end);
        let params = params::CombineParams {
            slot_to_row: plan.slot_to_row.pointer(self.base),
            chunk_first_token: plan.chunk_first_token.pointer(self.base).wrapping_add(chunk),
            y: plan.y.pointer(self.base),
            topk_weights: args.topk_weights,
            topk_weights_row_stride: args.topk_weights_row_stride as i64,
            out: args.out.cast(),
            out_row_stride: args.out_row_stride as i64,
            y_row_stride: cols.len() as i32,
            first_col: cols.start as i32,
            num_cols: cols.len() as i32,
            top_k: self.config.top_k as i32,
        };
        let col_blocks = (cols.len() as u32 / 4).div_ceil(THREADS);
        let token_blocks = (args.num_tokens as u32).min(self.layer.device.num_sms * BLOCKS_PER_SM);
        // SAFETY: regions of the workspace; weights and out by contract.
        unsafe { self.launch(Kernel::Combine, [col_blocks, token_blocks, 1], THREADS, 0, &params) }
    }
}
