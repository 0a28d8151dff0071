// SPDX-License-Identifier: Apache-2.0
//! Activation rows as the microkernel wants them: quantised or not, in the instruction set's order, zero-padded.

use super::isa::Isa;
use super::parts_of::PartsOf;
use crate::config::{Mode, ScalePolicy};
use crate::error::Result;
use crate::format::{
    BLOCK_SIZE, BlockReport, QuantScale, dequantize_row, dynamic_global_scale, e4m3_decode, finite_amax, quantize_row,
    quantize_row_fp8,
};
use crate::memory::resize;
use crate::{status, threads};
use half::{bf16, slice::HalfFloatSliceExt};

/// Values that one thread handles before another is worth waking: some 20 us of work.
pub const MIN_TASK_VALUES: usize = 16 << 10;

/// What happens to a row of activations before a GEMM.
#[derive(Debug, Clone, Copy)]
pub enum RowTransform {
    /// Mode bf16: nothing.
    Keep,
    /// Mode nvfp4 with this global scale for every row.
    Static(f32),
    /// Mode nvfp4 with a global scale from each row's amax.
    Dynamic,
    /// Mode fp8: e4m3, a scale from each row's amax.
    Fp8,
}

impl RowTransform {
    /// What mode and policy ask for; `input_scale` is the static global scale.
    pub fn new(mode: Mode, policy: ScalePolicy, input_scale: f32) -> Self {
        match (mode, policy) {
            (Mode::Nvfp4, ScalePolicy::Static) => RowTransform::Static(input_scale),
            (Mode::Nvfp4, ScalePolicy::Dynamic) => RowTransform::Dynamic,
            (Mode::Fp8, _) => RowTransform::Fp8,
            (Mode::Bf16, _) => RowTransform::Keep,
        }
    }
}

/// Operand rows in the workspace.
pub struct Operands<'a> {
    isa: &'a Isa,
    reduction: usize,
    row_bytes: usize,
    rows: PartsOf<u8>,
    global_scales: PartsOf<f32>,
}

impl<'a> Operands<'a> {
    /// Rows of `isa` at `rows`, for a reduction of this length.
    pub fn new(isa: &'a Isa, reduction: usize, rows: *mut u8, global_scales: *mut f32) -> Self {
        Operands {
            isa,
            reduction,
            row_bytes: isa.operand_row_bytes(reduction),
            rows: PartsOf::new(rows),
            global_scales: PartsOf::new(global_scales),
        }
    }

    /// Write `count` rows; `source` may leave a row out. Returns the largest amax, -1 without `observe` or rows.
    pub fn write<'r>(
        &self,
        count: usize,
        source: impl Fn(usize) -> Option<&'r [bf16]> + Send + Sync,
        transform: RowTransform,
        observe: bool,
        token_of_row: impl Fn(usize) -> usize + Send + Sync,
    ) -> Result<f32> {
        let rows_at_a_time = (MIN_TASK_VALUES / self.reduction).max(1);
        let write_row = |buffers: &mut RowBuffers, row| {
            let Some(values) = source(row) else { return Ok(-1.0) };
            // SAFETY: each row, and its scale, is written by one task.
            let (out, scale) = unsafe {
                (self.rows.part(row * self.row_bytes, self.row_bytes), &mut self.global_scales.part(row, 1)[0])
            };
            let seen = write_operand(self.isa, values, transform, observe, buffers, out)?;
            status::CPU.add_blocks(token_of_row(row), seen.report);
            *scale = seen.global_scale;
            Ok(seen.amax)
        };
        threads::try_reduce(count, rows_at_a_time, RowBuffers::default, write_row, -1.0, f32::max)
    }

    /// The operand row.
    pub fn row(&self, row: usize) -> *const u8 {
        self.rows.address(row * self.row_bytes)
    }

    /// What the row's GEMM results are multiplied by, beside the weight's global scale.
    pub fn global_scale(&self, row: usize) -> f32 {
        // SAFETY: written before the GEMM that reads it.
        unsafe { *self.global_scales.address(row) }
    }
}

/// What a row turned out to hold.
#[derive(Debug, Clone, Copy)]
struct RowSeen {
    /// What the GEMM's result is multiplied by, beside the weight's global scale; 1 where nothing was quantised.
    global_scale: f32,
    /// Counted by the quantiser.
    report: BlockReport,
    /// Largest finite magnitude; -1 where it was not asked for.
    amax: f32,
}

/// Buffers of one thread, reused over rows.
#[derive(Default)]
struct RowBuffers {
    values: Vec<f32>,
    codes: Vec<u8>,
    block_scales: Vec<u8>,
}

/// Turn one bf16 row into an operand row of `isa`.
///
/// `observe` asks for the row's amax. A quantised operand holds `e2m1 * block_scale`, or e4m3 values in mode fp8: exact,
/// in bf16 too.
fn write_operand(
    isa: &Isa,
    row: &[bf16],
    transform: RowTransform,
    observe: bool,
    buffers: &mut RowBuffers,
    out: &mut [u8],
) -> Result<RowSeen> {
    resize(&mut buffers.values, "values of a row", row.len(), 0.0)?;
    row.convert_to_f32_slice(&mut buffers.values);
    let amax = if observe { finite_amax(&buffers.values) } else { -1.0 };
    let (global_scale, report) = match transform {
        RowTransform::Keep => (1.0, BlockReport::default()),
        RowTransform::Static(scale) => (scale, buffers.quantize(scale)?),
        RowTransform::Dynamic => {
            let scale = dynamic_global_scale(&buffers.values);
            (scale, buffers.quantize(scale)?)
        }
        RowTransform::Fp8 => buffers.quantize_fp8()?,
    };
    isa.write_row(&buffers.values, out);
    Ok(RowSeen { global_scale, report, amax })
}

impl RowBuffers {
    /// Replace the values by `e2m1 * block_scale`, which `global_scale` decodes.
    fn quantize(&mut self, global_scale: f32) -> Result<BlockReport> {
        let RowBuffers { values, codes, block_scales } = self;
        resize(codes, "codes of a row", values.len() / 2, 0)?;
        resize(block_scales, "block scales of a row", values.len() / BLOCK_SIZE, 0)?;
        let scale = QuantScale::from_global_scale(global_scale);
        let report = quantize_row(values, scale, codes, |i, block_scale| block_scales[i] = block_scale);
        dequantize_row(codes, block_scales, 1.0, values);
        Ok(report)
    }

    /// Replace the values by e4m3 ones; returns the scale that decodes them.
    fn quantize_fp8(&mut self) -> Result<(f32, BlockReport)> {
        resize(&mut self.codes, "codes of a row", self.values.len(), 0)?;
        let quantized = quantize_row_fp8(&self.values, &mut self.codes);
        for (value, code) in self.values.iter_mut().zip(&self.codes) {
            *value = e4m3_decode(*code);
        }
        Ok(quantized)
    }
}
