// SPDX-License-Identifier: Apache-2.0
//! The codecs of `kernels/common/format.cuh` against the law, `nvfp4_moe::format`, and its golden vectors.

use crate::golden_files::{bits, cases, lines, number};
use nvfp4_moe::format::{
    self, BLOCK_SIZE, BlockReport, QuantScale, e2m1_encode, quantize_block, sf_offset_128x4, sf_size_128x4,
};
use nvfp4_moe_oracle::facts;

fn e2m1(x: f32) -> u32 {
    facts::e2m1_code(facts::e2m1_round(x))
}

#[test]
fn activations_answer_as_the_golden_vectors() {
    for line in lines("activation.txt") {
        let v: Vec<f32> = line[2..].iter().map(|word| f32::from_bits(bits(word))).collect();
        let got = facts::activation(number(&line[1]), v[0], v[1], v[2], v[3], v[4]);
        assert!((got - v[5]).abs() <= (v[5].abs() / 2f32.powi(20)).max(v[4].abs() / 2f32.powi(30)), "{line:?}: {got}");
    }
}

fn equal(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}

/// The file's values, decoded and encoded. Block scales are not negative: the device encodes no such e4m3.
fn check_codec(file: &str, num_codes: usize, decode: fn(u32) -> f32, encode: fn(f32) -> u32, negative: bool) {
    let (mut decoded, mut encoded) = (0, 0);
    for line in lines(file) {
        match (line[0].as_str(), bits(&line[1]), bits(&line[2])) {
            ("decode", code, value) => {
                assert!(equal(decode(code), f32::from_bits(value)), "{line:?}");
                decoded += 1;
            }
            ("encode", value, code) if negative || value >> 31 == 0 => {
                assert_eq!(encode(f32::from_bits(value)), code, "{line:?}");
                encoded += 1;
            }
            ("encode", ..) => {}
            _ => panic!("{line:?}"),
        }
    }
    assert_eq!(decoded, num_codes);
    assert!(encoded > 250, "only {encoded} values of {file}");
}

#[test]
fn codecs_answer_as_the_golden_vectors() {
    check_codec("e2m1.txt", 16, facts::e2m1_decode, e2m1, true);
    check_codec("e4m3.txt", 256, facts::e4m3_decode, facts::e4m3_encode, false);
}

#[test]
fn codes_decode_to_the_same_bits() {
    for code in 0..=255 {
        let (low, byte) = (code & 15, code as u8);
        assert!(equal(facts::e2m1_decode(low), format::e2m1_decode(low as u8)), "e2m1 {low}");
        assert!(equal(facts::e4m3_decode(code), format::e4m3_decode(byte)), "e4m3 {byte:#x}");
    }
}

/// Every 61st f32 up to 16, and all within 1000 steps of a border or a power of two.
fn values_near_e2m1() -> impl Iterator<Item = f32> {
    let near = [0.25f32, 0.5, 0.75, 1.0, 1.25, 1.75, 2.0, 2.5, 3.5, 4.0, 5.0, 6.0, 8.0];
    let near = near.into_iter().flat_map(|at| at.to_bits() - 1000..=at.to_bits() + 1000);
    (0..16f32.to_bits()).step_by(61).chain(near).map(f32::from_bits)
}

#[test]
fn values_round_to_e2m1_as_the_borders_say() {
    const BORDERS: [f32; 7] = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0];
    for x in values_near_e2m1() {
        // Above a border, the code above; on it, where the code above is even.
        let above = |(i, border): (usize, &f32)| if i % 2 == 0 { x > *border } else { x >= *border };
        let code = BORDERS.iter().enumerate().filter(|border| above(*border)).count() as u32;
        let value = facts::e2m1_round(x);
        assert!(
            facts::e2m1_code(value) == code && value == facts::e2m1_decode(code),
            "{x} is {value}, not code {code}"
        );
        assert_eq!((e2m1_encode(x), e2m1_encode(-x)), (code as u8, e2m1(-x) as u8), "{x}");
    }
}

#[test]
fn values_round_to_e4m3_as_the_law_says() {
    // Every 1009th of all non-negative f32, and all within 100 steps of a code or of a border between two.
    let codes = (0..0x7e).map(format::e4m3_decode).collect::<Vec<_>>();
    let borders = codes.windows(2).map(|two| (two[0] + two[1]) / 2.0);
    let near = codes.iter().copied().chain(borders).chain([448.0, 464.0, 480.0]);
    let near = near.flat_map(|at| at.to_bits().saturating_sub(100)..=at.to_bits() + 100);
    for bits in (0..=u32::MAX >> 1).step_by(1009).chain(near) {
        let x = f32::from_bits(bits);
        assert_eq!(facts::e4m3_encode(x), u32::from(format::e4m3_encode(x)), "{x:e}");
    }
}

/// A block by the device's codec; the host's says the same.
fn quantized(x: &[f32; BLOCK_SIZE], global_scale: f32) -> facts::Block {
    let block = facts::quantize(x, global_scale);
    let mut codes = [0; BLOCK_SIZE / 2];
    let (scale, report) = quantize_block(x, QuantScale::from_global_scale(global_scale), &mut codes);
    assert_eq!((block.codes, block.scale), (u64::from_le_bytes(codes), scale.into()), "{x:?} by {global_scale:e}");
    let seen = BlockReport {
        saturated_blocks: block.saturated.into(),
        nonfinite_values: block.nonfinite.unsigned_abs().into(),
    };
    assert_eq!(seen, report, "{x:?} by {global_scale:e}");
    block
}

#[test]
fn rows_quantise_to_the_golden_bytes() {
    for case in cases("quantize.txt") {
        let (name, cols) = (&case["case"], number::<usize>(&case["cols"][0]));
        let x: Vec<f32> = case["x"].iter().map(|word| f32::from_bits(bits(word) << 16)).collect();
        let bytes = |key: &str| case[key].iter().map(|word| bits(word) as u8).collect::<Vec<_>>();
        let is_static = case["policy"][0] == "static";
        let (mut packed, mut scales) = (Vec::new(), Vec::new());
        for (r, row) in x.chunks(cols).enumerate() {
            let global_scale = f32::from_bits(bits(&case["global_scale"][if is_static { 0 } else { r }]));
            if !is_static {
                let amax = row.iter().filter(|x| x.is_finite()).fold(0f32, |amax, x| amax.max(x.abs()));
                assert_eq!(facts::dynamic_global_scale(amax).to_bits(), global_scale.to_bits(), "{name:?} row {r}");
            }
            for block in row.as_chunks::<BLOCK_SIZE>().0 {
                let block = quantized(block, global_scale);
                packed.extend(block.codes.to_le_bytes());
                scales.push(block.scale as u8);
            }
        }
        assert_eq!(packed, bytes("packed"), "{name:?}");
        assert_eq!(scales, bytes("block_scale"), "{name:?}");
    }
}

#[test]
fn block_scales_are_swizzled_alike() {
    let mut golden = 0;
    for line in lines("sf_layout.txt").iter().filter(|line| line[0] == "offset") {
        let n: Vec<u64> = line[1..].iter().map(|word| number(word)).collect();
        assert_eq!(facts::sf_offset_128x4(n[0], n[1], n[2]), n[3], "{line:?}");
        golden += 1;
    }
    assert!(golden > 100);
    for (rows, cols) in [(1, 1), (31, 3), (128, 4), (129, 5), (200, 45), (384, 128), (513, 7)] {
        // Padding included: the last byte of the buffer is the last tile's.
        let (padded_rows, padded_cols) = (u64::next_multiple_of(rows, 128), u64::next_multiple_of(cols, 4));
        let mut end = 0;
        for (row, col) in (0..padded_rows).flat_map(|row| (0..padded_cols).map(move |col| (row, col))) {
            let offset = facts::sf_offset_128x4(row, col, cols);
            assert_eq!(offset, sf_offset_128x4(row, col, cols), "({row}, {col}) of {rows} x {cols}");
            end = end.max(offset + 1);
        }
        assert_eq!(end, sf_size_128x4(rows, cols), "{rows} x {cols}");
    }
}
