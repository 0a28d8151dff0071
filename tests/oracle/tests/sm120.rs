// SPDX-License-Identifier: Apache-2.0
//! `kernels/sm120/` against what the host plans for it, and against the format's law.

use nvfp4_moe::cuda::facts::{GEMM_SM120_SHARED_BYTES, SM120_GEMM_ROWS, TILE, sm120_missing_factor, sm120_threads};
use nvfp4_moe::format::{E2M1_VALUES, e4m3_decode};
use nvfp4_moe_oracle::facts;
use std::collections::HashSet;

#[test]
fn gemms_are_compiled_for_the_row_tiles_and_threads_that_the_host_launches() {
    assert_eq!(facts::sm120_row_tile_sizes(), SM120_GEMM_ROWS);
    for rows in SM120_GEMM_ROWS {
        assert_eq!(facts::sm120_threads_of_gemm(rows), sm120_threads(rows), "{rows} rows");
    }
}

#[test]
fn pipelines_fit_a_ctas_shared_memory() {
    for rows in SM120_GEMM_ROWS {
        for (is_nvfp4, is_gemm1) in [(false, false), (true, false), (true, true)] {
            let packed = facts::sm120_pipeline(rows, is_nvfp4, is_gemm1);
            let (stages, bytes) = (packed >> 24, packed & 0xf_ffff);
            assert!(stages >= 4 && bytes <= GEMM_SM120_SHARED_BYTES, "{rows} rows: {stages} stages, {bytes} bytes");
        }
    }
}

/// A tile as prepare writes it, of codes that are told apart by their place, is read back by fragment.
#[test]
fn a_tile_holds_every_code_and_scale_once() {
    let mut seen = HashSet::new();
    for t in 0..128 {
        for r in 0..4 {
            for i in 0..8 {
                let (lane, warp) = (t % 32, t / 32);
                let row = 16 * warp + facts::sm120_row_of_code(lane, r, i);
                let column = facts::sm120_column_of_code(lane, r, i);
                // prepare reads a word at once: its eight codes are neighbours, half a block of 16.
                assert_eq!(column, facts::sm120_column_of_code(lane, r, 0) + i);
                assert_eq!(facts::sm120_column_of_code(lane, r, 0) % 8, 0);
                assert!(seen.insert((row, column)), "row {row}, column {column} twice");
            }
            assert_eq!(facts::code_offset(t, r), 16 * t + 4 * r);
        }
    }
    assert!(seen.iter().all(|(row, column)| (0..64).contains(row) && (0..64).contains(column)));
    assert_eq!(seen.len(), TILE * TILE);
    let scales: Vec<i32> = (0..TILE as i32).map(facts::scale_offset).collect();
    assert!(scales.iter().enumerate().all(|(row, at)| *at == 2048 + 4 * row as i32));
    assert_eq!(scales[TILE - 1] + 4, facts::tile_bytes() as i32);
}

/// The value of bf16 bits.
fn bf16(bits: u32) -> f32 {
    f32::from_bits(bits << 16)
}

/// What `mul.rn.bf16x2` makes of exact products.
fn exact_product(a: f32, b: f32) -> f32 {
    let product = f64::from(a) * f64::from(b);
    let bits = (product as f32).to_bits();
    assert_eq!((bits & 0xffff, f64::from(product as f32)), (0, product), "{a:e} * {b:e} is not exact in bf16");
    product as f32
}

#[test]
fn bf16_products_are_exact_and_lack_what_the_sums_are_multiplied_by() {
    assert_eq!(sm120_missing_factor(), 1.0, "output factors are the checkpoint's");
    let two_to_119 = bf16(0x7b00);
    for scale in 0..0x7f {
        let pair = facts::small_scale_pair(scale);
        assert_eq!(pair & 0xffff, pair >> 16);
        let stored = exact_product(exact_product(bf16(pair & 0xffff), two_to_119), two_to_119);
        for code in 0..16 {
            for place in 0..8 {
                // Beside codes that are all ones.
                let word = !(15 << (4 * place)) | code << (4 * place);
                let pair = facts::bf16_pair(word, place / 2);
                let value = bf16(if place % 2 == 0 { pair & 0xffff } else { pair >> 16 });
                let product = exact_product(value, stored) * 256.0;
                assert_eq!(product, E2M1_VALUES[code as usize] * e4m3_decode(scale as u8), "{code}, {scale:#x}");
            }
        }
    }
}

#[test]
fn chunks_of_rows_have_places_of_their_own_and_are_read_from_all_banks() {
    for (is_nvfp4, line_bytes) in [(true, 128), (true, 64), (true, 32), (false, 128)] {
        let (rows, chunks) = (64, line_bytes / 16);
        let at = |row, chunk| facts::sm120_chunk_offset(is_nvfp4, line_bytes, row, chunk);
        let places: HashSet<i32> = (0..rows).flat_map(|row| (0..chunks).map(move |chunk| at(row, chunk))).collect();
        assert_eq!(places.len(), (rows * chunks) as usize);
        assert!(places.iter().all(|place| place % 16 == 0 && (0..rows * line_bytes).contains(place)));
        // What one phase of a load reads, 128 bytes: ldmatrix a chunk of eight rows, a load of 16 bytes four of two rows.
        let phases: Vec<Vec<i32>> = match is_nvfp4 {
            true => (0..chunks).map(|chunk| (0..8).map(|row| at(row, chunk)).collect()).collect(),
            false => (0..2).map(|half| (0..8).map(|i| at(i / 4, 4 * half + i % 4)).collect()).collect(),
        };
        for phase in phases {
            let banks: HashSet<i32> = phase.iter().map(|place| place / 16 % 8).collect();
            assert_eq!(banks.len(), 8, "lines of {line_bytes} bytes: {phase:?}");
        }
    }
}
