// SPDX-License-Identifier: Apache-2.0
//! AVX2, FMA and F16C: 8 lanes.

use super::generic::{self, GROUP, Simd};
use super::tile::{Isa, Tile, TileOut};
use std::arch::x86_64::*;

pub(super) static ISA: Isa =
    Isa { name: "avx2", group: GROUP, group_bytes: 4 * GROUP, write_group, rest: None, tile, add_scaled, available };

fn available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

/// A 32-byte load puts 8 neighbours (one u32) in each lane; shifting right by 4 bits walks through them. So vector
/// `j` of half group `h` holds values `64 h + 8 lane + j`.
fn write_group(values: &[f32], out: &mut [u8]) -> bool {
    for (place, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let (vector, lane) = (place / 8, place % 8);
        *out = values[64 * (vector / 8) + 8 * lane + vector % 8].to_ne_bytes();
    }
    false
}

struct Avx2;

/// Codes of the two halves of a group, 8 neighbours a lane, and the scale of each lane.
struct Cursor {
    words: [__m256i; 2],
    scale: [__m256; 2],
}

// SAFETY: callers check `available`.
unsafe impl Simd for Avx2 {
    const OP_BYTES: usize = 32;
    const VALUE_BYTES: usize = 4;
    const ROWS: usize = 4;
    const TOKENS: usize = 3; // 12 accumulators, 3 tokens and 1 weight fill the 16 registers
    type Acc = __m256;
    type Op = __m256;
    type Cursor = Cursor;

    #[inline(always)]
    unsafe fn load_op(from: *const u8) -> __m256 {
        // SAFETY: an operand vector is readable.
        unsafe { _mm256_loadu_ps(from.cast()) }
    }
    #[inline(always)]
    unsafe fn multiply_add(acc: __m256, w: __m256, x: __m256) -> __m256 {
        // SAFETY: the CPU has FMA.
        unsafe { _mm256_fmadd_ps(w, x, acc) }
    }
    #[inline(always)]
    unsafe fn store_op(to: *mut u8, value: __m256) {
        // SAFETY: an operand vector is writable.
        unsafe { _mm256_storeu_ps(to.cast(), value) }
    }
    #[inline(always)]
    unsafe fn open_group(codes: *const u8, block_scales: *const u8) -> Cursor {
        // SAFETY: 64 code bytes and 8 scales, by the trait's contract.
        unsafe {
            // e4m3 bits as f16 are the value * 2^-8 (prepare refuses NaN and negative scales); `decode` undoes it.
            let scale_bits = _mm_loadl_epi64(block_scales.cast());
            let scales = _mm256_cvtph_ps(_mm_slli_epi16::<7>(_mm_cvtepu8_epi16(scale_bits)));
            // Two lanes (16 values) share a scale.
            let first = _mm256_permutevar8x32_ps(scales, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));
            let second = _mm256_permutevar8x32_ps(scales, _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7));
            let words = [_mm256_loadu_si256(codes.cast()), _mm256_loadu_si256(codes.add(32).cast())];
            Cursor { words, scale: [first, second] }
        }
    }
    #[inline(always)]
    unsafe fn decode(cursor: &mut Cursor, index: usize) -> __m256 {
        // SAFETY: the CPU has AVX2.
        unsafe {
            let magnitudes = _mm256_setr_ps(0.0, 128.0, 256.0, 384.0, 512.0, 768.0, 1024.0, 1536.0);
            let (words, scale) = (&mut cursor.words[index / 8], cursor.scale[index / 8]);
            // permutevar reads the three low bits: the magnitude. Bit 3 is the sign.
            let magnitude = _mm256_permutevar8x32_ps(magnitudes, *words);
            let sign = _mm256_and_si256(_mm256_slli_epi32::<28>(*words), _mm256_set1_epi32(i32::MIN));
            *words = _mm256_srli_epi32::<4>(*words);
            _mm256_mul_ps(_mm256_xor_ps(magnitude, _mm256_castsi256_ps(sign)), scale)
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile(tile: &Tile, out: &mut TileOut) {
    // SAFETY: by contract of Isa::tile.
    unsafe { generic::tile::<Avx2>(tile, out) }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_scaled(sum: &mut [f32], weight: f32, y: &[f32]) {
    generic::add_scaled(sum, weight, y)
}
