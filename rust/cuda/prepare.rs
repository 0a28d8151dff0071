// SPDX-License-Identifier: Apache-2.0
//! What preparing a layer and a linear share: the rules for what a caller brings.

use super::device::Device;
use super::driver;
use super::kernels::{CHECK_SCALES, Kernel, THREADS, params};
use super::launch::BLOCKS_PER_SM;
use super::memory::Buffer;
use super::prepared::State;
use super::storage::Matrix;
use crate::call::{LayerWeights, Storage, Stream, Tensor};
use crate::config::LayerConfig;
use crate::error::{Error, Result};
use crate::format::{
    BINADES, BLOCK_SIZE, MatrixOf, Part, RoundedMatrix, RoundingSums, ScaleRow, ScaleSpan, WeightError,
    check_scale_pairs, check_scale_spans, parts_of,
};
use crate::memory::filled;
use crate::part_scales::PartScales;
use crate::shape::{MoeShape, RowOrder};
use crate::workspace::WORKSPACE_ALIGNMENT;
use std::sync::Arc;

/// The rules for storage that a caller brings.
pub fn check_storage(storage: Storage, needed: u64, remedy: &'static str) -> Result<*mut u8> {
    if storage.size < needed {
        return Err(Error::WorkspaceTooSmall { what: "storage_size", given: storage.size, needed, remedy });
    }
    let storage = storage.pointer;
    let misaligned = storage.addr() as u64 % WORKSPACE_ALIGNMENT;
    if storage.is_null() || misaligned != 0 {
        let rule = format!(
            "it must be device memory at a multiple of {WORKSPACE_ALIGNMENT} bytes, and is {misaligned} past one"
        );
        return Err(Error::argument("storage", format!("{storage:p}"), rule, "Align the allocation."));
    }
    Ok(storage)
}

/// Prepare reads back what it found, which a graph cannot.
pub fn refuse_capture(stream: Stream) -> Result<()> {
    if driver::is_capturing(stream)? {
        let rule = "prepare waits for the stream, which a capture forbids";
        return Err(Error::argument("stream", "capturing", rule, "Prepare before capturing."));
    }
    Ok(())
}

/// Refuse broken scales, which are a broken file, before anything is written.
///
/// # Safety
/// The scales are device memory as the header states, the state is the layer's or linear's, and the device is entered.
pub unsafe fn refuse_bad_scales(
    device: &Device,
    state: *mut State,
    matrices: &[(Tensor<u8>, Tensor<f32>)],
    stream: Stream,
) -> Result<()> {
    let counter = State::bad_scales_at(state);
    // SAFETY: the caller vouches for the scales and the state.
    let bad_scales = unsafe {
        device.write(counter, &[0], stream)?;
        for (block_scale, global_scale) in matrices {
            let params = params::CheckScalesParams {
                block_scale: block_scale.pointer,
                global_scale: global_scale.pointer,
                bad_scales: counter,
                num_block_scales: block_scale.len as i64,
                num_global_scales: global_scale.len as i64,
            };
            let wanted = block_scale.len.div_ceil(THREADS as usize * 8).max(1);
            let blocks = wanted.min((device.num_sms * BLOCKS_PER_SM) as usize) as u32;
            device.launch(CHECK_SCALES.over([blocks, 1, 1]), stream, &params)?;
        }
        device.read(counter.cast_const(), stream)?
    };
    if bad_scales == 0 {
        return Ok(());
    }
    let rule = "it must be 0: block scales are finite and not negative, global scales positive and below 2^120";
    Err(Error::argument("number of broken weight scales", bad_scales, rule, "Check the checkpoint's tensors."))
}

// Kernels have the same numbers.
const _: () = {
    assert!(BINADES == params::ROUNDING_BINADES as usize);
    assert!(size_of::<RoundingSums>() == size_of::<params::RoundingSums>());
    assert!(RowOrder::Plain as u32 == params::ROWS_PLAIN && RowOrder::GateFirst as u32 == params::ROWS_GATE_FIRST);
    assert!(
        RowOrder::UpFirst as u32 == params::ROWS_UP_FIRST && RowOrder::Interleaved as u32 == params::ROWS_INTERLEAVED
    );
};

/// One matrix of all experts, as the checkpoint has it, and where it goes.
#[derive(Debug)]
pub struct Source {
    /// e2m1x2 [num_experts, rows, cols / 2]
    pub codes: *const u8,
    /// e4m3 [num_experts, rows, cols / 16]
    pub block_scale: *const u8,
    /// Slices of the storage.
    pub num_experts: usize,
    /// Bytes of a slice.
    pub expert_stride: u64,
    /// Of its rows.
    pub row_order: RowOrder,
    /// Mode fp8: what the scales of its projections hold. Else NULL.
    pub counted: *const params::MatrixScales,
    /// Mode fp8: for block scales of any value, by which products are rounded to e4m3? Else for pairs of powers of two.
    pub rounded: bool,
}

impl Source {
    /// As kernels take it.
    pub fn of(&self, matrix: &Matrix) -> params::PrepareSource {
        params::PrepareSource {
            codes: self.codes,
            block_scale: self.block_scale,
            expert_stride: self.expert_stride,
            rows: matrix.rows as i32,
            cols: matrix.cols as i32,
        }
    }
}

/// Enqueue the repacking of one matrix of all experts into tiles of 64 x 64, by a family's kernel.
///
/// # Safety
/// The pointers of `source` and the storage are device memory of the sizes that `matrix` has.
pub unsafe fn prepare_tiles(
    device: &Device,
    kernel: Kernel,
    matrix: &Matrix,
    source: &Source,
    storage: *mut u8,
    stream: Stream,
) -> Result<()> {
    let experts = source.num_experts as u32;
    let params = params::PrepareParams {
        source: source.of(matrix),
        tiles: matrix.codes.pointer(storage),
        scales: source.counted,
        num_slabs: matrix.slabs as i32,
        row_order: source.row_order as i32,
        rounded: source.rounded.into(),
        ..Default::default()
    };
    let runs = matrix.slabs.div_ceil(params::PREPARE_RUN_SLABS as usize) as u32;
    // SAFETY: the caller vouches for both sides.
    unsafe { device.launch(kernel.over([runs, matrix.m_tiles as u32, experts]), stream, &params) }
}

/// What mode fp8 asks of a layer's block scales, counted on the device: of each expert's gate, up and down, which have an
/// output factor each. Judged by the same rule as the CPU's.
#[derive(Debug)]
pub struct CountedScales {
    counted: Buffer,
    num_experts: usize,
    projections: usize,
    projection_scales: usize,
    /// Exponent of two of a projection's largest block scale, as the kernels will store it.
    pub stored_exponent: i32,
    /// What rounding does to each, where weights are rounded.
    rounding: Option<Buffer>,
}

impl CountedScales {
    /// Nothing counted yet.
    ///
    /// # Errors
    /// The driver's, of the allocation and the copy.
    pub fn new(device: &Arc<Device>, shape: MoeShape, stored_exponent: i32, stream: Stream) -> Result<Self> {
        const NONE: params::MatrixScales =
            params::MatrixScales { not_powers: 0, smallest: 0x7f, largest: 0, unpaired: params::NO_ROW };
        let none = filled("experts", (shape.projections + 1) * shape.experts, NONE)?;
        let counted = device.allocate(size_of_val(&none[..]))?;
        // SAFETY: memory of that size.
        unsafe { device.write(counted.pointer(), &none, stream) }?;
        Ok(CountedScales {
            counted,
            num_experts: shape.experts,
            projections: shape.projections,
            projection_scales: shape.projection_block_scales(),
            stored_exponent,
            rounding: None,
        })
    }

    /// Of w13, [num_experts, projections], in the checkpoint's order.
    pub fn w13(&self) -> *mut params::MatrixScales {
        self.counted.pointer()
    }

    /// Of w2, [num_experts].
    pub fn w2(&self) -> *mut params::MatrixScales {
        self.w13().wrapping_add(self.projections * self.num_experts)
    }

    /// Make room for the sums of rounding, which start as 0; of w13 and of w2, as above.
    ///
    /// # Errors
    /// The driver's, of the allocation and the copy.
    pub fn measured(&mut self, device: &Arc<Device>, stream: Stream) -> Result<[*mut RoundingSums; 2]> {
        let none = filled("experts", (self.projections + 1) * self.num_experts, RoundingSums::default())?;
        let buffer = self.rounding.insert(device.allocate(size_of_val(&none[..]))?);
        let w13: *mut RoundingSums = buffer.pointer();
        // SAFETY: memory of that size.
        unsafe { device.write(w13, &none, stream) }?;
        Ok([w13, w13.wrapping_add(self.projections * self.num_experts)])
    }

    /// Wait for the counting; refuse weights that are not exact in e4m3, or lose more than they may, or whose scales are not
    /// equal in pairs where they were said to be.
    ///
    /// # Safety
    /// The block scales are device memory as the header states, and the device is entered.
    pub unsafe fn check(
        &self,
        device: &Device,
        config: &LayerConfig,
        weights: &LayerWeights,
        stream: Stream,
    ) -> Result<WeightError> {
        if let Some(sums) = &self.rounding {
            return self.check_rounding(sums, device, config, weights.row_order, stream);
        }
        let counted = self.read(device, stream)?;
        self.check_exact(&counted, weights.row_order)?;
        // SAFETY: the caller's promise is the same.
        unsafe { self.check_pairs(&counted, device, config, weights, stream) }?;
        Ok(WeightError::default())
    }

    fn check_rounding(
        &self,
        buffer: &Buffer,
        device: &Device,
        config: &LayerConfig,
        order: RowOrder,
        stream: Stream,
    ) -> Result<WeightError> {
        let mut sums = filled("experts", (self.projections + 1) * self.num_experts, RoundingSums::default())?;
        // SAFETY: memory of that size, which the kernel has filled.
        unsafe { device.read_all(buffer.pointer::<RoundingSums>().cast_const(), &mut sums, stream) }?;
        let (w13, w2) = sums.split_at(self.projections * self.num_experts);
        let (hidden, inter) = (config.hidden_size, config.intermediate_size);
        let matrices = w13.chunks(self.projections).zip(w2).enumerate().flat_map(|(expert, (w13, w2))| {
            parts_of(order).iter().zip(w13.iter().chain([w2])).map(move |(part, sums)| {
                let (cols, place) = match part {
                    Part::Down => (inter, (0, 1)),
                    Part::Gate | Part::Up => (hidden, order.rows(*part == Part::Up, inter)),
                };
                let matrix = MatrixOf { expert, part: *part };
                RoundedMatrix { matrix, sums: *sums, row_blocks: cols / BLOCK_SIZE, place }
            })
        });
        WeightError::of(matrices).check(config.fp8_max_error)
    }

    /// What was counted, of w13 and of w2.
    fn read(&self, device: &Device, stream: Stream) -> Result<Vec<params::MatrixScales>> {
        let num_matrices = (self.projections + 1) * self.num_experts;
        let mut counted = filled("experts", num_matrices, params::MatrixScales::default())?;
        // SAFETY: memory of that size, which the kernel has filled.
        unsafe { device.read_all(self.w13().cast_const(), &mut counted, stream) }?;
        Ok(counted)
    }

    fn check_exact(&self, counted: &[params::MatrixScales], order: RowOrder) -> Result<()> {
        let (w13, w2) = counted.split_at(self.projections * self.num_experts);
        let experts = w13.chunks(self.projections).zip(w2);
        let spans = experts.map(|(w13, w2)| w13.iter().chain([w2]).map(|counted| self.span(counted)).collect());
        check_scale_spans(spans, order)
    }

    /// Refuse the first row of the first expert that has scales which are not equal in pairs; the kernel looked for them.
    unsafe fn check_pairs(
        &self,
        counted: &[params::MatrixScales],
        device: &Device,
        config: &LayerConfig,
        weights: &LayerWeights,
        stream: Stream,
    ) -> Result<()> {
        let (w13, w2) = counted.split_at(self.projections * self.num_experts);
        let experts = w13.chunks(self.projections).zip(w2).enumerate();
        let found = experts.flat_map(|(expert, (w13, w2))| {
            let parts = parts_of(weights.row_order).iter().zip(w13.iter().chain([w2]));
            parts.map(move |(part, counted)| (expert, *part, counted.unpaired))
        });
        for (expert, part, row) in found.filter(|(_, _, row)| *row != params::NO_ROW) {
            let (scales, row) = (PartScales::of(weights, config.shape(), part), row as usize);
            let mut own = filled("block scales of a row", scales.blocks, 0)?;
            let source = scales.block_scale.pointer.wrapping_add(scales.at(expert, row));
            // SAFETY: a row of the tensor, which the caller vouches for.
            unsafe { device.read_all(source, &mut own, stream) }?;
            check_scale_pairs(ScaleRow { expert, part, row: scales.given(row) }, &own)?;
        }
        Ok(())
    }

    fn span(&self, counted: &params::MatrixScales) -> ScaleSpan {
        let ends: &[u8] = if counted.largest == 0 { &[] } else { &[counted.smallest as u8, counted.largest as u8] };
        let num_scales = self.projection_scales as u64;
        ScaleSpan { num_scales, not_powers: counted.not_powers.into(), ..ScaleSpan::of(ends) }
    }
}
