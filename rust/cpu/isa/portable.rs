// SPDX-License-Identifier: Apache-2.0
//! Plain Rust: any CPU. The compiler vectorises what it can.

use super::generic::{self, GROUP, Simd};
use super::tile::{Isa, Tile, TileOut};
use crate::format::{BLOCK_SIZE, e2m1_decode, e4m3_decode};

pub(super) static ISA: Isa = Isa {
    name: "portable",
    group: GROUP,
    group_bytes: 4 * GROUP,
    write_group,
    rest: None,
    tile,
    add_scaled,
    available: || true,
};

pub(super) fn write_group(values: &[f32], out: &mut [u8]) -> bool {
    for (out, value) in out.as_chunks_mut::<4>().0.iter_mut().zip(values) {
        *out = value.to_ne_bytes();
    }
    false
}

struct Portable;

/// A group's codes and decoded scales.
struct Cursor {
    codes: [u8; GROUP / 2],
    scales: [f32; GROUP / BLOCK_SIZE],
}

// SAFETY: uses no special instructions.
unsafe impl Simd for Portable {
    const OP_BYTES: usize = 32;
    const VALUE_BYTES: usize = 4;
    const ROWS: usize = 4;
    const TOKENS: usize = 1;
    type Acc = [f32; 8];
    type Op = [f32; 8];
    type Cursor = Cursor;

    #[inline(always)]
    unsafe fn load_op(from: *const u8) -> [f32; 8] {
        // SAFETY: an operand vector is readable.
        unsafe { from.cast::<[f32; 8]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn multiply_add(acc: [f32; 8], w: [f32; 8], x: [f32; 8]) -> [f32; 8] {
        // Two roundings: a fused one would be a library call where the CPU has no such instruction.
        std::array::from_fn(|lane| acc[lane] + w[lane] * x[lane])
    }
    #[inline(always)]
    unsafe fn store_op(to: *mut u8, value: [f32; 8]) {
        // SAFETY: an operand vector is writable.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(value) }
    }
    #[inline(always)]
    unsafe fn open_group(codes: *const u8, block_scales: *const u8) -> Cursor {
        // SAFETY: 64 code bytes and 8 scales, by the trait's contract.
        unsafe {
            let block_scales = block_scales.cast::<[u8; GROUP / BLOCK_SIZE]>().read_unaligned();
            Cursor { codes: codes.cast::<[u8; GROUP / 2]>().read_unaligned(), scales: block_scales.map(e4m3_decode) }
        }
    }
    #[inline(always)]
    unsafe fn decode(cursor: &mut Cursor, index: usize) -> [f32; 8] {
        let (codes, scale) = (&cursor.codes[index * 4..][..4], cursor.scales[index * 8 / BLOCK_SIZE]);
        std::array::from_fn(|i| e2m1_decode(codes[i / 2] >> (4 * (i % 2))) * scale)
    }
}

unsafe fn tile(tile: &Tile, out: &mut TileOut) {
    // SAFETY: by contract of Isa::tile.
    unsafe { generic::tile::<Portable>(tile, out) }
}

pub(super) unsafe fn add_scaled(sum: &mut [f32], weight: f32, y: &[f32]) {
    generic::add_scaled(sum, weight, y)
}
