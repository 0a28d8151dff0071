//! AVX2, FMA and F16C: 8 lanes.

use super::generic::{self, Simd};
use super::{GROUP, Isa, Tile, TileOut};
use std::arch::x86_64::*;

pub(super) static ISA: Isa = Isa { name: "avx2", operand_bytes: 4, order: order(), tile, add_scaled, available };

fn available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

/// A 32-byte load puts 8 neighbours (one u32) in each lane; shifting right by 4 bits walks through them. So vector
/// `j` of half group `h` holds values `64 h + 8 lane + j`.
const fn order() -> [u8; GROUP] {
    let mut order = [0; GROUP];
    let mut place = 0;
    while place < GROUP {
        let (vector, lane) = (place / 8, place % 8);
        order[place] = (64 * (vector / 8) + 8 * lane + vector % 8) as u8;
        place += 1;
    }
    order
}

struct Avx2;

// SAFETY: callers check `available`.
unsafe impl Simd for Avx2 {
    const LANES: usize = 8;
    const OP_BYTES: usize = 32;
    const VALUE_BYTES: usize = 4;
    const TOKENS: usize = 3; // 12 accumulators, 3 tokens and 1 weight fill the 16 registers
    type Acc = __m256;
    type Op = __m256;

    #[inline(always)]
    unsafe fn load_acc(from: *const f32) -> __m256 {
        // SAFETY: by the trait's contract.
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store_acc(to: *mut f32, value: __m256) {
        // SAFETY: by the trait's contract.
        unsafe { _mm256_storeu_ps(to, value) }
    }
    #[inline(always)]
    unsafe fn load_op(from: *const u8) -> __m256 {
        // SAFETY: by the trait's contract.
        unsafe { _mm256_loadu_ps(from.cast()) }
    }
    #[inline(always)]
    unsafe fn multiply_add(acc: __m256, w: __m256, x: __m256) -> __m256 {
        // SAFETY: the CPU has FMA.
        unsafe { _mm256_fmadd_ps(w, x, acc) }
    }
    #[inline(always)]
    unsafe fn dequantize(codes: *const u8, block_scales: *const u8, groups: usize, out: *mut u8) {
        // SAFETY: 64 codes bytes, 8 scales and 512 output bytes a group, by the trait's contract.
        unsafe {
            // e4m3 bits as f16 are the value * 2^-8 (prepare refuses NaN and negative scales); the table undoes it.
            let magnitudes =
                _mm256_mul_ps(_mm256_setr_ps(0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0), _mm256_set1_ps(256.0));
            let sign_bit = _mm256_set1_epi32(i32::MIN);
            for group in 0..groups {
                let scale_bits = _mm_loadl_epi64(block_scales.add(group * 8).cast());
                let scales = _mm256_cvtph_ps(_mm_slli_epi16::<7>(_mm_cvtepu8_epi16(scale_bits)));
                for half in 0..2usize {
                    // Two lanes (16 values) share a scale.
                    let pairs = if half == 0 {
                        _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3)
                    } else {
                        _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7)
                    };
                    let scale = _mm256_permutevar8x32_ps(scales, pairs);
                    let mut words = _mm256_loadu_si256(codes.add(group * 64 + half * 32).cast());
                    let out = out.cast::<f32>().add(group * GROUP + half * 64);
                    for j in 0..8 {
                        // permutevar reads the three low bits: the magnitude. Bit 3 is the sign.
                        let magnitude = _mm256_permutevar8x32_ps(magnitudes, words);
                        let sign = _mm256_and_si256(_mm256_slli_epi32::<28>(words), sign_bit);
                        let value = _mm256_xor_ps(magnitude, _mm256_castsi256_ps(sign));
                        _mm256_storeu_ps(out.add(j * 8), _mm256_mul_ps(value, scale));
                        words = _mm256_srli_epi32::<4>(words);
                    }
                }
            }
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
