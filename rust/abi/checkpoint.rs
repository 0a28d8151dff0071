// SPDX-License-Identifier: Apache-2.0
//! Exports of the checkpoint reader.

use super::header::*;
use super::structs::Struct;
use super::{
    Opaque, aligned, copy_text, create, destroy, exports, guard, not_null, not_null_mut, read_struct, reserved, shared,
    size_of_field, write_struct,
};
use crate::activation::{Activation, ActivationKind};
use crate::checkpoint::{Checkpoint, Format, Layer, LayerBuffers};
use crate::error::{Error, Result};
use once_cell::race::OnceBox;
use std::ffi::{CStr, OsStr, c_char};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What a `nvfp4_moe_checkpoint` owns.
pub(crate) struct Opened {
    checkpoint: Checkpoint,
    /// Reports as a table, as JSON, and as JSON of headers alone: made once, because callers ask twice, for the length and
    /// for the text. Behind no lock, which a process could be forked under.
    reports: [OnceBox<String>; 3],
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
    let kind = if layer.dims.gated { ActivationKind::Swiglu } else { ActivationKind::Relu2 };
    let activation = match given.any_activation {
        0 => layer.activation()?,
        1 => layer.activation().unwrap_or(Activation { kind, limit: 0.0, alpha: 0.0, beta: 0.0 }),
        other => return Err(Error::argument("any_activation", other, "it must be 0 or 1", "Zero the struct first.")),
    };
    check_told(layer, activation, given)?;
    let blocks = layer.scan_block_scales(0..layer.dims.num_experts)?;
    Ok(nvfp4_moe_checkpoint_layer_info {
        struct_size: given.struct_size,
        format: layer.format as i32,
        hidden_size: layer.dims.hidden_size as i32,
        intermediate_size: layer.dims.intermediate_size as i32,
        num_experts: layer.dims.num_experts as i32,
        top_k: layer.facts.top_k.unwrap_or(0) as i32,
        swiglu_limit: if activation.limit.is_finite() { activation.limit } else { 0.0 },
        routed_scaling_factor: layer.facts.routed_scaling_factor.unwrap_or(0.0),
        lossless_cast: i32::from(blocks.lossless_cast),
        reserved: 0,
        w13_input_scale: layer.w13_input_scale.max,
        w2_input_scale: layer.w2_input_scale.max,
        swiglu_alpha: activation.alpha,
        swiglu_beta: activation.beta,
        any_activation: given.any_activation,
        reserved_2: 0,
        activation: activation.kind as i32,
        has_bias: layer.has_bias().into(),
    })
}

/// Refuse a caller whose struct is too old to tell what the layer is: without alpha and beta it would mean SiLU, without
/// the kind SwiGLU, and without `has_bias` no biases.
fn check_told(layer: &Layer<'_>, activation: Activation, given: &nvfp4_moe_checkpoint_layer_info) -> Result<()> {
    type Info = nvfp4_moe_checkpoint_layer_info;
    let is_swiglu = activation.kind == ActivationKind::Swiglu && !layer.has_bias();
    let is_silu = is_swiglu && activation.alpha == 1.0 && activation.beta == 0.0;
    let needed = match (is_swiglu, is_silu || given.any_activation == 1) {
        (true, true) => Info::FIRST_SIZE,
        (true, false) => std::mem::offset_of!(Info, activation),
        (false, _) => size_of::<Info>(),
    };
    if given.struct_size as usize >= needed {
        return Ok(());
    }
    let biases = if layer.has_bias() { ", and its experts have biases" } else { "" };
    Err(Error::argument(
        format_args!("{}.struct_size", Info::NAME),
        given.struct_size,
        format_args!("the layer's activation is {activation}{biases}, which takes {needed} bytes"),
        "Compile against this library's header.",
    ))
}

/// A bias buffer: NULL where the layer has no biases, and only there.
///
/// # Safety
/// As [`buffer`].
unsafe fn bias_buffer<'a>(name: &str, pointer: *mut std::ffi::c_void, bytes: usize) -> Result<&'a mut [u8]> {
    match (bytes, pointer.is_null()) {
        (0, true) => Ok(&mut []),
        (0, false) => {
            let rule = "the layer has no biases (has_bias of its info is 0)";
            Err(Error::argument(name, "given", rule, "Pass NULL."))
        }
        _ => {
            aligned(name, pointer.cast_const().cast::<u16>(), 2)?;
            // SAFETY: the caller's promise is the same.
            unsafe { buffer(name, pointer.cast(), bytes) }
        }
    }
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
    let lens = layer.buffer_lens(num_experts);
    // SAFETY: the lengths are what num_experts need; the rest is the same contract.
    unsafe {
        Ok(LayerBuffers {
            w13: buffer("w13", given.w13, lens.w13)?,
            w13_block_scale: buffer("w13_block_scale", given.w13_block_scale, lens.w13_block_scale)?,
            w13_global_scale: buffer("w13_global_scale", given.w13_global_scale, lens.w13_global_scale)?,
            w2: buffer("w2", given.w2, lens.w2)?,
            w2_block_scale: buffer("w2_block_scale", given.w2_block_scale, lens.w2_block_scale)?,
            w2_global_scale: buffer("w2_global_scale", given.w2_global_scale, lens.w2_global_scale)?,
            w13_bias: bias_buffer("w13_bias", given.w13_bias, lens.w13_bias)?,
            w2_bias: bias_buffer("w2_bias", given.w2_bias, lens.w2_bias)?,
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
        checkpoint.check_memory()?;
        let text = match as_json {
            0 => opened.reports[0].get_or_try_init(|| checkpoint.inspect(None, |_| {}).to_table().map(Box::new)),
            2 => opened.reports[2].get_or_try_init(|| checkpoint.survey().to_json().map(Box::new)),
            _ => opened.reports[1].get_or_try_init(|| checkpoint.inspect(None, |_| {}).to_json().map(Box::new)),
        }?;
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
