// SPDX-License-Identifier: Apache-2.0
//! AVX-512 VNNI: 32 products of 16-bit integers an instruction, for weights and activations that are integers in
//! disguise.
//!
//! e2m1 is half an integer from -12 to 12, which one table look-up decodes for 32 weights. Activations are integers of
//! 16 bits times a power of two for each block of 16. So the 16 products of a block are summed exactly before the first
//! rounding, and the block scale is multiplied in once, not for each weight: half the instructions of `avx512`.
//!
//! What the integers leave out of rows with outliers, `avx512` adds: see `vnni_operand`.

use super::avx512::{self, add_scaled};
use super::lanes::Lanes;
use super::rows::Rows;
use super::tile::{Isa, MAX_TILE_TOKENS, Rest, TILE_ROWS, Tile, TileOut};
use super::vnni_operand::{GROUP, Operand, STEPS, left_out, write_group};
use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

pub(super) static ISA: Isa = Isa {
    name: "avx512vnni",
    group: GROUP,
    group_bytes: size_of::<Operand>(),
    write_group,
    rest: Some(Rest { isa: &avx512::ISA, left_out }),
    tile,
    add_scaled,
    available,
};

fn available() -> bool {
    super::avx512::available() && is_x86_feature_detected!("avx512vnni")
}

/// Groups decoded at a time: 8 rows are half of a 32 KiB L1.
const CHUNK_GROUPS: usize = 4;

/// Decoded weights of one group of a row.
#[repr(C, align(64))]
struct Weights {
    values: [__m512i; STEPS],
    scales: __m512,
}

/// `[token][row]`
#[repr(align(64))]
struct Accumulators([[MaybeUninit<__m512>; TILE_ROWS]; MAX_TILE_TOKENS]);

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
unsafe fn tile(tile: &Tile, out: &mut TileOut) {
    let rows = Rows::new(tile);
    // SAFETY: x has operand rows of this reduction, and the CPU the instructions.
    unsafe {
        match tile.x.len() {
            0 => {}
            1 => few_tokens::<4, 1>(&rows, tile.x, out),
            2 => few_tokens::<4, 2>(&rows, tile.x, out),
            3 => few_tokens::<2, 3>(&rows, tile.x, out),
            4 => few_tokens::<2, 4>(&rows, tile.x, out),
            _ => many_tokens(&rows, tile.x, out),
        }
        if tile.x.iter().any(|x| ISA.has_rest(*x, tile.reduction)) {
            add_rest(tile, out);
        }
    }
}

/// Add what the integers of some rows left out. `avx512` computes each row alike whatever its neighbours, so a token
/// alone still equals the token in a batch.
///
/// # Safety
/// As [`Isa::tile`].
#[cold]
unsafe fn add_rest(tile: &Tile, out: &mut TileOut) {
    let (mut x, mut tokens) = ([std::ptr::null(); MAX_TILE_TOKENS], [0; MAX_TILE_TOKENS]);
    let mut count = 0;
    for (token, row) in tile.x.iter().enumerate() {
        // SAFETY: an operand row.
        if unsafe { ISA.has_rest(*row, tile.reduction) } {
            (x[count], tokens[count]) = (row.wrapping_add(ISA.main_row_bytes(tile.reduction)), token);
            count += 1;
        }
    }
    let mut rest: TileOut = [[0.0; TILE_ROWS]; MAX_TILE_TOKENS];
    // SAFETY: `write_row` put an operand row of avx512 behind each of these; this CPU has what avx512 needs.
    unsafe { (avx512::ISA.tile)(&Tile { x: &x[..count], ..*tile }, &mut rest) };
    for (token, rest) in tokens[..count].iter().zip(&rest) {
        for (out, rest) in out[*token].iter_mut().zip(rest) {
            *out += rest;
        }
    }
}

/// A group of weights: the first and the second 8 codes of each lane's block, and its scale * 2^-8.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
unsafe fn open_group((codes, block_scales): (*const u8, *const u8)) -> ([__m512i; 2], __m512) {
    // SAFETY: 128 code bytes and 16 scales are readable.
    let (low, high, scale_bits) = unsafe {
        (_mm512_loadu_ps(codes.cast()), _mm512_loadu_ps(codes.add(64).cast()), _mm_loadu_si128(block_scales.cast()))
    };
    let first = _mm512_shuffle_ps::<0b10_00_10_00>(low, high);
    let second = _mm512_shuffle_ps::<0b11_01_11_01>(low, high);
    // e4m3 bits as f16 are the value * 2^-8 (prepare refuses NaN and negative scales).
    let scales = _mm512_cvtph_ps(_mm256_slli_epi16::<7>(_mm256_cvtepu8_epi16(scale_bits)));
    let blocks = _mm512_setr_epi32(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15);
    let words = [_mm512_castps_si512(first), _mm512_castps_si512(second)];
    (words, _mm512_permutexvar_ps(blocks, scales))
}

/// The next neighbour of each word, doubled.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
fn decode(words: &mut __m512i) -> __m512i {
    // The low five bits of a word choose, so the table is there twice: the fifth bit is the next code's.
    const DOUBLED: [i16; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];
    const TABLE: [[i16; 16]; 2] = [DOUBLED; 2];
    // SAFETY: the table has 64 bytes.
    let table = unsafe { _mm512_loadu_si512(TABLE.as_ptr().cast()) };
    let values = _mm512_permutexvar_epi16(*words, table);
    *words = _mm512_srli_epi16::<4>(*words);
    values
}

/// `acc + w * x`, the products of two neighbours a lane.
///
/// Assembly, because LLVM knows better than `_mm512_dpwssd_epi32`: it makes it vpmaddwd and vpaddd, twice the work.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
fn multiply_add(mut acc: __m512i, w: __m512i, x: __m512i) -> __m512i {
    // SAFETY: the CPU has AVX-512 VNNI.
    unsafe {
        asm!(
            "vpdpwssd {acc}, {w}, {x}",
            acc = inout(zmm_reg) acc, w = in(zmm_reg) w, x = in(zmm_reg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    acc
}

/// `acc + integers * (weight_scales * x_scales)`: the same operations, in the same order, on every path.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
fn fold(acc: __m512, integers: __m512i, weight_scales: __m512, x_scales: __m512) -> __m512 {
    _mm512_fmadd_ps(_mm512_cvtepi32_ps(integers), _mm512_mul_ps(weight_scales, x_scales), acc)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
unsafe fn load_values(x: *const u8, group: usize, step: usize) -> __m512i {
    // SAFETY: by the callers' contract, x has this group.
    unsafe { _mm512_loadu_si512(x.add(group * size_of::<Operand>() + 64 * step).cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
unsafe fn load_scales(x: *const u8, group: usize) -> __m512 {
    // SAFETY: as above.
    unsafe { _mm512_loadu_ps(x.add(group * size_of::<Operand>() + 64 * STEPS).cast()) }
}

/// Weights go from decoding straight into the sums: nothing is stored.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
#[allow(clippy::needless_range_loop)] // constant indices keep words and sums in registers
unsafe fn few_tokens<const ROWS: usize, const TOKENS: usize>(rows: &Rows<GROUP>, x: &[*const u8], out: &mut TileOut) {
    let x = &x[..TOKENS];
    for first in (0..TILE_ROWS).step_by(ROWS) {
        // SAFETY: see `tile`.
        unsafe {
            let mut sums = [[_mm512_setzero_ps(); ROWS]; TOKENS];
            for group in 0..rows.groups {
                let mut words = [[_mm512_setzero_si512(); ROWS]; 2];
                let mut scales = [_mm512_setzero_ps(); ROWS];
                for row in 0..ROWS {
                    let group = open_group(rows.group(first + row, group));
                    ([words[0][row], words[1][row]], scales[row]) = group;
                }
                let mut integers = [[_mm512_setzero_si512(); ROWS]; TOKENS];
                multiply_half(&mut words[0], x, group, 0, &mut integers);
                multiply_half(&mut words[1], x, group, STEPS / 2, &mut integers);
                for token in 0..TOKENS {
                    let x_scales = load_scales(x[token], group);
                    for row in 0..ROWS {
                        sums[token][row] = fold(sums[token][row], integers[token][row], scales[row], x_scales);
                    }
                }
            }
            for token in 0..TOKENS {
                for row in 0..ROWS {
                    out[token][first + row] = sums[token][row].sum();
                }
            }
        }
    }
}

/// Half of a group's steps, from the words that hold its codes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
#[allow(clippy::needless_range_loop)] // as above
unsafe fn multiply_half<const ROWS: usize, const TOKENS: usize>(
    words: &mut [__m512i; ROWS],
    x: &[*const u8],
    group: usize,
    first_step: usize,
    integers: &mut [[__m512i; ROWS]; TOKENS],
) {
    for step in 0..STEPS / 2 {
        for row in 0..ROWS {
            let w = decode(&mut words[row]);
            for token in 0..TOKENS {
                // SAFETY: by the callers' contract.
                let x = unsafe { load_values(x[token], group, first_step + step) };
                integers[token][row] = multiply_add(integers[token][row], w, x);
            }
        }
    }
}

/// Weights are decoded once, a chunk of the reduction at a time, for all tokens.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
unsafe fn many_tokens(rows: &Rows<GROUP>, x: &[*const u8], out: &mut TileOut) {
    let mut weights = [const { [const { MaybeUninit::<Weights>::uninit() }; CHUNK_GROUPS] }; TILE_ROWS];
    let mut acc = Accumulators([[MaybeUninit::uninit(); TILE_ROWS]; MAX_TILE_TOKENS]);
    let acc = &mut acc.0[..x.len()];
    // SAFETY: see `tile`; what is read of `weights` and `acc` was written before.
    unsafe {
        for acc in acc.iter_mut().flatten() {
            acc.write(_mm512_setzero_ps());
        }
        let groups = rows.groups;
        for first in (0..groups).step_by(CHUNK_GROUPS) {
            let chunk = (groups - first).min(CHUNK_GROUPS);
            for (row, weights) in weights.iter_mut().enumerate() {
                for (i, weights) in weights[..chunk].iter_mut().enumerate() {
                    let (mut words, scales) = open_group(rows.group(row, first + i));
                    let weights = weights.as_mut_ptr();
                    for step in 0..STEPS {
                        (*weights).values[step] = decode(&mut words[step / 4]);
                    }
                    (*weights).scales = scales;
                }
            }
            let weights: &[[Weights; CHUNK_GROUPS]; TILE_ROWS] = &*std::ptr::from_ref(&weights).cast();
            for (x, acc) in x.chunks(3).zip(acc.chunks_mut(3)) {
                match x.len() {
                    1 => dot::<1>(weights, x, first, chunk, acc),
                    2 => dot::<2>(weights, x, first, chunk, acc),
                    _ => dot::<3>(weights, x, first, chunk, acc),
                }
            }
        }
        for (out, acc) in out.iter_mut().zip(acc.iter()) {
            for (out, acc) in out.iter_mut().zip(acc) {
                *out = acc.assume_init().sum();
            }
        }
    }
}

/// Rows whose integers and sums, with those of 3 tokens, fit the 32 registers.
const DOT_ROWS: usize = 4;

/// `acc[token][row] += weights[row] * x[token]` over one chunk.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
#[allow(clippy::needless_range_loop)] // constant indices keep integers and sums in registers
unsafe fn dot<const TOKENS: usize>(
    weights: &[[Weights; CHUNK_GROUPS]; TILE_ROWS],
    x: &[*const u8],
    first_group: usize,
    groups: usize,
    acc: &mut [[MaybeUninit<__m512>; TILE_ROWS]],
) {
    for first in (0..TILE_ROWS).step_by(DOT_ROWS) {
        // SAFETY: see `many_tokens`.
        unsafe {
            let mut sums = [[_mm512_setzero_ps(); DOT_ROWS]; TOKENS];
            for token in 0..TOKENS {
                for row in 0..DOT_ROWS {
                    sums[token][row] = acc[token][first + row].assume_init();
                }
            }
            for group in 0..groups {
                let mut integers = [[_mm512_setzero_si512(); DOT_ROWS]; TOKENS];
                for step in 0..STEPS {
                    let mut xs = [load_values(x[0], first_group + group, step); TOKENS];
                    for token in 1..TOKENS {
                        xs[token] = load_values(x[token], first_group + group, step);
                    }
                    for row in 0..DOT_ROWS {
                        let w = weights[first + row][group].values[step];
                        for token in 0..TOKENS {
                            integers[token][row] = multiply_add(integers[token][row], w, xs[token]);
                        }
                    }
                }
                for token in 0..TOKENS {
                    let x_scales = load_scales(x[token], first_group + group);
                    for row in 0..DOT_ROWS {
                        let weight_scales = weights[first + row][group].scales;
                        sums[token][row] = fold(sums[token][row], integers[token][row], weight_scales, x_scales);
                    }
                }
            }
            for token in 0..TOKENS {
                for row in 0..DOT_ROWS {
                    acc[token][first + row].write(sums[token][row]);
                }
            }
        }
    }
}
