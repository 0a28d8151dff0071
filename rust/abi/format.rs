// SPDX-License-Identifier: Apache-2.0
//! Exports of the format itself.

use super::header::*;
use super::{aligned, exports, guard_value, policy_of, read_struct, reserved, stride, vec_for};
use crate::config::ScalePolicy;
use crate::error::{Error, Result};
use crate::format::{
    BLOCK_SIZE, MX_BLOCK_SIZE, QuantScale, SfLayout, cast_mxfp4, check_global_scale, dequantize_row,
    dynamic_global_scale, quantize_row, sf_offset_128x4, sf_size_128x4,
};
use crate::status;
use half::{bf16, slice::HalfFloatSliceExt};

/// Rows and columns as sizes: not negative, whole blocks, and few enough that no byte count overflows.
fn shape(num_rows: i64, num_cols: i64, block: usize) -> Result<(usize, usize)> {
    let rows = usize::try_from(num_rows).ok().filter(|rows| *rows < 1 << 40);
    let rows = rows
        .ok_or_else(|| Error::argument("num_rows", num_rows, "it must be 0 or more, below 2^40", "Pass the rows."))?;
    let cols = usize::try_from(num_cols).ok().filter(|cols| cols.is_multiple_of(block) && *cols < 1 << 22);
    let rule = format!("it must be a multiple of {block} below 2^22");
    let cols = cols.ok_or_else(|| Error::argument("num_cols", num_cols, rule, "Pad the rows with zeros."))?;
    Ok((rows, cols))
}

/// Rows of bf16 to NVFP4, one after another.
///
/// # Safety
/// Each pointer must be NULL or valid for what the header says of its field.
unsafe fn quantize(args: &nvfp4_moe_quantize_args) -> Result<()> {
    reserved(args.reserved)?;
    let (rows, cols) = shape(args.num_rows, args.num_cols, BLOCK_SIZE)?;
    let policy = policy_of(args.scale_policy)?;
    let layout = match args.sf_layout as u32 {
        NVFP4_MOE_SF_LINEAR => SfLayout::Linear,
        NVFP4_MOE_SF_SWIZZLED_128X4 => SfLayout::Swizzled128x4,
        _ => {
            let rule = "it must be 0 (linear) or 1 (swizzled 128x4)";
            return Err(Error::argument("sf_layout", args.sf_layout, rule, "Pass one of NVFP4_MOE_SF_*."));
        }
    };
    let row_stride = stride("x_row_stride", args.x_row_stride, "num_cols", cols)?;
    if rows == 0 || cols == 0 {
        return Ok(());
    }
    let mut values: Vec<f32> = vec_for("num_cols", cols)?;
    let sf_cols = cols / BLOCK_SIZE;
    let x = aligned("x", args.x.cast::<bf16>(), 2)?;
    let packed = aligned("packed", args.packed.cast_const(), 1)?.cast_mut();
    let block_scale = aligned("block_scale", args.block_scale.cast_const(), 1)?.cast_mut();
    let global_scale = aligned("global_scale", args.global_scale.cast_const(), 4)?.cast_mut();
    if policy == ScalePolicy::Static {
        // SAFETY: not NULL and aligned; the caller vouches for one f32.
        check_global_scale("global_scale", unsafe { *global_scale })?;
    }
    // SAFETY: not NULL and aligned; the caller vouches for the sizes, which `shape` keeps from overflowing.
    let (packed, block_scale) = unsafe {
        let scale_bytes = layout.size(rows as u64, sf_cols as u64) as usize;
        let packed = std::slice::from_raw_parts_mut(packed, rows * cols / 2);
        (packed, std::slice::from_raw_parts_mut(block_scale, scale_bytes))
    };
    block_scale.fill(0);
    values.resize(cols, 0.0);
    for (row, packed) in packed.chunks_exact_mut(cols / 2).enumerate() {
        // SAFETY: a row of x is valid for cols values.
        let x = unsafe { std::slice::from_raw_parts(x.add(row * row_stride), cols) };
        x.convert_to_f32_slice(&mut values);
        // SAFETY: one scale (static) or one a row (dynamic).
        let scale = unsafe {
            match policy {
                ScalePolicy::Static => *global_scale,
                ScalePolicy::Dynamic => {
                    *global_scale.add(row) = dynamic_global_scale(&values);
                    *global_scale.add(row)
                }
            }
        };
        let report = quantize_row(&values, QuantScale::from_global_scale(scale), packed, |i, byte| {
            block_scale[layout.offset(row as u64, i as u64, sf_cols as u64) as usize] = byte;
        });
        status::CPU.add_blocks(row, report);
    }
    Ok(())
}

exports! {
    fn nvfp4_moe_quantize(args: *const nvfp4_moe_quantize_args) {
        quantize(&read_struct(args)?)
    }

    fn nvfp4_moe_dequantize(
        packed: *const u8,
        block_scale: *const u8,
        global_scale: f32,
        num_rows: i64,
        num_cols: i64,
        out: *mut f32,
    ) {
        let (rows, cols) = shape(num_rows, num_cols, BLOCK_SIZE)?;
        if rows == 0 || cols == 0 {
            return Ok(());
        }
        let (packed, block_scale) = (aligned("packed", packed, 1)?, aligned("block_scale", block_scale, 1)?);
        let out = aligned("out", out.cast_const(), 4)?.cast_mut();
        let packed = std::slice::from_raw_parts(packed, rows * cols / 2);
        let block_scale = std::slice::from_raw_parts(block_scale, rows * cols / BLOCK_SIZE);
        dequantize_row(packed, block_scale, global_scale, std::slice::from_raw_parts_mut(out, rows * cols));
        Ok(())
    }

    fn nvfp4_moe_cast_mxfp4(
        packed: *const u8,
        e8m0_scale: *const u8,
        num_rows: i64,
        num_cols: i64,
        block_scale: *mut u8,
        global_scale: *mut f32,
    ) {
        let (rows, cols) = shape(num_rows, num_cols, MX_BLOCK_SIZE)?;
        let values = rows * cols;
        let read = |name, pointer, len| Ok(if len == 0 { &[][..] } else { std::slice::from_raw_parts(aligned(name, pointer, 1)?, len) });
        let codes = read("packed", packed, values / 2)?;
        let scales = read("e8m0_scale", e8m0_scale, values / MX_BLOCK_SIZE)?;
        let block_scale = match values {
            0 => &mut [][..],
            _ => std::slice::from_raw_parts_mut(aligned("block_scale", block_scale.cast_const(), 1)?.cast_mut(), values / BLOCK_SIZE),
        };
        let global_scale = aligned("global_scale", global_scale.cast_const(), 4)?.cast_mut();
        *global_scale = cast_mxfp4(&"e8m0_scale", codes, scales, block_scale)?;
        Ok(())
    }
}

/// Rows and scale columns below these have sizes and offsets that fit 64 bits.
const MAX_SF_ROWS: u64 = 1 << 40;
const MAX_SF_COLS: u64 = 1 << 20;

/// Bytes of a swizzled buffer.
#[unsafe(no_mangle)]
pub extern "C" fn nvfp4_moe_sf_size(num_rows: u64, num_sf_cols: u64) -> u64 {
    let fits = num_rows <= MAX_SF_ROWS && num_sf_cols <= MAX_SF_COLS;
    if fits { guard_value(u64::MAX, || sf_size_128x4(num_rows, num_sf_cols)) } else { u64::MAX }
}

/// Where a scale lies in it.
#[unsafe(no_mangle)]
pub extern "C" fn nvfp4_moe_sf_offset(row: u64, sf_col: u64, num_sf_cols: u64) -> u64 {
    let fits = row <= MAX_SF_ROWS && sf_col.max(num_sf_cols) <= MAX_SF_COLS;
    if fits { guard_value(u64::MAX, || sf_offset_128x4(row, sf_col, num_sf_cols)) } else { u64::MAX }
}
