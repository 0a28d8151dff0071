// SPDX-License-Identifier: Apache-2.0
//! The golden vectors of `tests/golden` against the Rust host codec, which is the law for every kernel.

#![allow(clippy::unwrap_used)] // helpers of tests, which may fail as tests do

#[path = "golden_files.rs"]
mod golden_files;

use golden_files::{bits, cases, lines, number};
use nvfp4_moe::activation::{Activation, ActivationKind};
use nvfp4_moe::format::{
    BlockReport, MatrixOf, Part, QuantScale, RoundedMatrix, Rounding, RoundingSums, WeightError, cast_mxfp4,
    dynamic_global_scale, e2m1_decode, e2m1_encode, e4m3_decode, e4m3_encode, quantize_row, quantize_row_fp8,
    sf_offset_128x4, sf_size_128x4,
};
use nvfp4_moe::routing::{Placement, Routing, max_rows, route};

/// `VxN` is V, N times.
fn runs(words: &[String]) -> Vec<i64> {
    let run = |word: &String| match word.split_once('x') {
        Some((value, count)) => vec![number(value); number(count)],
        None => vec![number(word)],
    };
    words.iter().flat_map(run).collect()
}

fn check_codec(file: &str, decode: fn(u8) -> f32, encode: fn(f32) -> u8) {
    let lines = lines(file);
    assert!(lines.len() > 500);
    for line in lines {
        match (line[0].as_str(), bits(&line[1]), bits(&line[2])) {
            ("decode", code, value) if f32::from_bits(value).is_nan() => assert!(decode(code as u8).is_nan()),
            ("decode", code, value) => assert_eq!(decode(code as u8).to_bits(), value, "{line:?}"),
            ("encode", value, code) => assert_eq!(u32::from(encode(f32::from_bits(value))), code, "{line:?}"),
            _ => panic!("{line:?}"),
        }
    }
}

#[test]
fn e2m1() {
    check_codec("e2m1.txt", e2m1_decode, e2m1_encode);
}

#[test]
fn e4m3() {
    check_codec("e4m3.txt", e4m3_decode, e4m3_encode);
}

#[test]
fn quantize() {
    for case in cases("quantize.txt") {
        let (name, cols) = (&case["case"], number::<usize>(&case["cols"][0]));
        let x: Vec<f32> = case["x"].iter().map(|word| f32::from_bits(bits(word) << 16)).collect();
        let bytes = |key: &str| case[key].iter().map(|word| bits(word) as u8).collect::<Vec<_>>();
        let is_static = case["policy"][0] == "static";

        let (mut packed, mut scales, mut report) = (Vec::new(), Vec::new(), BlockReport::default());
        for (r, row) in x.chunks(cols).enumerate() {
            let wanted = f32::from_bits(bits(&case["global_scale"][if is_static { 0 } else { r }]));
            let global_scale = if is_static { wanted } else { dynamic_global_scale(row) };
            assert_eq!(global_scale.to_bits(), wanted.to_bits(), "{name:?} row {r}");
            let mut codes = vec![0; cols / 2];
            let mut row_scales = vec![0; cols / 16];
            let scale = QuantScale::from_global_scale(global_scale);
            report.merge(quantize_row(row, scale, &mut codes, |i, byte| row_scales[i] = byte));
            packed.extend(codes);
            scales.extend(row_scales);
        }
        assert_eq!(packed, bytes("packed"), "{name:?}");
        assert_eq!(scales, bytes("block_scale"), "{name:?}");
        let (saturated_blocks, nonfinite_values) = (number(&case["saturated"][0]), number(&case["nonfinite"][0]));
        assert_eq!(report, BlockReport { saturated_blocks, nonfinite_values }, "{name:?}");
    }
}

#[test]
fn fp8_rows() {
    for case in cases("fp8_rows.txt") {
        let (name, cols) = (&case["case"], number::<usize>(&case["cols"][0]));
        let x: Vec<f32> = case["x"].iter().map(|word| f32::from_bits(bits(word) << 16)).collect();
        let (mut codes, mut report) = (vec![0xff; x.len()], BlockReport::default());
        for (r, (row, codes)) in x.chunks(cols).zip(codes.chunks_mut(cols)).enumerate() {
            let (scale, seen) = quantize_row_fp8(row, codes);
            assert_eq!(scale.to_bits(), bits(&case["row_scale"][r]), "{name:?} row {r}");
            report.merge(seen);
        }
        assert_eq!(codes, case["codes"].iter().map(|word| bits(word) as u8).collect::<Vec<_>>(), "{name:?}");
        let nonfinite_values = number(&case["nonfinite"][0]);
        assert_eq!(report, BlockReport { saturated_blocks: 0, nonfinite_values }, "{name:?}");
    }
}

#[test]
fn activations() {
    for line in lines("activation.txt") {
        let kind = ActivationKind::ALL[number::<usize>(&line[1])];
        let v: Vec<f32> = line[2..].iter().map(|word| f32::from_bits(bits(word))).collect();
        let got = Activation { kind, limit: v[0], alpha: v[1], beta: v[2] }.apply(v[3], v[4]);
        assert!((got - v[5]).abs() <= (v[5].abs() / 2f32.powi(20)).max(v[4].abs() / 2f32.powi(30)), "{line:?}: {got}");
    }
}

#[test]
fn mxfp4() {
    for case in cases("mxfp4.txt") {
        let name = &case["case"];
        let bytes = |key: &str| case[key].iter().map(|word| bits(word) as u8).collect::<Vec<_>>();
        let (codes, scales) = (bytes("packed"), bytes("e8m0_scale"));
        let mut block_scales = vec![0x55; 2 * scales.len()];
        let cast = cast_mxfp4(&"e8m0_scale", &codes, &scales, &mut block_scales);
        assert_eq!(cast.is_err(), case["refused"] == ["1"], "{name:?}: {cast:?}");
        match cast {
            Ok(global) => {
                assert_eq!(block_scales, bytes("block_scale"), "{name:?}");
                assert_eq!(global.to_bits(), bits(&case["global_scale"][0]), "{name:?}");
            }
            Err(_) => assert_eq!(block_scales, vec![0x55; 2 * scales.len()], "{name:?}"),
        }
    }
}

#[test]
fn rounding() {
    for case in cases("rounding.txt") {
        let name = &case["case"];
        let bytes = |key: &str| case[key].iter().map(|word| bits(word) as u8).collect::<Vec<_>>();
        let (codes, scales) = (bytes("packed"), bytes("block_scale"));
        let rounding = Rounding::of_scales(std::iter::once(&scales[..]));
        let code = |at: usize| codes[at / 2] >> (4 * (at % 2)) & 15;
        for (at, wanted) in case["weights"].iter().map(|word| f32::from_bits(bits(word))).enumerate() {
            let weight = rounding.weights()[usize::from(scales[at / 16])][usize::from(code(at) & 7)];
            assert_eq!(weight, wanted.abs(), "{name:?} weight {at}");
        }
        let mut sums = RoundingSums::default();
        for (block, (codes, scale)) in codes.chunks(8).zip(&scales).enumerate() {
            sums.add(rounding, codes, *scale, block);
        }
        let (row_blocks, matrix) = (number::<usize>(&case["cols"][0]) / 16, MatrixOf { expert: 0, part: Part::Down });
        let got = WeightError::of([RoundedMatrix { matrix, sums, row_blocks, place: (0, 1) }]);
        let close = |got: f32, wanted: &str| (f64::from(got) - number::<f64>(wanted)).abs() <= 1e-6 * f64::from(got);
        assert!(close(got.rel_l2, &case["error"][0]) && close(got.block_rel_l2, &case["error"][1]), "{name:?} {got:?}");
        assert_eq!(got.block_row * row_blocks + got.block, number::<usize>(&case["error"][2]), "{name:?}");
    }
}

#[test]
fn sf_layout() {
    for line in lines("sf_layout.txt") {
        let n: Vec<u64> = line[1..].iter().map(|word| number(word)).collect();
        match line[0].as_str() {
            "size" => assert_eq!(sf_size_128x4(n[0], n[1]), n[2], "{line:?}"),
            "offset" => assert_eq!(sf_offset_128x4(n[0], n[1], n[2]), n[3], "{line:?}"),
            _ => panic!("{line:?}"),
        }
    }
}

#[test]
fn routing() {
    const ALIGNMENT: usize = 128;
    for case in cases("routing.txt") {
        let name = &case["case"];
        let shape: Vec<usize> = case["shape"].iter().map(|word| number(word)).collect();
        let [tokens, top_k, num_experts, num_local_experts, first_local_expert] = shape[..] else { panic!("{name:?}") };
        let num_slots = tokens * top_k;
        let ids = runs(&case["ids"]);
        let map: Option<Vec<i32>> = case.get("expert_map").map(|words| words.iter().map(|word| number(word)).collect());
        let placement = Placement { num_experts, num_local_experts, first_local_expert, expert_map: map.as_deref() };
        let as_i32 = |key: &str| runs(&case[key]).into_iter().map(|v| v as i32).collect::<Vec<_>>();

        let (mut slot_to_row, mut offsets) = (vec![77; num_slots], vec![77; num_local_experts + 1]);
        let mut row_to_slot = vec![77; max_rows(num_slots, num_local_experts, ALIGNMENT)];
        let mut tables =
            Routing { slot_to_row: &mut slot_to_row, row_to_slot: &mut row_to_slot, padded_row_offsets: &mut offsets };
        let seen = route(placement, num_slots, |slot| ids[slot], ALIGNMENT, &mut tables);

        let mut wanted_rows = as_i32("row_to_slot");
        assert!(wanted_rows.len() <= row_to_slot.len(), "{name:?}: max_rows is too small");
        wanted_rows.resize(row_to_slot.len(), -1);
        assert_eq!(slot_to_row, as_i32("slot_to_row"), "{name:?}");
        assert_eq!(row_to_slot, wanted_rows, "{name:?}");
        assert_eq!(offsets, as_i32("padded_row_offsets"), "{name:?}");
        assert_eq!(seen.count, number::<u64>(&case["out_of_range"][0]), "{name:?}");
    }
}
