// SPDX-License-Identifier: Apache-2.0
//! Is the self-test's data what it claims: sums that no order of additions changes, and a question in every output?

use super::COMPUTATIONS;
use super::cases::{LayerCase, LinearCase, Memory, TOKENS, ids, layers};
use super::data::of_bf16;
use crate::call::{LayerArgs, LayerBackend, Storage, Tensor, Workspace};
use crate::config::{Device, Mode, ScalePolicy};
use crate::cpu::CpuLayer;
use crate::error::Result;
use crate::format::{QuantScale, dequantize_row, dynamic_global_scale, quantize_row};
use std::collections::HashSet;

/// Where the values are.
struct Host(Vec<Box<dyn std::any::Any>>);

impl Memory for Host {
    fn put<T: Copy>(&mut self, values: &[T]) -> Result<Tensor<T>> {
        let words = size_of_val(values) / 4 + 1;
        let mut held = vec![0_u32; words];
        // SAFETY: plain numbers, into memory with room for them.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), held.as_mut_ptr().cast(), values.len()) };
        let pointer = held.as_ptr().cast();
        self.0.push(Box::new(held));
        Ok(Tensor { pointer, len: values.len() })
    }
}

/// The exponent of the last bit that any of them has.
fn last_bit(values: &[f32]) -> i32 {
    let of =
        |value: &f32| (value.to_bits() >> 23 & 255) as i32 - 150 + (value.to_bits() | 1 << 23).trailing_zeros() as i32;
    values.iter().filter(|value| **value != 0.0).map(of).min().unwrap_or(0)
}

/// Bits from the last of any product to the first of any sum of them, in whatever order.
fn bits_of_sums(rows: &[Vec<f32>], weights: &[Vec<f32>]) -> i32 {
    let last = |rows: &[Vec<f32>]| rows.iter().map(|row| last_bit(row)).min().unwrap_or(0);
    let sum = |row: &[f32], weights: &[f32]| row.iter().zip(weights).map(|(x, w)| (x * w).abs()).sum::<f32>();
    let largest = rows.iter().flat_map(|row| weights.iter().map(|of| sum(row, of))).fold(0.0, f32::max);
    largest.log2().ceil() as i32 - last(rows) - last(weights)
}

fn rows_of(values: &[u16], cols: usize) -> Vec<Vec<f32>> {
    values.chunks(cols).map(|row| row.iter().copied().map(of_bf16).collect()).collect()
}

/// As an input scale leaves a row, but for that scale.
fn quantised(row: &[f32], scale: f32) -> Vec<f32> {
    let (mut codes, mut scales, mut out) = (vec![0; row.len() / 2], vec![0; row.len() / 16], vec![0.0; row.len()]);
    let scale = QuantScale::from_global_scale(scale);
    quantize_row(row, scale, &mut codes, |at, byte| scales[at] = byte);
    dequantize_row(&codes, &scales, 1.0, &mut out);
    out
}

#[test]
fn no_order_of_additions_changes_a_sum_and_quantising_x_changes_nothing() {
    let linear = LinearCase::new();
    let x = rows_of(&linear.x, linear.config.in_features);
    let weights: Vec<_> = (0..500).map(|row| linear.weight.row(row, linear.config.in_features)).collect();
    assert!(bits_of_sums(&x, &weights) <= 22);
    for case in layers().unwrap() {
        let (hidden, shape) = (case.config.hidden_size, case.config.shape());
        let x = rows_of(&case.x, hidden);
        assert!(x.iter().all(|row| quantised(row, 1.0) == *row), "{}", case.name);
        let w13: Vec<_> = (0..shape.w13_rows()).map(|row| case.w13.row(row, hidden)).collect();
        assert!(bits_of_sums(&x, &w13) <= 22, "{}", case.name);
        let dynamic: Vec<_> = x.iter().map(|row| quantised(row, dynamic_global_scale(row))).collect();
        assert!(bits_of_sums(&dynamic, &w13) <= 22, "{}, dynamic", case.name);
    }
}

#[test]
fn what_the_activation_leaves_adds_nothing_or_exactly() {
    for case in layers().unwrap() {
        let (hidden, inter, shape) = (case.config.hidden_size, case.config.intermediate_size, case.config.shape());
        let w2: Vec<_> = (0..hidden).map(|row| case.w2.row(row, inter)).collect();
        if w2.iter().all(|row| row.iter().filter(|weight| **weight != 0.0).count() == 1) {
            continue;
        }
        let w13: Vec<_> = (0..shape.w13_rows()).map(|row| case.w13.row(row, hidden)).collect();
        let sum = |x: &[f32], row: &[f32]| x.iter().zip(row).map(|(x, w)| x * w).sum::<f32>();
        let h = |x: &Vec<f32>| -> Vec<f32> {
            let value = |i: usize| case.config.activation.apply(sum(x, &w13[i]), sum(x, &w13[inter + i]));
            (0..inter).map(|i| half::bf16::from_f32(value(i)).to_f32()).collect()
        };
        let h: Vec<_> = rows_of(&case.x, hidden).iter().map(h).collect();
        let check = |what: &str, h: &[Vec<f32>]| {
            let bits = bits_of_sums(h, &w2);
            assert!(bits <= 22, "{}, {what}: {bits}", case.name);
        };
        check("bf16", &h);
        check("static", &h.iter().map(|row| quantised(row, 1.0)).collect::<Vec<_>>());
        check("dynamic", &h.iter().map(|row| quantised(row, dynamic_global_scale(row))).collect::<Vec<_>>());
    }
}

/// On the CPU: a wrong weight, row or scale would be seen.
#[test]
fn outputs_differ_from_one_another_and_from_zero() {
    for case in layers().unwrap() {
        for computation in COMPUTATIONS {
            let out = on_the_cpu(&case, computation);
            let rows = out.chunks(case.config.hidden_size);
            for (token, (row, ids)) in rows.zip(ids().chunks(2)).enumerate() {
                let distinct = row.iter().collect::<HashSet<_>>().len();
                let is_here = ids.iter().any(|id| (1..5).contains(id));
                assert!(
                    if is_here { distinct > 50 } else { distinct == 1 },
                    "{}, token {token}: {distinct}",
                    case.name
                );
            }
        }
    }
    let rows = |expert| ids().iter().filter(|id| **id == expert).count();
    assert_eq!([1, 2, 3, 4].map(rows), [128, 1, 89, 0]);
}

fn on_the_cpu(case: &LayerCase, (mode, scales): (Mode, ScalePolicy)) -> Vec<u16> {
    let (mut memory, config) = (Host(Vec::new()), case.config(Device::Cpu, mode, scales));
    let mut layer = CpuLayer::new(&config);
    let weights = case.weights(&mut memory, scales).unwrap();
    let nothing = Storage { pointer: std::ptr::null_mut(), size: 0 };
    let mut out = vec![0; TOKENS * config.hidden_size];
    let workspace = Workspace { pointer: std::ptr::null_mut(), size: 0 };
    let args = LayerArgs { out: out.as_mut_ptr(), workspace, ..case.args(&mut memory).unwrap() };
    // SAFETY: tensors that `memory` holds.
    unsafe {
        layer.prepare(&weights, nothing, std::ptr::null_mut()).unwrap();
        layer.forward(weights.input_scales, &args, std::ptr::null_mut()).unwrap();
    }
    out
}
