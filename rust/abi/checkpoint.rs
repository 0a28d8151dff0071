// SPDX-License-Identifier: Apache-2.0
//! Exports of the checkpoint reader.

use super::header::*;
use super::structs::Struct;
use super::{
    Opaque, aligned, copy_text, create, destroy, exports, guard, not_null, not_null_mut, read_struct, reserved, shared,
    size_of_field, write_struct,
};
use crate::checkpoint::{Activation, Checkpoint, Format, Layer, LayerBuffers};
use crate::error::{Error, Result};
use std::ffi::{CStr, OsStr, c_char};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::OnceLock;

/// What a `nvfp4_moe_checkpoint` owns.
pub(crate) struct Opened {
    checkpoint: Checkpoint,
    /// Reports as a table, as JSON, and as JSON of headers alone: made once, because callers ask twice, for the length and
    /// for the text.
    reports: [OnceLock<String>; 3],
}

// The table of namings has the header's numbers.
const _: () = {
    assert!(Format::Modelopt as u32 == NVFP4_MOE_FORMAT_MODELOPT);
    assert!(Format::CompressedTensors as u32 == NVFP4_MOE_FORMAT_COMPRESSED_TENSORS);
    assert!(Format::DeepseekV4Mixed as u32 == NVFP4_MOE_FORMAT_DEEPSEEK_V4_MIXED);
    assert!(Format::Mxfp4 as u32 == NVFP4_MOE_FORMAT_MXFP4);
};

impl Opaque for nvfp4_moe_checkpoint {
    type Inside = Opened;
    const NAME: &'static str = "checkpoint";
    const MARK: u64 = u64::from_le_bytes(*b"nvfp4ckp");
}

fn layer_of<'a>(opened: &'a Opened, layer: i32) -> Result<Layer<'a>> {
    opened.checkpoint.layer(size_of_field("layer", layer)? as u32)
}

/// The caller's memory as a slice.
///
/// # Safety
/// `pointer` must be NULL or writable for `len` elements, and used by nobody else for `'a`.
unsafe fn buffer<'a, T>(name: &str, pointer: *mut T, len: usize) -> Result<&'a mut [T]> {
    let pointer = aligned(name, pointer.cast_const(), size_of::<T>())?.cast_mut();
    // SAFETY: not NULL and aligned; the caller vouches for its length and that nobody else uses it.
    Ok(unsafe { std::slice::from_raw_parts_mut(pointer, len) })
}

/// Sizes fit an i32: the reader refuses larger ones.
fn layer_info(layer: &Layer<'_>, given: &nvfp4_moe_checkpoint_layer_info) -> Result<nvfp4_moe_checkpoint_layer_info> {
    reserved(given.reserved_2)?;
    let activation = match given.any_activation {
        0 => told_activation(layer.activation()?, given.struct_size)?,
        1 => layer.activation().unwrap_or(Activation { limit: 0.0, alpha: 0.0, beta: 0.0 }),
        other => return Err(Error::argument("any_activation", other, "it must be 0 or 1", "Zero the struct first.")),
    };
    let blocks = layer.scan_block_scales(0..layer.dims.num_experts)?;
    Ok(nvfp4_moe_checkpoint_layer_info {
        struct_size: given.struct_size,
        format: layer.format as i32,
        hidden_size: layer.dims.hidden_size as i32,
        intermediate_size: layer.dims.intermediate_size as i32,
        num_experts: layer.dims.num_experts as i32,
        top_k: layer.facts.top_k.unwrap_or(0) as i32,
        swiglu_limit: activation.limit,
        routed_scaling_factor: layer.facts.routed_scaling_factor.unwrap_or(0.0),
        lossless_cast: i32::from(blocks.lossless_cast),
        reserved: 0,
        w13_input_scale: layer.w13_input_scale.max,
        w2_input_scale: layer.w2_input_scale.max,
        swiglu_alpha: activation.alpha,
        swiglu_beta: activation.beta,
        any_activation: given.any_activation,
        reserved_2: 0,
    })
}

/// The activation, if the caller's struct can tell it: an older one has no alpha and beta, and would mean SiLU.
fn told_activation(activation: Activation, struct_size: u32) -> Result<Activation> {
    let name = <nvfp4_moe_checkpoint_layer_info as Struct>::NAME;
    let is_silu = activation.alpha == 1.0 && activation.beta == 0.0;
    if is_silu || struct_size as usize >= size_of::<nvfp4_moe_checkpoint_layer_info>() {
        return Ok(activation);
    }
    Err(Error::argument(
        format_args!("{name}.struct_size"),
        struct_size,
        format_args!(
            "the layer's activation is {activation}, which takes {} bytes",
            size_of::<nvfp4_moe_checkpoint_layer_info>()
        ),
        "Compile against this library's header.",
    ))
}

/// The caller's buffers for `num_experts` experts of the layer.
///
/// # Safety
/// Each must be NULL or writable for what that many experts need, and used by nobody else for `'a`.
unsafe fn buffers<'a>(
    layer: &Layer<'_>,
    num_experts: usize,
    given: &nvfp4_moe_checkpoint_buffers,
) -> Result<LayerBuffers<'a>> {
    let lens = layer.dims.buffer_lens(num_experts);
    // SAFETY: the lengths are what num_experts need; the rest is the same contract.
    unsafe {
        Ok(LayerBuffers {
            w13: buffer("w13", given.w13, lens.w13)?,
            w13_block_scale: buffer("w13_block_scale", given.w13_block_scale, lens.w13_block_scale)?,
            w13_global_scale: buffer("w13_global_scale", given.w13_global_scale, lens.w13_global_scale)?,
            w2: buffer("w2", given.w2, lens.w2)?,
            w2_block_scale: buffer("w2_block_scale", given.w2_block_scale, lens.w2_block_scale)?,
            w2_global_scale: buffer("w2_global_scale", given.w2_global_scale, lens.w2_global_scale)?,
        })
    }
}

fn open(directory: &CStr, prefix: &CStr) -> Result<Opened> {
    let path = Path::new(OsStr::from_bytes(directory.to_bytes()));
    let checkpoint = Checkpoint::open_prefix(path, &prefix.to_string_lossy())?;
    Ok(Opened { checkpoint, reports: Default::default() })
}

exports! {
    fn nvfp4_moe_checkpoint_open(directory: *const c_char, out: *mut *mut nvfp4_moe_checkpoint) {
        let directory = CStr::from_ptr(not_null("directory", directory)?);
        create(out, || open(directory, c""))
    }

    fn nvfp4_moe_checkpoint_open_prefix(
        directory: *const c_char,
        prefix: *const c_char,
        out: *mut *mut nvfp4_moe_checkpoint,
    ) {
        let directory = CStr::from_ptr(not_null("directory", directory)?);
        let prefix = CStr::from_ptr(not_null("prefix", prefix)?);
        create(out, || open(directory, prefix))
    }

    fn nvfp4_moe_checkpoint_layer_info_read(
        checkpoint: *const nvfp4_moe_checkpoint,
        layer: i32,
        out: *mut nvfp4_moe_checkpoint_layer_info,
    ) {
        let opened = shared(checkpoint)?;
        let given = read_struct(out.cast_const())?;
        write_struct(out, layer_info(&layer_of(opened, layer)?, &given)?);
        Ok(())
    }

    fn nvfp4_moe_checkpoint_read_layer(
        checkpoint: *const nvfp4_moe_checkpoint,
        layer: i32,
        buffers_struct: *const nvfp4_moe_checkpoint_buffers,
    ) {
        let opened = shared(checkpoint)?;
        let given = read_struct(buffers_struct)?;
        reserved(given.reserved)?;
        let first_expert = size_of_field("first_expert", given.first_expert)?;
        let num_experts = size_of_field("num_experts", given.num_experts)?;
        let layer = layer_of(opened, layer)?;
        layer.check_range(first_expert, num_experts)?;
        layer.read(first_expert, buffers(&layer, num_experts, &given)?)
    }

    fn nvfp4_moe_checkpoint_inspect(
        checkpoint: *const nvfp4_moe_checkpoint,
        as_json: i32,
        buf: *mut c_char,
        size: usize,
        full_length: *mut usize,
    ) {
        let opened = shared(checkpoint)?;
        let full_length = not_null_mut("full_length", full_length)?;
        let checkpoint = &opened.checkpoint;
        let text = match as_json {
            0 => opened.reports[0].get_or_init(|| checkpoint.inspect(None, |_| {}).to_string()),
            2 => opened.reports[2].get_or_init(|| checkpoint.survey().to_json()),
            _ => opened.reports[1].get_or_init(|| checkpoint.inspect(None, |_| {}).to_json()),
        };
        *full_length = copy_text(text, buf, size);
        Ok(())
    }
}

/// Closes the files.
///
/// # Safety
/// `checkpoint` must be NULL or alive, and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvfp4_moe_checkpoint_destroy(checkpoint: *mut nvfp4_moe_checkpoint) {
    // SAFETY: NULL or alive, and not used again.
    guard(|| unsafe { destroy(checkpoint) });
}
