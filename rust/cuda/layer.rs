//! One MoE layer on a CUDA device.

use super::Stream;
use super::device::{Buffer, Device};
use super::kernels::{Kernel, params};
use super::plan::LayerPlan;
use super::storage::{ExpertSlice, Matrix};
use super::tiles::GemmKind;
use crate::config::{LayerConfig, Mode, ScalePolicy};
use crate::error::{Error, Result};
use crate::layer::{Calibration, InputScales, LayerArgs, LayerWeights, Storage};
use crate::workspace::{WORKSPACE_ALIGNMENT, check_workspace};
use std::sync::Arc;

/// Launch of row-wise kernels.
const THREADS: u32 = 256;
/// Blocks a multiprocessor for kernels that stride over rows.
const BLOCKS_PER_SM: u32 = 8;

/// What a layer keeps on the device beside its weights.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
struct LayerState {
    /// Largest finite inputs seen by calibration; -1 = none.
    x_amax: f32,
    h_amax: f32,
    /// Scales that prepare refused.
    bad_scales: u64,
}

const FRESH: LayerState = LayerState { x_amax: -1.0, h_amax: -1.0, bad_scales: 0 };

/// A layer, with or without weights.
#[derive(Debug)]
pub struct CudaLayer {
    device: Arc<Device>,
    slice: ExpertSlice,
    state: Buffer,
    /// Prepared weights; NULL before prepare.
    storage: *mut u8,
}

// SAFETY: device pointers are read by kernels only.
unsafe impl Send for CudaLayer {}
// SAFETY: as above; shared use only launches kernels.
unsafe impl Sync for CudaLayer {}

impl CudaLayer {
    /// Open the device, load its kernels.
    pub fn new(ordinal: i32, config: &LayerConfig) -> Result<Self> {
        let device = Device::get(ordinal)?;
        let state = device.allocate(size_of::<LayerState>())?;
        let slice = ExpertSlice::new(config.hidden_size, config.intermediate_size);
        Ok(CudaLayer { device, slice, state, storage: std::ptr::null_mut() })
    }

    /// Bytes that prepare fills: an equal slice for each local expert.
    pub fn storage_size(&self, config: &LayerConfig) -> u64 {
        self.slice.stride * config.num_local_experts as u64
    }

    /// Workspace bytes for up to `max_tokens` tokens.
    pub fn workspace_size(&self, config: &LayerConfig, max_tokens: usize) -> u64 {
        LayerPlan::new(config, max_tokens).workspace_size
    }

    /// Are there weights?
    pub fn is_prepared(&self) -> bool {
        !self.storage.is_null()
    }

    /// Bring weights into kernel layout. Waits for the stream, because it refuses broken scales.
    ///
    /// # Safety
    /// The tensors are device memory as the header states, and so is `storage` for as long as the layer.
    pub unsafe fn prepare(
        &mut self,
        config: &LayerConfig,
        weights: &LayerWeights,
        storage: Storage,
        stream: Stream,
    ) -> Result<()> {
        let storage = check_storage(storage, self.storage_size(config), "Ask nvfp4_moe_layer_storage_size.")?;
        let _entered = self.device.enter()?;
        refuse_capture(&self.device, stream)?;
        let state: *mut LayerState = self.state.pointer();
        // SAFETY: the layer's own state; the tensors by contract.
        unsafe {
            self.device.write(state, FRESH, stream)?;
            let bad_scales = (&raw mut (*state)).cast::<u8>().wrapping_add(8).cast::<u64>();
            let matrices = [
                (self.slice.w13, weights.w13.pointer, weights.w13_block_scale.pointer, true),
                (self.slice.w2, weights.w2.pointer, weights.w2_block_scale.pointer, false),
            ];
            for (matrix, codes, block_scale, gated) in matrices {
                let params = params::PrepareParams {
                    num_local_experts: config.num_local_experts as i32,
                    expert_stride: self.slice.stride,
                    gated: gated.into(),
                    up_first: weights.up_first.into(),
                    ..prepare_params(&matrix, codes, block_scale, storage, bad_scales)
                };
                launch_prepare(&self.device, &params, stream)?;
            }
            let params = params::PrepareAlphaParams {
                w13_global_scale: weights.w13_global_scale.pointer,
                w2_global_scale: weights.w2_global_scale.pointer,
                alphas: self.slice.alphas.pointer(storage),
                expert_stride: self.slice.stride,
                bad_scales,
                num_local_experts: config.num_local_experts as i32,
                up_first: weights.up_first.into(),
            };
            let blocks = params.num_local_experts.unsigned_abs().div_ceil(THREADS);
            self.device.launch(Kernel::PrepareAlphas, [blocks, 1, 1], THREADS, 0, stream, &params)?;
            refuse_bad_scales(self.device.read(state, stream)?.bad_scales)?;
        }
        self.storage = storage;
        Ok(())
    }

    /// Enqueue the layer.
    ///
    /// # Safety
    /// The pointers of `args` are device memory as the header states.
    pub unsafe fn forward(&self, config: &LayerConfig, scales: InputScales, args: &LayerArgs, stream: Stream) -> Result<()> {
        // SAFETY: by contract.
        unsafe { self.enqueue(config, scales, args, stream, false) }
    }

    /// Enqueue the layer in mode bf16, and widen the calibration by both GEMMs' inputs.
    ///
    /// # Safety
    /// As [`CudaLayer::forward`].
    pub unsafe fn calibrate(&self, config: &LayerConfig, args: &LayerArgs, stream: Stream) -> Result<()> {
        // SAFETY: by contract.
        unsafe { self.enqueue(config, InputScales::default(), args, stream, true) }
    }

    /// What calibration saw on all streams; forgets it. Waits for the device's work.
    pub fn take_calibration(&mut self) -> Result<Calibration> {
        let _entered = self.device.enter()?;
        let state: *mut LayerState = self.state.pointer();
        self.device.synchronize()?;
        // SAFETY: the layer's own state.
        let seen = unsafe { self.device.read(state, std::ptr::null_mut()) }?;
        // SAFETY: as above.
        unsafe { self.device.write(state, FRESH, std::ptr::null_mut()) }?;
        Ok(Calibration { x_amax: seen.x_amax, h_amax: seen.h_amax })
    }

    unsafe fn enqueue(
        &self,
        config: &LayerConfig,
        scales: InputScales,
        args: &LayerArgs,
        stream: Stream,
        observe: bool,
    ) -> Result<()> {
        let plan = LayerPlan::new(config, args.num_tokens);
        let _entered = self.device.enter()?;
        let base = workspace(&self.device, args.workspace, args.workspace_size, plan.workspace_size, stream)?;
        let call = Call { layer: self, config, scales, args, stream, plan: &plan, base };
        // SAFETY: by contract.
        unsafe {
            call.route()?;
            if config.mode == Mode::Nvfp4 {
                call.quantize_x()?;
            }
            for chunk in 0..plan.chunks {
                call.gemm1(chunk)?;
                if config.mode == Mode::Nvfp4 {
                    call.quantize_h(chunk)?;
                }
                if observe {
                    call.observe(chunk)?;
                }
                for first_tile in (0..self.slice.w2.m_tiles).step_by(plan.slice_tiles) {
                    let end_tile = (first_tile + plan.slice_tiles).min(self.slice.w2.m_tiles);
                    call.gemm2(chunk, first_tile, end_tile)?;
                    call.combine(chunk, first_tile, end_tile)?;
                }
            }
        }
        Ok(())
    }
}

/// One forward.
struct Call<'a> {
    layer: &'a CudaLayer,
    config: &'a LayerConfig,
    scales: InputScales,
    args: &'a LayerArgs,
    stream: Stream,
    plan: &'a LayerPlan,
    base: *mut u8,
}

impl Call<'_> {
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
            let warps = (super::kernels::ROUTE_SHARED_BYTES / warp_bytes).clamp(1, THREADS / 32);
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
        use super::storage::TILE;
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

/// The caller's workspace, checked, or the device's shared one.
pub fn workspace(device: &Device, own: *mut u8, own_size: u64, size: u64, stream: Stream) -> Result<*mut u8> {
    if own.is_null() {
        return device.shared_workspace(size, stream);
    }
    check_workspace(own, own_size, size)?;
    Ok(own)
}

/// The rules for storage that a caller brings.
pub fn check_storage(storage: Storage, needed: u64, remedy: &'static str) -> Result<*mut u8> {
    if storage.size < needed {
        return Err(Error::WorkspaceTooSmall { what: "storage_size", given: storage.size, needed, remedy });
    }
    let storage = storage.pointer;
    let misaligned = storage.addr() as u64 % WORKSPACE_ALIGNMENT;
    if storage.is_null() || misaligned != 0 {
        let rule = format!("it must be device memory at a multiple of {WORKSPACE_ALIGNMENT} bytes, and is {misaligned} past one");
        return Err(Error::argument("storage", format!("{storage:p}"), rule, "Align the allocation."));
    }
    Ok(storage)
}

/// Prepare reads back what it found, which a graph cannot.
pub fn refuse_capture(device: &Device, stream: Stream) -> Result<()> {
    if device.is_capturing(stream)? {
        let rule = "prepare waits for the stream, which a capture forbids";
        return Err(Error::argument("stream", "capturing", rule, "Prepare before capturing."));
    }
    Ok(())
}

/// Broken scales are a broken file.
pub fn refuse_bad_scales(bad_scales: u64) -> Result<()> {
    if bad_scales == 0 {
        return Ok(());
    }
    let rule = "it must be 0: block scales are finite and not negative, global scales finite and positive";
    Err(Error::argument("number of broken weight scales", bad_scales, rule, "Check the checkpoint's tensors."))
}

/// The parameters that one matrix settles.
pub fn prepare_params(
    matrix: &Matrix,
    codes: *const u8,
    block_scale: *const u8,
    storage: *mut u8,
    bad_scales: *mut u64,
) -> params::PrepareParams {
    params::PrepareParams {
        codes,
        block_scale,
        tiles: matrix.tiles.pointer(storage),
        bad_scales,
        num_local_experts: 1,
        rows: matrix.rows as i32,
        cols: matrix.cols as i32,
        num_m_tiles: matrix.m_tiles as i32,
        num_slabs: matrix.slabs as i32,
        ..Default::default()
    }
}

/// Enqueue the repacking of one matrix of all experts.
///
/// # Safety
/// As [`Device::launch`].
pub unsafe fn launch_prepare(device: &Device, params: &params::PrepareParams, stream: Stream) -> Result<()> {
    let grid = [params.num_slabs as u32, params.num_m_tiles as u32, params.num_local_experts as u32];
    // SAFETY: by contract.
    unsafe { device.launch(Kernel::PrepareTiles, grid, 128, 0, stream, params) }
}
