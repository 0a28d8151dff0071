//! What preparing a layer and a linear share: the rules for buffers, and the repacking of one matrix.

use super::device::{Device, Shape};
use super::kernels::{Kernel, params};
use super::storage::Matrix;
use super::{Stream, THREADS};
use crate::config::{Kernels, Mode};
use crate::error::{Error, Result};
use crate::layer::Storage;
use crate::workspace::{WORKSPACE_ALIGNMENT, check_workspace};

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
        let rule = format!(
            "it must be device memory at a multiple of {WORKSPACE_ALIGNMENT} bytes, and is {misaligned} past one"
        );
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

/// What the output factors must hold beside the global scales: Hopper's register dequantisation to bf16 leaves out 2^8.
/// What it leaves out in mode fp8 is each part's own.
pub fn missing_factor(kernels: Kernels, mode: Mode) -> f32 {
    match (kernels, mode) {
        (Kernels::Hopper, Mode::Bf16 | Mode::Nvfp4) => 256.0,
        _ => 1.0,
    }
}

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
    /// Rows are gate and up halves.
    pub gated: bool,
    /// The first half is up.
    pub up_first: bool,
    /// Counts NaN and negative block scales; on the device.
    pub bad_scales: *mut u64,
    /// Mode fp8: what its parts hold. Else NULL.
    pub parts: *const params::MatrixScales,
}

/// Enqueue the repacking of one matrix of all experts.
///
/// # Safety
/// As [`Device::launch`], with the pointers of `source` and the storage.
pub unsafe fn prepare_matrix(
    device: &Device,
    kernels: Kernels,
    matrix: &Matrix,
    source: &Source,
    storage: *mut u8,
    stream: Stream,
) -> Result<()> {
    let experts = source.num_experts as u32;
    let common = params::PrepareSource {
        codes: source.codes,
        block_scale: source.block_scale,
        bad_scales: source.bad_scales,
        expert_stride: source.expert_stride,
        rows: matrix.rows as i32,
        cols: matrix.cols as i32,
    };
    match kernels {
        Kernels::Hopper => {
            let params = params::PrepareParams {
                source: common,
                tiles: matrix.codes.pointer(storage),
                scales: source.parts,
                num_slabs: matrix.slabs as i32,
                gated: source.gated.into(),
                up_first: source.up_first.into(),
                reserved: 0,
            };
            let runs = matrix.slabs.div_ceil(params::PREPARE_RUN_SLABS as usize) as u32;
            let shape = Shape::new([runs, matrix.m_tiles as u32, experts], params::PREPARE_THREADS, 0);
            // SAFETY: by contract.
            unsafe { device.launch(Kernel::PrepareTiles, shape, stream, &params) }
        }
        Kernels::Portable => {
            let params = params::PrepareSwizzledParams {
                source: common,
                out_codes: matrix.codes.pointer(storage),
                out_block_scale: matrix.block_scale.pointer(storage),
                first_row: if source.gated && source.up_first { matrix.rows as i32 / 2 } else { 0 },
                reserved: 0,
            };
            // A thread for each byte of the swizzled scales, padding included.
            let grid = [matrix.block_scale.len.div_ceil(THREADS as usize) as u32, experts, 1];
            // SAFETY: by contract.
            unsafe { device.launch(Kernel::PrepareSwizzled, Shape::new(grid, THREADS, 0), stream, &params) }
        }
    }
}
