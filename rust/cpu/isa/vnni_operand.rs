// SPDX-License-Identifier: Apache-2.0
//! Activations as `avx512vnni` reads them: integers of 16 bits times a power of two for each block of 16.
//!
//! What that leaves out: nothing of NVFP4 activations, nothing of e4m3 values of at least 1/2048 and of bf16 values of at
//! least 1/128 of the largest of their 16 neighbours; smaller ones are rounded to 2^-15 of that one's power of two. A
//! neighbour of 10000 leaves nothing of 0.2, and if its weight is 0 the result is made of what is gone. So where in a
//! group of blocks the root mean square of what is left out is more than 1/4096 of all but the largest values (see
//! [`loses_too_much`]), the row has a rest: all that its integers leave out, exact in f32, which `avx512` multiplies and
//! adds.

use crate::format::BLOCK_SIZE;

/// 32-bit lanes of a vector, each the sums of one block.
const LANES: usize = 16;

/// One block a lane.
pub const GROUP: usize = LANES * BLOCK_SIZE;

/// Vectors of a group. Each takes two neighbours' products: words of codes, 4 neighbours each, are shifted by 4 bits
/// from step to step.
pub const STEPS: usize = BLOCK_SIZE / 2;

/// Block of the group in each lane, as `open_group` of the tile leaves them.
const BLOCK_OF_LANE: [u8; LANES] = [0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15];

/// A group of activations: value `8 (step / 4) + 4 half + step % 4` of a lane's block is
/// `values[step][lane][half] * scales[lane]`.
#[repr(C)]
pub struct Operand {
    values: [[[i16; 2]; LANES]; STEPS],
    scales: [f32; LANES],
}

/// An [`Operand`]; true if it loses too much.
pub fn write_group(values: &[f32], out: &mut [u8]) -> bool {
    // SAFETY: only reached through `ISA`, which is chosen where it is available.
    unsafe { write_vectors(values, out) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,fma")]
fn write_vectors(values: &[f32], out: &mut [u8]) -> bool {
    let mut operand = Operand { values: [[[0; 2]; LANES]; STEPS], scales: [0.0; LANES] };
    let blocks = values.as_chunks::<BLOCK_SIZE>().0;
    let mut squares = [0.0f64; BLOCK_SIZE];
    for (lane, block) in BLOCK_OF_LANE.iter().enumerate() {
        let block = &blocks[usize::from(*block)];
        let (integers, scale) = integers(block);
        for (sum, lost) in squares.iter_mut().zip(lost(block, &integers, scale)) {
            *sum += f64::from(lost) * f64::from(lost);
        }
        for (i, integer) in integers.iter().enumerate() {
            operand.values[i / 8 * 4 + i % 4][lane][i / 4 % 2] = *integer;
        }
        // 2^8 that the block scale lacks (see `open_group`), and half for the doubled weights.
        operand.scales[lane] = scale * 128.0;
    }
    // SAFETY: plain numbers without padding.
    let bytes: [u8; size_of::<Operand>()] = unsafe { std::mem::transmute(operand) };
    out.copy_from_slice(&bytes);
    loses_too_much(values, squares.iter().sum())
}

/// How often the root mean square of what is left out of a group must fit into a value for that to be large.
const LEAST_RATIO: f64 = 4096.0;

/// Would the group be missed what its integers leave out, even where weights of 0 leave its outliers unread? Not if at
/// least a quarter of the values are large beside it: outliers are fewer, and what is left then has about that size. So
/// the result is right to some 1/1000, where bf16, as which it is returned, is to 1/512. Ordinary activations are far
/// from here, normal ones and those behind a gate that closes for half of them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,fma")]
fn loses_too_much(values: &[f32], squares: f64) -> bool {
    if squares == 0.0 {
        return false;
    }
    let present = values.iter().filter(|value| **value != 0.0).count();
    let least = (LEAST_RATIO * (squares / present as f64).sqrt()) as f32;
    let large = values.iter().filter(|value| value.abs() >= least).count();
    4 * large < present
}

/// What the integers of a block leave out of it; exact, because it has no more bits than the bf16 or e4m3 value. Nothing
/// of a block with a NaN or an infinity, whose results are one.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,fma")]
fn lost(values: &[f32; BLOCK_SIZE], integers: &[i16; BLOCK_SIZE], scale: f32) -> [f32; BLOCK_SIZE] {
    let scale = if scale.is_finite() { scale } else { return [0.0; BLOCK_SIZE] };
    std::array::from_fn(|i| values[i] - f32::from(integers[i]) * scale)
}

/// See [`Rest::left_out`].
pub fn left_out(values: &[f32], out: &mut [f32]) {
    for (values, out) in values.as_chunks::<BLOCK_SIZE>().0.iter().zip(out.as_chunks_mut::<BLOCK_SIZE>().0) {
        // SAFETY: only reached through `ISA`, which is chosen where it is available.
        *out = unsafe {
            let (integers, scale) = integers(values);
            lost(values, &integers, scale)
        };
    }
}

/// A block as integers times a scale: the largest in [2^14, 2^15). The scale of a NaN is NaN; with an infinity the
/// scale is infinite, so that it meets zero weights and finite ones as it should.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,fma")]
fn integers(values: &[f32; BLOCK_SIZE]) -> ([i16; BLOCK_SIZE], f32) {
    if values.iter().any(|value| !value.is_finite()) {
        let nan = values.iter().any(|value| value.is_nan());
        let infinities = values.map(|value| if value.is_infinite() { value.signum() as i16 } else { 0 });
        return (infinities, if nan { f32::NAN } else { f32::INFINITY });
    }
    let largest = values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    // The exponent of the largest; at least -112, so that both powers below are normal.
    let exponent = ((largest.to_bits() >> 23) as i32 - 127).max(-112);
    let power = |exponent: i32| f32::from_bits(((exponent + 127) as u32) << 23);
    let to_integer = power(14 - exponent);
    (values.map(|value| (value * to_integer).round_ties_even() as i16), power(exponent - 14))
}
