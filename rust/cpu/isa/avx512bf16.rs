// SPDX-License-Identifier: Apache-2.0
//! AVX-512 with bf16 dot products: twice the multiplications of f32. Weights (`e2m1 * block_scale`) and quantised
//! activations are exact in bf16. The instruction flushes subnormal operands and sums to zero.

use super::avx512::{Cursor, decode, open_group};
use super::generic::{self, GROUP, Simd};
use super::tile::{Isa, Tile, TileOut};
use half::bf16;
use std::arch::x86_64::*;

pub(super) static ISA: Isa = Isa {
    name: "avx512bf16",
    group: GROUP,
    group_bytes: 2 * GROUP,
    write_group,
    rest: None,
    tile,
    add_scaled: super::avx512::add_scaled,
    available,
};

fn available() -> bool {
    super::avx512::available() && is_x86_feature_detected!("avx512bf16")
}

/// Two f32 vectors of `avx512` (values `8 lane + j`, j even then odd) make one of 32 bf16 values.
fn write_group(values: &[f32], out: &mut [u8]) -> bool {
    for (place, out) in out.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        let (vector, half, lane) = (place / 32, place % 32 / 16, place % 16);
        *out = bf16::from_f32(values[8 * lane + 2 * vector + half]).to_ne_bytes();
    }
    false
}

struct Avx512Bf16;

// SAFETY: callers check `available`.
unsafe impl Simd for Avx512Bf16 {
    const OP_BYTES: usize = 64;
    const VALUE_BYTES: usize = 2;
    const ROWS: usize = 8;
    const TOKENS: usize = 3;
    type Acc = __m512;
    type Op = __m512bh;
    type Cursor = Cursor;

    #[inline(always)]
    unsafe fn load_op(from: *const u8) -> __m512bh {
        // SAFETY: an operand vector is readable; the types differ in name only.
        unsafe { std::mem::transmute(_mm512_loadu_si512(from.cast())) }
    }
    #[inline(always)]
    unsafe fn multiply_add(acc: __m512, w: __m512bh, x: __m512bh) -> __m512 {
        // SAFETY: the CPU has AVX-512 BF16.
        unsafe { _mm512_dpbf16_ps(acc, w, x) }
    }
    #[inline(always)]
    unsafe fn store_op(to: *mut u8, value: __m512bh) {
        // SAFETY: an operand vector is writable.
        unsafe { _mm512_storeu_si512(to.cast(), std::mem::transmute::<__m512bh, __m512i>(value)) }
    }
    #[inline(always)]
    unsafe fn open_group(codes: *const u8, block_scales: *const u8) -> Cursor {
        // SAFETY: 64 code bytes and 8 scales are readable.
        unsafe { open_group(codes, block_scales) }
    }
    #[inline(always)]
    unsafe fn decode(cursor: &mut Cursor, _index: usize) -> __m512bh {
        // SAFETY: by the trait's contract; the conversion is exact and puts its second argument in the low half.
        unsafe {
            let even = decode(cursor);
            _mm512_cvtne2ps_pbh(decode(cursor), even)
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16,f16c")]
unsafe fn tile(tile: &Tile, out: &mut TileOut) {
    // SAFETY: by contract of Isa::tile.
    unsafe { generic::tile::<Avx512Bf16>(tile, out) }
}
