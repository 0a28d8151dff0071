// SPDX-License-Identifier: Apache-2.0
//! Hopper's weight tiles (`kernels/hopper/layout.cuh`) against what `rust/cuda` allocates for them and scales by, and
//! against the format's law.

use nvfp4_moe::config::WeightForm;
use nvfp4_moe::cuda::facts::{FP8_LARGEST_EXPONENT, TILE, fp8_row_bytes, hopper_missing_factor, hopper_slice};
use nvfp4_moe::format::{E2M1_VALUES, MAX_SCALE_SPAN, e4m3_decode, is_power_of_two};
use nvfp4_moe::shape::RowOrder;
use nvfp4_moe_oracle::facts;

const GATED: [RowOrder; 3] = [RowOrder::GateFirst, RowOrder::UpFirst, RowOrder::Interleaved];

#[test]
fn tiles_are_as_large_as_the_storage_has_room_for() {
    let (single, paired) = (facts::tile_bytes() as usize, facts::paired_tile_bytes() as usize);
    for (form, bytes) in [(WeightForm::Exact, single), (WeightForm::Fp8, single), (WeightForm::Fp8Pairs, paired)] {
        for (hidden, inter) in [(64, 64), (160, 96), (7168, 3072)] {
            let slice = hopper_slice(form, hidden, inter);
            for matrix in [slice.w13, slice.w2] {
                assert_eq!(matrix.codes.len, matrix.m_tiles * matrix.slabs * bytes, "{form:?}");
                assert!(form == WeightForm::Exact || matrix.slabs * TILE == fp8_row_bytes(matrix.cols), "{matrix:?}");
            }
        }
    }
}

/// The rows of a matrix's tiles, in their order; `None` is padding.
fn checkpoint_rows(m_tiles: usize, rows: usize, order: RowOrder) -> Vec<Option<usize>> {
    let of_tile = |m| (0..TILE).map(move |r| facts::checkpoint_row(m as i32, r as i32, rows as i32, order as i32));
    (0..m_tiles).flat_map(of_tile).map(|row| usize::try_from(row).ok()).collect()
}

#[test]
fn tiles_hold_every_row_once() {
    for (hidden, inter) in [(16, 16), (144, 48), (272, 208), (4096, 2048)] {
        let slice = hopper_slice(WeightForm::Exact, hidden, inter);
        for (matrix, order) in GATED.map(|order| (slice.w13, order)).into_iter().chain([(slice.w2, RowOrder::Plain)]) {
            let mut rows: Vec<usize> =
                checkpoint_rows(matrix.m_tiles, matrix.rows, order).into_iter().flatten().collect();
            rows.sort_unstable();
            assert!(rows.into_iter().eq(0..matrix.rows), "{matrix:?} {order:?}");
        }
    }
}

#[test]
fn gate_and_up_rows_alternate_by_8() {
    let inter = 208;
    let slice = hopper_slice(WeightForm::Exact, 64, inter);
    for order in GATED {
        let row_of = |is_up: bool, feature: usize| {
            let (first, step) = order.rows(is_up, inter);
            first + feature * step
        };
        let rows = checkpoint_rows(slice.w13.m_tiles, 2 * inter, order);
        for (i, row) in rows.into_iter().enumerate() {
            // 16 rows are 8 features: their gates, then their ups. A tile holds 32 features.
            let feature = i / 16 * 8 + i % 8;
            let wanted = (feature < inter).then(|| row_of(i % 16 >= 8, feature));
            assert_eq!(row, wanted, "tile row {i}, {order:?}");
        }
        // Gate first, as biases and the portable kernels' weights lie; and whose scale a checkpoint's row has.
        for is_up in [false, true] {
            for feature in 0..inter {
                let (row, rows) = (row_of(is_up, feature) as i32, 2 * inter as i32);
                let place = (usize::from(is_up) * inter + feature) as i32;
                assert_eq!(facts::checkpoint_row_of(order as i32, place, rows), row, "{order:?}");
                assert_eq!(facts::projection_of_row(order as i32, row, rows), order.place(is_up) as i32, "{order:?}");
            }
        }
    }
}

#[test]
fn rows_of_e4m3_are_permuted_within_what_is_allocated() {
    for cols in [16, 48, 64, 80, 7168] {
        let words = fp8_row_bytes(cols) / 4;
        let mut seen = vec![false; words];
        for block in 0..words / 4 {
            for i in 0..4 {
                let word = facts::fp8_row_word(block as i32, i) as usize;
                assert!(!std::mem::replace(&mut seen[word], true), "word {word} of {cols} columns is taken twice");
                // A thread's blocks are neighbours, 2c and 2c + 1 of the 8 of two slabs; a slab has 16 words.
                let (slab, c) = (word / 16, word % 4);
                assert_eq!(facts::fp8_block(slab as i32, c as i32) as usize, block);
                assert_eq!((slab / 2, c), (block / 8, block % 8 / 2));
            }
        }
        assert!(seen.into_iter().all(|seen| seen));
    }
}

/// The value of bf16 bits.
fn bf16(bits: u32) -> f32 {
    f32::from_bits(bits << 16)
}

#[test]
fn bf16_products_lack_the_factor_that_the_host_puts_into_output_factors() {
    let missing = hopper_missing_factor();
    for scale in 1..0x7f {
        let stored = bf16(0x7000 | facts::e5m3_scale(scale) << 4); // as ScalePairs::decode
        for code in 0..16 {
            let value = bf16(facts::scatter_pair(0, code, 0) & 0xffff);
            let wanted = E2M1_VALUES[code as usize] * e4m3_decode(scale as u8);
            assert_eq!((value * stored * missing).to_bits(), wanted.to_bits(), "code {code}, scale {scale:#x}");
        }
    }
}

#[test]
fn fp8_takes_the_span_that_the_host_allows() {
    assert_eq!(facts::fp8_span(), MAX_SCALE_SPAN);
    for bits in 1..0x7f {
        assert_eq!(facts::e4m3_exponent(bits), e4m3_decode(bits as u8).log2().floor() as i32, "{bits:#x}");
    }
}

#[test]
fn fp8_tables_hold_every_product() {
    let mut pairs = 0;
    for largest in (1..0x7f).filter(|bits| is_power_of_two(*bits)) {
        // What prepare_alphas puts into the output factor of a matrix with this largest scale.
        let exponent = facts::e4m3_exponent(largest.into()) - FP8_LARGEST_EXPONENT as i32;
        let factor = 2f32.powi(exponent);
        let (top, scales) = (e4m3_decode(largest), (1..=largest).filter(|bits| is_power_of_two(*bits)));
        for scale in scales.filter(|bits| top / e4m3_decode(*bits) <= 2f32.powi(MAX_SCALE_SPAN)) {
            let stored = facts::fp8_scale(scale.into(), largest.into());
            let table = u64::from(facts::fp8_table_high(stored)) << 32 | u64::from(facts::fp8_table_low(stored));
            for (byte, value) in table.to_le_bytes().into_iter().zip(E2M1_VALUES) {
                assert_eq!(
                    e4m3_decode(byte) * factor,
                    value * e4m3_decode(scale),
                    "{value}, {scale:#x} of {largest:#x}"
                );
            }
            pairs += 1;
        }
    }
    assert!(pairs > 100, "{pairs}");
}
