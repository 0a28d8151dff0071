//! What preparing a layer and a linear share: the rules for buffers, and the repacking of one matrix.

use super::Stream;
use super::device::Device;
use super::kernels::{Kernel, params};
use super::storage::Matrix;
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
