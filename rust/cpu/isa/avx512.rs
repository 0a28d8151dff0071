// SPDX-License-Identifier: Apache-2.0
//! AVX-512 F/BW/VL: 16 lanes, and a 16-entry table look-up that decodes e2m1 in one instruction.

use super::generic::{self, GROUP, Simd};
use super::tile::{Isa, Tile, TileOut};
use std::arch::x86_64::*;

pub(super) static ISA: Isa =
    Isa { name: "avx512", group: GROUP, group_bytes: 4 * GROUP, write_group, rest: None, tile, add_scaled, available };

pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("f16c")
}

/// A 64-byte load puts 8 neighbours (one u32) in each lane; shifting right by 4 bits walks through them. So vector
/// `j` of a group holds values `8 lane + j`.
fn write_group(values: &[f32], out: &mut [u8]) -> bool {
    for (place, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        *out = values[8 * (place % 16) + place / 16].to_ne_bytes();
    }
    false
}

struct Avx512;

/// Codes of a group, 8 neighbours a lane, and the scale of each lane.
pub(super) struct Cursor {
    words: __m512i,
    scale: __m512,
}

/// Load a group.
///
/// # Safety
/// The CPU has AVX-512 F/BW/VL; 64 code bytes and 8 scales are readable.
#[inline(always)]
pub(super) unsafe fn open_group(codes: *const u8, block_scales: *const u8) -> Cursor {
    // SAFETY: by contract.
    unsafe {
        // e4m3 bits as f16 are the value * 2^-8 (prepare refuses NaN and negative scales); `decode` undoes it.
        let scale_bits = _mm_loadl_epi64(block_scales.cast());
        let scales = _mm256_cvtph_ps(_mm_slli_epi16::<7>(_mm_cvtepu8_epi16(scale_bits)));
        let pairs = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7); // two lanes share a scale
        let scale = _mm512_permutexvar_ps(pairs, _mm512_castps256_ps512(scales));
        Cursor { words: _mm512_loadu_si512(codes.cast()), scale }
    }
}

/// The next neighbour of each lane, `e2m1 * block_scale` in f32.
///
/// # Safety
/// The CPU has AVX-512 F/BW/VL.
#[inline(always)]
pub(super) unsafe fn decode(cursor: &mut Cursor) -> __m512 {
    // SAFETY: by contract.
    unsafe {
        let values = _mm512_setr_ps(
            0.0, 128.0, 256.0, 384.0, 512.0, 768.0, 1024.0, 1536.0, -0.0, -128.0, -256.0, -384.0, -512.0, -768.0,
            -1024.0, -1536.0,
        );
        // permutexvar reads the four low bits of each lane: the code.
        let vector = _mm512_mul_ps(_mm512_permutexvar_ps(cursor.words, values), cursor.scale);
        cursor.words = _mm512_srli_epi32::<4>(cursor.words);
        vector
    }
}

// SAFETY: callers check `available`.
unsafe impl Simd for Avx512 {
    const OP_BYTES: usize = 64;
    const VALUE_BYTES: usize = 4;
    const ROWS: usize = 8;
    const TOKENS: usize = 3; // 24 accumulators, 3 tokens and 1 weight of 32 registers
    type Acc = __m512;
    type Op = __m512;
    type Cursor = Cursor;

    #[inline(always)]
    unsafe fn load_op(from: *const u8) -> __m512 {
        // SAFETY: an operand vector is readable.
        unsafe { _mm512_loadu_ps(from.cast()) }
    }
    #[inline(always)]
    unsafe fn multiply_add(acc: __m512, w: __m512, x: __m512) -> __m512 {
        // SAFETY: the CPU has AVX-512.
        unsafe { _mm512_fmadd_ps(w, x, acc) }
    }
    #[inline(always)]
    unsafe fn store_op(to: *mut u8, value: __m512) {
        // SAFETY: an operand vector is writable.
        unsafe { _mm512_storeu_ps(to.cast(), value) }
    }
    #[inline(always)]
    unsafe fn open_group(codes: *const u8, block_scales: *const u8) -> Cursor {
        // SAFETY: 64 code bytes and 8 scales are readable.
        unsafe { open_group(codes, block_scales) }
    }
    #[inline(always)]
    unsafe fn decode(cursor: &mut Cursor, _index: usize) -> __m512 {
        // SAFETY: the CPU has the instructions.
        unsafe { decode(cursor) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
unsafe fn tile(tile: &Tile, out: &mut TileOut) {
    // SAFETY: by contract of Isa::tile.
    unsafe { generic::tile::<Avx512>(tile, out) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,fma")]
pub(super) unsafe fn add_scaled(sum: &mut [f32], weight: f32, y: &[f32]) {
    generic::add_scaled(sum, weight, y)
}
