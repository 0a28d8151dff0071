// SPDX-License-Identifier: Apache-2.0
//! Exports of the NVFP4 linear.

use super::header::*;
use super::{
    Opaque, Rows, Span, aligned, aligned_or_null, apart, create, destroy, device_of, exclusive, exports, guard,
    mode_of, no_overlap, not_null_mut, null_error, policy_of, process_of, read_struct, shared, size_of_field, stride,
    tile_rows_of, vec_for,
};
use crate::call::{LinearArgs, LinearWeights, Storage, Tensor, Workspace};
use crate::config::LinearConfig;
use crate::error::{Error, Result};
use crate::format::BLOCK_SIZE;
use crate::linear::Linear;

impl Opaque for nvfp4_moe_linear {
    type Inside = Linear;
    const NAME: &'static str = "linear";
    const MARK: u64 = u64::from_le_bytes(*b"fp4linea");

    fn check_process(linear: &Self::Inside) -> Result<()> {
        process_of(linear.config().device)
    }

    fn close(linear: &mut Self::Inside) -> Result<()> {
        linear.close()
    }
}

fn config(desc: &nvfp4_moe_linear_desc) -> Result<LinearConfig> {
    let device = device_of(desc.device_kind, desc.device_ordinal)?;
    Ok(LinearConfig {
        device,
        mode: mode_of(device, desc.mode)?,
        scale_policy: policy_of(desc.scale_policy)?,
        in_features: size_of_field("in_features", desc.in_features)?,
        out_features: size_of_field("out_features", desc.out_features)?,
        num_parts: size_of_field("num_parts", desc.num_parts)?.max(1),
        tile_rows: tile_rows_of(device, desc.tile_rows)?,
    })
}

fn weights(config: &LinearConfig, w: &nvfp4_moe_linear_weights) -> Result<LinearWeights> {
    let values = config.out_features * config.in_features;
    let tensor = |name, pointer: *const u8, len| {
        if pointer.is_null() { Err(null_error(name)) } else { Ok(Tensor { pointer, len }) }
    };
    Ok(LinearWeights {
        weight: tensor("weight", w.weight, values / 2)?,
        block_scale: tensor("block_scale", w.block_scale, values / BLOCK_SIZE)?,
        global_scale: Tensor { pointer: aligned("global_scale", w.global_scale, 4)?, len: config.num_parts },
        part_ends: part_ends(config, w.part_rows)?,
        bias: match aligned_or_null("bias", w.bias.cast::<u16>(), 2)? {
            bias if bias.is_null() => None,
            bias => Some(Tensor { pointer: bias, len: config.out_features }),
        },
        input_scale: w.input_scale,
    })
}

fn part_ends(config: &LinearConfig, part_rows: *const i32) -> Result<Vec<usize>> {
    if part_rows.is_null() {
        return if config.num_parts == 1 { Ok(vec![config.out_features]) } else { Err(null_error("part_rows")) };
    }
    let pointer = aligned("part_rows", part_rows, 4)?;
    // SAFETY: aligned, and the header asks for num_parts host integers there.
    let rows = unsafe { std::slice::from_raw_parts(pointer, config.num_parts) };
    let mut ends = vec_for("part_rows", rows.len())?;
    let mut end = 0;
    for (i, rows) in rows.iter().enumerate() {
        end += size_of_field(&format!("part_rows[{i}]"), *rows)?;
        ends.push(end);
    }
    if end != config.out_features {
        let rule = format!("it must be out_features, which is {}", config.out_features);
        return Err(Error::argument("the sum of part_rows", end, rule, "Pass the rows of each fused projection."));
    }
    Ok(ends)
}

fn args(config: &LinearConfig, a: &nvfp4_moe_linear_args) -> Result<Option<LinearArgs>> {
    let num_tokens = size_of_field("num_tokens", a.num_tokens)?;
    if num_tokens == 0 {
        return Ok(None);
    }
    let checked = LinearArgs {
        num_tokens,
        x: aligned("x", a.x.cast(), 2)?,
        x_row_stride: stride("x_row_stride", a.x_row_stride, "in_features", config.in_features)?,
        out: aligned("out", a.out.cast::<u16>().cast_const(), 2)?.cast_mut(),
        out_row_stride: stride("out_row_stride", a.out_row_stride, "out_features", config.out_features)?,
        workspace: Workspace { pointer: a.workspace.cast(), size: a.workspace_size },
    };
    let x = Rows { first: checked.x, stride: checked.x_row_stride, width: config.in_features };
    let out = Rows { first: checked.out, stride: checked.out_row_stride, width: config.out_features };
    no_overlap(num_tokens, x, out)?;
    apart(Span::of_workspace(checked.workspace), &[x.span("x", num_tokens), out.span("out", num_tokens)])?;
    Ok(Some(checked))
}

exports! {
    fn nvfp4_moe_linear_create(desc: *const nvfp4_moe_linear_desc, out: *mut *mut nvfp4_moe_linear) {
        create(out, || Linear::new(config(&read_struct(desc)?)?))
    }

    fn nvfp4_moe_linear_storage_size(linear: *const nvfp4_moe_linear, out: *mut u64) {
        let linear = shared(linear)?;
        *not_null_mut("out", out)? = linear.storage_size();
        Ok(())
    }

    fn nvfp4_moe_linear_prepare(
        linear: *mut nvfp4_moe_linear,
        weights_struct: *const nvfp4_moe_linear_weights,
        storage: *mut std::ffi::c_void,
        storage_size: u64,
        stream: *mut CUstream_st,
    ) {
        let linear = exclusive(linear)?;
        let weights = weights(linear.config(), &read_struct(weights_struct)?)?;
        linear.prepare(weights, Storage { pointer: storage.cast(), size: storage_size }, stream.cast())
    }

    fn nvfp4_moe_linear_workspace_size(linear: *const nvfp4_moe_linear, max_tokens: i32, out: *mut u64) {
        let linear = shared(linear)?;
        let out = not_null_mut("out", out)?;
        *out = linear.workspace_size(size_of_field("max_tokens", max_tokens)?);
        Ok(())
    }

    fn nvfp4_moe_linear_forward(
        linear: *const nvfp4_moe_linear,
        args_struct: *const nvfp4_moe_linear_args,
        stream: *mut CUstream_st,
    ) {
        let linear = shared(linear)?;
        match args(linear.config(), &read_struct(args_struct)?)? {
            Some(args) => linear.forward(&args, stream.cast()),
            None => Ok(()),
        }
    }

    fn nvfp4_moe_linear_calibrate(
        linear: *mut nvfp4_moe_linear,
        args_struct: *const nvfp4_moe_linear_args,
        stream: *mut CUstream_st,
    ) {
        let linear = exclusive(linear)?;
        match args(linear.config(), &read_struct(args_struct)?)? {
            Some(args) => linear.calibrate(&args, stream.cast()),
            None => Ok(()),
        }
    }

    fn nvfp4_moe_linear_calibrated_scale(linear: *mut nvfp4_moe_linear, input_scale: *mut f32) {
        let linear = exclusive(linear)?;
        let out = not_null_mut("input_scale", input_scale)?;
        *out = linear.calibrated_scale()?;
        Ok(())
    }

    fn nvfp4_moe_linear_set_input_scale(linear: *mut nvfp4_moe_linear, input_scale: f32) {
        exclusive(linear)?.set_input_scale(input_scale)
    }
}

/// Frees the linear, not what it was lent.
///
/// # Safety
/// `linear` must be NULL or alive, and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvfp4_moe_linear_destroy(linear: *mut nvfp4_moe_linear) {
    // SAFETY: NULL or alive, and not used again.
    guard(|| unsafe { destroy(linear) });
}
