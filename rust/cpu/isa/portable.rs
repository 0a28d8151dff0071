//! Plain Rust: any CPU. The compiler vectorises what it can.

use super::generic::{self, Simd};
use super::{GROUP, Isa, Tile, TileOut};
use crate::format::{BLOCK_SIZE, e2m1_decode, e4m3_decode};

pub(super) static ISA: Isa =
    Isa { name: "portable", operand_bytes: 4, order: natural_order(), tile, add_scaled, available: || true };

const fn natural_order() -> [u8; GROUP] {
    let mut order = [0; GROUP];
    let mut place = 0;
    while place < GROUP {
        order[place] = place as u8;
        place += 1;
    }
    order
}

struct Portable;

// SAFETY: uses no special instructions.
unsafe impl Simd for Portable {
    const LANES: usize = 8;
    const OP_BYTES: usize = 32;
    const VALUE_BYTES: usize = 4;
    const ROWS: usize = 4;
    const TOKENS: usize = 1;
    type Acc = [f32; 8];
    type Op = [f32; 8];
    type Group = [[f32; 8]; GROUP / 8];

    #[inline(always)]
    fn zero() -> [f32; 8] {
        [0.0; 8]
    }
    #[inline(always)]
    unsafe fn load_acc(from: *const f32) -> [f32; 8] {
        // SAFETY: LANES values, unaligned, by the trait's contract.
        unsafe { from.cast::<[f32; 8]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store_acc(to: *mut f32, value: [f32; 8]) {
        // SAFETY: as above.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(value) }
    }
    #[inline(always)]
    unsafe fn load_op(from: *const u8) -> [f32; 8] {
        // SAFETY: as above.
        unsafe { from.cast::<[f32; 8]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn multiply_add(acc: [f32; 8], w: [f32; 8], x: [f32; 8]) -> [f32; 8] {
        // Two roundings: a fused one would be a library call where the CPU has no such instruction.
        std::array::from_fn(|lane| acc[lane] + w[lane] * x[lane])
    }
    #[inline(always)]
    unsafe fn store_op(to: *mut u8, value: [f32; 8]) {
        // SAFETY: by the trait's contract.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(value) }
    }
    #[inline(always)]
    fn prefetch(_address: *const u8) {}
    #[inline(always)]
    unsafe fn decode_group(codes: *const u8, block_scales: *const u8) -> [[f32; 8]; GROUP / 8] {
        std::array::from_fn(|vector| {
            // SAFETY: 64 code bytes and 8 scales, by the trait's contract.
            let (codes, scale) = unsafe {
                let codes = codes.add(vector * 4).cast::<[u8; 4]>().read_unaligned();
                (codes, e4m3_decode(*block_scales.add(vector * 8 / BLOCK_SIZE)))
            };
            std::array::from_fn(|i| e2m1_decode(codes[i / 2] >> (4 * (i % 2))) * scale)
        })
    }
}

unsafe fn tile(tile: &Tile, out: &mut TileOut) {
    // SAFETY: by contract of Isa::tile.
    unsafe { generic::tile::<Portable>(tile, out) }
}

unsafe fn add_scaled(sum: &mut [f32], weight: f32, y: &[f32]) {
    generic::add_scaled(sum, weight, y)
}
