// SPDX-License-Identifier: Apache-2.0
//! Every instruction set of this machine against float64.

use super::*;
use crate::format::{BLOCK_SIZE, Rounding, e2m1_decode, e4m3_decode};
use half::bf16;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 11
    }

    /// bf16 values, normally distributed (twelve even ones, added).
    fn normal(&mut self) -> f32 {
        let sum: f32 = (0..12).map(|_| (self.next() % 4096) as f32 / 4096.0).sum();
        bf16::from_f32(sum - 6.0).to_f32()
    }

    /// bf16 values around 1, some tiny, some huge beside their neighbours.
    fn activation(&mut self) -> f32 {
        let magnitude = [1.0, 1.0, 1.0, 1e-6, 300.0][(self.next() % 5) as usize];
        bf16::from_f32(((self.next() % 2001) as f32 / 1000.0 - 1.0) * magnitude).to_f32()
    }
}

struct Case {
    codes: Vec<u8>,
    block_scales: Vec<u8>,
    rows: usize,
    reduction: usize,
    rounding: Option<Rounding>,
}

impl Case {
    fn new(rows: usize, reduction: usize, random: &mut Random) -> Self {
        let codes = (0..rows * reduction / 2).map(|_| random.next() as u8).collect();
        // All finite scales without a sign, subnormal ones and zero too.
        let block_scales = (0..rows * reduction / BLOCK_SIZE).map(|_| (random.next() % 0x7f) as u8).collect();
        Case { codes, block_scales, rows, reduction, rounding: None }
    }

    fn weight(&self, row: usize, column: usize) -> f64 {
        let at = row * self.reduction + column;
        let code = self.codes[at / 2] >> (4 * (at % 2)) & 15;
        let scale = self.block_scales[at / BLOCK_SIZE];
        match self.rounding {
            None => f64::from(e2m1_decode(code)) * f64::from(e4m3_decode(scale)),
            Some(rounding) => {
                let magnitude = rounding.weights()[usize::from(scale)][usize::from(code & 7)];
                f64::from(magnitude.copysign(e2m1_decode(code)))
            }
        }
    }

    fn run(&self, isa: &Isa, x: &[Vec<f32>]) -> Box<TileOut> {
        let operands: Vec<Vec<u8>> = x.iter().map(|x| operand_row(isa, x)).collect();
        let x: Vec<*const u8> = operands.iter().map(|operand| operand.as_ptr()).collect();
        let tile = Tile {
            codes: &self.codes,
            block_scales: &self.block_scales,
            rows: self.rows,
            row_step: 1,
            rounded: self.rounding.map(Rounding::weights),
            reduction: self.reduction,
            x: &x,
        };
        let mut out = Box::new([[f32::NAN; TILE_ROWS]; MAX_TILE_TOKENS]);
        // SAFETY: only instruction sets of this machine are asked, with whole operand rows.
        unsafe { (isa.tile)(&tile, &mut out) };
        out
    }
}

fn operand_row(isa: &Isa, x: &[f32]) -> Vec<u8> {
    let mut row = vec![0xffu8; isa.operand_row_bytes(x.len())];
    isa.write_row(x, &mut row);
    row
}

/// Whole groups, partial ones, more than a chunk.
const REDUCTIONS: [usize; 6] = [16, 112, 128, 144, 640, 2064];

#[test]
fn every_instruction_set_computes_the_products() {
    let mut random = Random(11);
    let rounded = rounded::ALL.iter().filter(|isa| (isa.available)()).map(|isa| (isa, Some(Rounding::of(0x7e))));
    for (isa, rounding) in available().map(|isa| (isa, None)).chain(rounded) {
        for reduction in REDUCTIONS {
            for (rows, tokens) in [(8, 1), (8, 2), (3, 3), (8, 4), (1, 5), (8, 7), (8, MAX_TILE_TOKENS)] {
                let case = Case { rounding, ..Case::new(rows, reduction, &mut random) };
                let x: Vec<Vec<f32>> =
                    (0..tokens).map(|_| (0..reduction).map(|_| random.activation()).collect()).collect();
                let out = case.run(isa, &x);
                for (token, x) in x.iter().enumerate() {
                    for row in 0..rows {
                        let (mut sum, mut size, mut left_out) = (0.0, 0.0, 0.0);
                        for (first, x) in x.chunks(isa.group).enumerate() {
                            let mut squares = 0.0;
                            for (k, x) in x.iter().enumerate() {
                                let weight = case.weight(row, isa.group * first + k);
                                sum += f64::from(*x) * weight;
                                size += (f64::from(*x) * weight).abs();
                                squares += weight * weight;
                            }
                            left_out += most_left_out(x) * squares.sqrt();
                        }
                        let tolerance = size * 2e-6 + if isa.rest.is_some() { left_out } else { 0.0 };
                        let error = (f64::from(out[token][row]) - sum).abs();
                        assert!(error <= tolerance, "{} {rows}x{reduction}x{tokens}: {error} of {size}", isa.name);
                    }
                }
            }
        }
    }
}

/// The most that `avx512vnni` leaves out of a group (length of that vector): 1/4096 of the smallest of the quarter of its
/// values that are largest, for each value.
fn most_left_out(group: &[f32]) -> f64 {
    let mut sizes: Vec<f64> = group.iter().filter(|x| **x != 0.0).map(|x| f64::from(x.abs())).collect();
    sizes.sort_by(f64::total_cmp);
    let large = sizes.get(sizes.len() - sizes.len().div_ceil(4));
    large.map_or(0.0, |large| large / 4096.0 * (sizes.len() as f64).sqrt())
}

/// Outliers that weights of 0 leave unread hide nothing of their neighbours, however large and however many they are.
#[test]
fn what_stands_beside_an_outlier_is_not_lost() {
    let mut random = Random(15);
    let reduction = 1024;
    for isa in available() {
        for (size, every) in [(300.0, 16), (1e4, 1024), (1e6, 16), (1e6, 1024), (1e6, 5), (1e30, 16), (1e30, 256)] {
            let is_outlier = |k: usize| k % every == every / 2;
            let mut case = Case::new(8, reduction, &mut random);
            case.block_scales.fill(0x38);
            for at in (0..8 * reduction).filter(|at| is_outlier(at % reduction)) {
                case.codes[at / 2] &= if at % 2 == 0 { 0xf0 } else { 0x0f };
            }
            let normal: Vec<f32> = (0..reduction).map(|_| random.normal()).collect();
            let with_outliers = (0..reduction).map(|k| if is_outlier(k) { size } else { normal[k] });
            // Beside rows that have none, as in a batch.
            let x = [with_outliers.collect(), normal.clone(), normal];
            let out = case.run(isa, &x);
            let (mut error, mut length) = (0.0, 0.0);
            for row in 0..8 {
                let exact: f64 = (0..reduction).map(|k| f64::from(x[0][k]) * case.weight(row, k)).sum();
                error += (f64::from(out[0][row]) - exact).powi(2);
                length += exact * exact;
            }
            let relative = (error / length).sqrt();
            assert!(relative <= 1e-3, "{}: {relative} beside {size}, one of {every}", isa.name);
            assert_eq!(out[0].map(f32::to_bits), case.run(isa, &x[..1])[0].map(f32::to_bits), "{} alone", isa.name);
        }
    }
}

/// The rest doubles a row's work, so ordinary rows must not have one.
#[test]
fn ordinary_rows_have_no_rest() {
    let mut random = Random(16);
    for isa in available() {
        // Normal, and as behind a gate that closes for half of them.
        for gated in [false, true] {
            let rows = (0..64).filter(|_| {
                let mut value = || {
                    let gate = 8.0 * random.normal();
                    let up = random.normal();
                    bf16::from_f32(if gated { up * gate / (1.0 + (-gate).exp()) } else { up }).to_f32()
                };
                let x: Vec<f32> = (0..4096).map(|_| value()).collect();
                // SAFETY: an operand row of this instruction set.
                unsafe { isa.has_rest(operand_row(isa, &x).as_ptr(), x.len()) }
            });
            assert_eq!(rows.count(), 0, "{}, gated {gated}", isa.name);
        }
    }
}

#[test]
fn a_token_alone_equals_the_token_in_a_batch() {
    let mut random = Random(12);
    for isa in available() {
        for reduction in REDUCTIONS {
            let case = Case::new(8, reduction, &mut random);
            let x: Vec<Vec<f32>> = (0..13).map(|_| (0..reduction).map(|_| random.activation()).collect()).collect();
            let together = case.run(isa, &x);
            for count in 1..=5 {
                for (first, x) in x.chunks(count).enumerate() {
                    let alone = case.run(isa, x);
                    for token in 0..x.len() {
                        assert_eq!(
                            alone[token].map(f32::to_bits),
                            together[first * count + token].map(f32::to_bits),
                            "{} {reduction}: {count} at a time",
                            isa.name
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn quantised_activations_are_exact() {
    // Small multiples of 13 and halves: no sum of these needs more than f32's 24 bits, so every instruction set must
    // find the very same number.
    let mut random = Random(13);
    for isa in available() {
        let codes: Vec<u8> = (0..4 * 128).map(|_| random.next() as u8).collect();
        let case =
            Case { codes, block_scales: vec![0x38; 8 * 128 / BLOCK_SIZE], rows: 8, reduction: 128, rounding: None };
        let x: Vec<f32> = (0..128).map(|_| e2m1_decode(random.next() as u8 & 15) * 26.0).collect();
        let out = case.run(isa, std::slice::from_ref(&x));
        for row in 0..8 {
            let sum: f64 = x.iter().enumerate().map(|(k, x)| f64::from(*x) * case.weight(row, k)).sum();
            assert_eq!(f64::from(out[0][row]), sum, "{} row {row}", isa.name);
        }
    }
}

#[test]
fn non_finite_and_tiny_activations_stay_in_their_row() {
    let mut random = Random(14);
    for isa in available() {
        let mut case = Case::new(8, 256, &mut random);
        case.block_scales.fill(0x38);
        let clean: Vec<f32> = (0..256).map(|_| random.activation()).collect();
        let with = |value: f32| {
            let mut x = clean.clone();
            x[100] = value;
            x
        };
        let x = [clean.clone(), with(f32::NAN), with(f32::INFINITY), with(f32::NEG_INFINITY), vec![1e-40; 256], clean];
        let out = case.run(isa, &x);
        assert_eq!(out[0], out[5], "{}", isa.name);
        for row in 0..8 {
            let weight = case.weight(row, 100);
            let expected = |infinity: f32| if weight == 0.0 { f32::NAN } else { infinity * weight.signum() as f32 };
            let same = |a: f32, b: f32| a == b || (a.is_nan() && b.is_nan());
            assert!(out[1][row].is_nan(), "{} NaN", isa.name);
            assert!(same(out[2][row], expected(f32::INFINITY)), "{} inf: {}", isa.name, out[2][row]);
            assert!(same(out[3][row], expected(f32::NEG_INFINITY)), "{} -inf: {}", isa.name, out[3][row]);
            assert!(out[4][row].abs() < 1e-35, "{} subnormal: {}", isa.name, out[4][row]);
        }
    }
}
