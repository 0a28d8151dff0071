//! One MoE forward: route, and for each chunk h, GEMM2's input, then y, its result, and combine. What both families of
//! kernels share is here; [`super::hopper`] and [`super::portable`] have the rest.

use super::device::Shape;
use super::kernels::{Kernel, ROUTE_SHARED_BYTES, params};
use super::layer::CudaLayer;
use super::plan::LayerPlan;
use super::storage::Matrix;
use super::{Stream, THREADS};
use crate::config::{Kernels, LayerConfig, ScalePolicy};
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
        let plan = self.plan;
        let hopper = plan.kernels == Kernels::Hopper;
        // SAFETY: by contract.
        unsafe {
            self.route()?;
            for chunk in 0..plan.chunks {
                if hopper {
                    self.hopper_h(chunk)?
                } else {
                    self.portable_h(chunk)?
                }
                if observe {
                    self.observe(chunk)?;
                }
                if hopper {
                    self.hopper_y(chunk)?
                } else {
                    self.portable_y(chunk)?
                }
                self.combine(chunk)?;
            }
        }
        Ok(())
    }

    pub(super) unsafe fn launch<P>(&self, kernel: Kernel, shape: Shape, params: &P) -> Result<()> {
        // SAFETY: by contract of the caller; what follows routing waits by itself.
        unsafe {
            match kernel {
                Kernel::RouteSmall | Kernel::RouteCount => self.layer.device.launch(kernel, shape, self.stream, params),
                _ => self.layer.device.launch_overlapping(kernel, shape, self.stream, params),
            }
        }
    }

    unsafe fn route(&self) -> Result<()> {
        let (plan, args, config) = (self.plan, self.args, self.config);
        let params = params::RouteParams {
            tables: params::RoutingTables {
                slot_to_row: plan.slot_to_row.pointer(self.base),
                row_to_slot: plan.row_to_slot.pointer(self.base),
                row_offsets: plan.row_offsets.pointer(self.base),
                row_counts: plan.row_counts.pointer(self.base),
                groups: plan.groups.pointer(self.base),
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
            row_alignment: plan.row_alignment as i32,
            tile_rows: plan.tile_rows as i32,
            widest_first: (plan.kernels == Kernels::Hopper && plan.tile_rows == params::GEMM_SM90_WIDEST_ROWS).into(),
        };
        let local = config.num_local_experts as u32;
        let warp_bytes = local * 4;
        // SAFETY: the tables are regions of the workspace; ids and map by contract.
        unsafe {
            if let Some(shared) = plan.one_block_routing(config) {
                // A warp for each segment, and a thread for each expert.
                let threads =
                    (plan.segments as u32 * 32).max(local.next_multiple_of(32).min(params::ROUTE_SMALL_THREADS));
                return self.launch(Kernel::RouteSmall, Shape::new([1, 1, 1], threads, shared), &params);
            }
            let warps = (ROUTE_SHARED_BYTES / warp_bytes).clamp(1, THREADS / 32);
            let blocks = [(plan.segments as u32).div_ceil(warps), 1, 1];
            let by_segments = Shape::new(blocks, warps * 32, warps * warp_bytes);
            self.launch(Kernel::RouteCount, by_segments, &params)?;
            self.launch(Kernel::RouteScan, Shape::new([1, 1, 1], params::ROUTE_SCAN_THREADS, 0), &params)?;
            self.launch(Kernel::RouteScatter, by_segments, &params)
        }
    }

    /// What a static policy quantises with; 0 asks the kernel for each row's own.
    pub(super) fn static_scale(&self, scale: f32) -> f32 {
        if self.config.scale_policy == ScalePolicy::Static { scale } else { 0.0 }
    }

    pub(super) fn swiglu(&self) -> params::SwigluParams {
        let swiglu = self.config.swiglu;
        params::SwigluParams { limit: swiglu.limit, alpha: swiglu.alpha, beta: swiglu.beta }
    }

    /// The rows of h in a chunk: as many as routing found.
    pub(super) fn h_rows(&self, chunk: usize) -> params::RowSource {
        let local = self.config.num_local_experts;
        params::RowSource {
            end_row_on_device: self.plan.row_offsets.pointer(self.base).wrapping_add(chunk * (local + 1) + local),
            top_k: self.config.top_k as i32,
            rows_known: 1,
            ..Default::default()
        }
    }

    /// A chunk's rows, or its tokens, of which quantisers visit those that are routed here.
    pub(super) fn quantizer_x(&self, chunk: usize) -> params::QuantizerInput {
        let first_token = self.plan.chunk_first_token.pointer(self.base).wrapping_add(chunk);
        let rows = match self.plan.x_by_row {
            true => params::RowSource { row_to_slot: self.row_to_slot(chunk), ..self.h_rows(chunk) },
            false => params::RowSource {
                first_row_on_device: first_token,
                end_row_on_device: first_token.wrapping_add(1),
                top_k: self.config.top_k as i32,
                ..Default::default()
            },
        };
        params::QuantizerInput {
            source: params::RowSource {
                slot_to_row: self.plan.slot_to_row.pointer(self.base),
                rows_known: (chunk > 0).into(), // the first chunk's quantiser follows routing
                ..rows
            },
            status: self.layer.device.status(),
            x: self.args.x.cast(),
            x_row_stride: self.args.x_row_stride as i64,
            ..Default::default()
        }
    }

    /// x in NVFP4, as the GEMMs of these kernels read it.
    ///
    /// # Safety
    /// As [`Call::run`].
    pub(super) unsafe fn quantize_x(&self, chunk: usize) -> Result<()> {
        let params = params::QuantizeParams {
            input: self.quantizer_x(chunk),
            static_scale: self.static_scale(self.scales.w13),
            num_cols: self.config.hidden_size as i32,
            ..self.plan.x.as_output(self.base, self.plan.kernels)
        };
        // SAFETY: by contract of the caller.
        unsafe { self.launch(Kernel::QuantizeRows, self.by_x_rows(), &params) }
    }

    /// A launch whose blocks stride over what [`Self::quantizer_x`] names.
    pub(super) fn by_x_rows(&self) -> Shape {
        self.layer.device.by_rows(if self.plan.x_by_row { self.plan.rows } else { self.args.num_tokens })
    }

    pub(super) fn row_to_slot(&self, chunk: usize) -> *const i32 {
        self.plan.row_to_slot.pointer(self.base).wrapping_add(chunk * self.plan.rows)
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
            x: self.plan.h.rows.pointer(self.base).cast_const().cast(),
            x_row_stride: self.plan.h_stride as i64,
            amax: amax.wrapping_add(1),
            num_cols: self.config.intermediate_size as i32,
            reserved: 0,
        };
        let by_rows = self.layer.device.by_rows(self.plan.rows);
        // SAFETY: regions of the workspace, the layer's own state; x by contract.
        unsafe {
            self.launch(Kernel::AmaxRows, by_rows, &x)?;
            self.launch(Kernel::AmaxRows, by_rows, &h)
        }
    }

    /// The grouped rows of a chunk, and the weight tiles of a matrix.
    pub(super) fn tile_list(&self, chunk: usize, matrix: &Matrix) -> params::TileList {
        let (plan, local, base) = (self.plan, self.config.num_local_experts, self.base);
        params::TileList {
            groups: plan.groups.pointer(base).wrapping_add(chunk * (local + 2)),
            last_group: local as i32 + 1,
            m_tiles: matrix.m_tiles as i32,
            tile_rows: plan.tile_rows as i32,
            ..Default::default()
        }
    }

    /// Tiles of the worst routing. As many blocks are launched, up to what runs at once; each strides over the tiles
    /// that there are.
    pub(super) fn worst_tiles(&self, list: &params::TileList) -> usize {
        let row_tiles =
            self.config.num_local_experts.min(self.plan.rows) + self.plan.rows / self.plan.tile_rows as usize;
        row_tiles * list.m_tiles as usize
    }

    unsafe fn combine(&self, chunk: usize) -> Result<()> {
        let (plan, args) = (self.plan, self.args);
        let params = params::CombineParams {
            slot_to_row: plan.slot_to_row.pointer(self.base),
            chunk_first_token: plan.chunk_first_token.pointer(self.base).wrapping_add(chunk),
            y: plan.y(self.base),
            topk_weights: args.topk_weights,
            topk_weights_row_stride: args.topk_weights_row_stride as i64,
            out: args.out.cast(),
            out_row_stride: args.out_row_stride as i64,
            hidden: self.config.hidden_size as i32,
            top_k: self.config.top_k as i32,
        };
        // Few tokens: blocks share a token's columns. Many: a block takes whole tokens.
        let blocks = self.layer.device.num_sms * params::COMBINE_BLOCKS_PER_SM;
        let tokens = args.num_tokens as u32;
        let col_blocks =
            blocks.div_ceil(tokens).min((self.config.hidden_size as u32 / params::COMBINE_COLUMNS).div_ceil(THREADS));
        let token_blocks = tokens.min(blocks / col_blocks);
        // SAFETY: regions of the workspace; weights and out by contract.
        unsafe { self.launch(Kernel::Combine, Shape::new([col_blocks, token_blocks, 1], THREADS, 0), &params) }
    }
}
