//! Exports of the checkpoint reader.

use super::header::*;
use super::{Struct, aligned, copy_text, guard, not_null, not_null_mut, read_struct, reserved, size_of_field};
use crate::checkpoint::{Checkpoint, Format, Layer, LayerBuffers, Report};
use crate::error::Result;
use std::ffi::{CStr, OsStr, c_char};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::OnceLock;

/// What a `nvfp4_moe_checkpoint` points to.
struct Handle {
    checkpoint: Checkpoint,
    /// Made once, because callers ask twice: for its length, then for the text.
    report: OnceLock<Report>,
}

// SAFETY: repr(C) by bindgen, without padding (the ABI test checks), any bytes are valid.
unsafe impl Struct for nvfp4_moe_checkpoint_layer_info {
    const NAME: &'static str = "nvfp4_moe_checkpoint_layer_info";
    const FIRST_SIZE: usize = 48;
}
// SAFETY: as above.
unsafe impl Struct for nvfp4_moe_checkpoint_buffers {
    const NAME: &'static str = "nvfp4_moe_checkpoint_buffers";
    const FIRST_SIZE: usize = 64;
}

fn layer_of<'a>(handle: &'a Handle, layer: i32) -> Result<Layer<'a>> {
    handle.checkpoint.layer(size_of_field("layer", layer)? as u32)
}

/// The caller's memory as a slice.
///
/// # Safety
/// `pointer` must be NULL or writable for `len` elements, and used by nobody else for `'a`.
unsafe fn buffer<'a, T>(name: &str, pointer: *mut T, len: usize) -> Result<&'a mut [T]> {
    let pointer = aligned(name, pointer.cast_const(), size_of::<T>())?.cast_mut();
    // SAFETY: not NULL and aligned; the rest is the contract.
    Ok(unsafe { std::slice::from_raw_parts_mut(pointer, len) })
}

/// See the header.
///
/// # Safety
/// As the header states.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvfp4_moe_checkpoint_open(
    directory: *const c_char,
    out: *mut *mut nvfp4_moe_checkpoint,
) -> i32 {
    // SAFETY: the header's contract.
    guard(|| unsafe {
        let directory = CStr::from_ptr(not_null("directory", directory)?);
        let out = not_null_mut("out", out)?;
        let checkpoint = Checkpoint::open(Path::new(OsStr::from_bytes(directory.to_bytes())))?;
        *out = Box::into_raw(Box::new(Handle { checkpoint, report: OnceLock::new() })).cast();
        Ok(())
    })
}

/// See the header.
///
/// # Safety
/// As the header states.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvfp4_moe_checkpoint_destroy(checkpoint: *mut nvfp4_moe_checkpoint) {
    guard(|| {
        if !checkpoint.is_null() {
            // SAFETY: made by open's Box::into_raw, and not used again.
            drop(unsafe { Box::from_raw(checkpoint.cast::<Handle>()) });
        }
        Ok(())
    });
}

/// See the header.
///
/// # Safety
/// As the header states.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvfp4_moe_checkpoint_layer_info_read(
    checkpoint: *const nvfp4_moe_checkpoint,
    layer: i32,
    out: *mut nvfp4_moe_checkpoint_layer_info,
) -> i32 {
    // SAFETY: the header's contract; out is readable, and its struct_size is set.
    guard(|| unsafe {
        let handle = not_null("checkpoint", checkpoint.cast::<Handle>())?;
        let given = read_struct(out.cast_const())?;
        let info = layer_info(&handle.checkpoint, &layer_of(handle, layer)?)?;
        // read_struct found at least the first release's size, which is all there is.
        out.write_unaligned(nvfp4_moe_checkpoint_layer_info { struct_size: given.struct_size, ..info });
        Ok(())
    })
}

/// Sizes fit an i32: the reader refuses larger ones.
fn layer_info(checkpoint: &Checkpoint, layer: &Layer<'_>) -> Result<nvfp4_moe_checkpoint_layer_info> {
    let blocks = layer.scan_block_scales(0..layer.dims.num_experts)?;
    let format = match layer.format {
        Format::Modelopt => NVFP4_MOE_FORMAT_MODELOPT,
        Format::CompressedTensors => NVFP4_MOE_FORMAT_COMPRESSED_TENSORS,
        Format::DeepseekV4Mixed => NVFP4_MOE_FORMAT_DEEPSEEK_V4_MIXED,
    };
    Ok(nvfp4_moe_checkpoint_layer_info {
        struct_size: 0,
        format: format as i32,
        hidden_size: layer.dims.hidden_size as i32,
        intermediate_size: layer.dims.intermediate_size as i32,
        num_experts: layer.dims.num_experts as i32,
        top_k: checkpoint.config.top_k.unwrap_or(0) as i32,
        swiglu_limit: checkpoint.config.swiglu_limit.unwrap_or(0.0),
        routed_scaling_factor: checkpoint.config.routed_scaling_factor.unwrap_or(0.0),
        lossless_cast: i32::from(blocks.lossless_cast),
        reserved: 0,
        w13_input_scale: layer.w13_input_scale.max,
        w2_input_scale: layer.w2_input_scale.max,
    })
}

/// See the header.
///
/// # Safety
/// As the header states.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvfp4_moe_checkpoint_read_layer(
    checkpoint: *const nvfp4_moe_checkpoint,
    layer: i32,
    buffers: *const nvfp4_moe_checkpoint_buffers,
) -> i32 {
    // SAFETY: the header's contract; the buffers are as long as the layer's sizes and num_experts say.
    guard(|| unsafe {
        let handle = not_null("checkpoint", checkpoint.cast::<Handle>())?;
        let given = read_struct(buffers)?;
        reserved(given.reserved)?;
        let first_expert = size_of_field("first_expert", given.first_expert)?;
        let num_experts = size_of_field("num_experts", given.num_experts)?;
        let layer = layer_of(handle, layer)?;
        layer.check_range(first_expert, num_experts)?;
        let lens = layer.dims.buffer_lens(num_experts);
        let buffers = LayerBuffers {
            w13: buffer("w13", given.w13, lens.w13)?,
            w13_block_scale: buffer("w13_block_scale", given.w13_block_scale, lens.w13_block_scale)?,
            w13_global_scale: buffer("w13_global_scale", given.w13_global_scale, lens.w13_global_scale)?,
            w2: buffer("w2", given.w2, lens.w2)?,
            w2_block_scale: buffer("w2_block_scale", given.w2_block_scale, lens.w2_block_scale)?,
            w2_global_scale: buffer("w2_global_scale", given.w2_global_scale, lens.w2_global_scale)?,
        };
        layer.read(first_expert, buffers)
    })
}

/// See the header.
///
/// # Safety
/// As the header states.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvfp4_moe_checkpoint_inspect(
    checkpoint: *const nvfp4_moe_checkpoint,
    as_json: i32,
    buf: *mut c_char,
    size: usize,
    full_length: *mut usize,
) -> i32 {
    // SAFETY: the header's contract.
    guard(|| unsafe {
        let handle = not_null("checkpoint", checkpoint.cast::<Handle>())?;
        let full_length = not_null_mut("full_length", full_length)?;
        let report = handle.report.get_or_init(|| handle.checkpoint.inspect(None, |_| {}));
        let text = if as_json == 0 { report.to_string() } else { report.to_json() };
        *full_length = copy_text(&text, buf, size);
        Ok(())
    })
}
