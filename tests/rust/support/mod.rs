// SPDX-License-Identifier: Apache-2.0
//! Generated layers, and the naive float64 reference they are judged by.

#![allow(dead_code, missing_docs)] // each test uses its part

use half::bf16;
use nvfp4_moe::abi::header::*;
use nvfp4_moe::format::{dequantize_row, e4m3_encode};
use std::ffi::c_char;

/// Marsaglia's xorshift64: repeatable, and quick enough for large layers.
pub struct Random(pub u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }

    /// Uniform in [-1, 1).
    pub fn uniform(&mut self) -> f32 {
        ((self.next() >> 40) as f32) / (1u64 << 23) as f32 - 1.0
    }

    pub fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next() as u8).collect()
    }

    /// Block scales between 1 and 4: every code then matters.
    pub fn block_scales(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| e4m3_encode(2.5 + 1.5 * self.uniform())).collect()
    }

    pub fn bf16s(&mut self, n: usize) -> Vec<u16> {
        (0..n).map(|_| bf16::from_f32(self.uniform()).to_bits()).collect()
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub hidden: usize,
    pub inter: usize,
    pub experts: usize,
    pub local: usize,
    pub first: usize,
    pub top_k: usize,
}

/// Weights of a layer in checkpoint order.
pub struct Weights {
    pub shape: Shape,
    pub w13: Vec<u8>,
    pub w13_block_scale: Vec<u8>,
    pub w13_global_scale: Vec<f32>,
    pub w2: Vec<u8>,
    pub w2_block_scale: Vec<u8>,
    pub w2_global_scale: Vec<f32>,
}

impl Weights {
    pub fn random(shape: Shape, random: &mut Random) -> Self {
        let Shape { hidden, inter, local, .. } = shape;
        let scale = |n: usize| 0.5 / (n as f32).sqrt();
        Weights {
            shape,
            w13: random.bytes(local * inter * hidden),
            w13_block_scale: random.block_scales(local * 2 * inter * hidden / 16),
            w13_global_scale: (0..2 * local).map(|i| scale(hidden) * (1.0 + i as f32 / 7.0)).collect(),
            w2: random.bytes(local * hidden * inter / 2),
            w2_block_scale: random.block_scales(local * hidden * inter / 16),
            w2_global_scale: (0..local).map(|i| scale(inter) * (1.0 + i as f32 / 5.0)).collect(),
        }
    }

    pub fn as_struct(&self) -> nvfp4_moe_layer_weights {
        nvfp4_moe_layer_weights {
            struct_size: size_of::<nvfp4_moe_layer_weights>() as u32,
            w13: self.w13.as_ptr(),
            w13_block_scale: self.w13_block_scale.as_ptr(),
            w13_global_scale: self.w13_global_scale.as_ptr(),
            w2: self.w2.as_ptr(),
            w2_block_scale: self.w2_block_scale.as_ptr(),
            w2_global_scale: self.w2_global_scale.as_ptr(),
            ..Default::default()
        }
    }

    /// Rows of the gate (`half` 0), the up (1) or the down (2) matrix of a local expert, dequantised.
    fn matrix(&self, expert: usize, half: usize) -> Vec<Vec<f64>> {
        let Shape { hidden, inter, .. } = self.shape;
        let (codes, scales, rows, cols, first, global) = match half {
            0 | 1 => {
                let first = (2 * expert + half) * inter;
                let global = self.w13_global_scale[2 * expert + half];
                (&self.w13, &self.w13_block_scale, inter, hidden, first, global)
            }
            _ => (&self.w2, &self.w2_block_scale, hidden, inter, expert * hidden, self.w2_global_scale[expert]),
        };
        (first..first + rows)
            .map(|row| {
                let mut out = vec![0.0; cols];
                dequantize_row(&codes[row * cols / 2..], &scales[row * cols / 16..], 1.0, &mut out);
                out.iter().map(|v| f64::from(*v) * f64::from(global)).collect()
            })
            .collect()
    }

    /// What the layer means, in float64: no quantised activations, h rounded to bf16 as the format says.
    pub fn reference(&self, x: &[u16], ids: &[i64], weights: &[f32], limit: f64) -> Vec<f64> {
        let Shape { hidden, inter, local, first, top_k, .. } = self.shape;
        let mut out = vec![0.0; x.len()];
        let dot = |w: &[f64], x: &[f64]| w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
        for expert in 0..local {
            let slots: Vec<usize> = (0..ids.len()).filter(|s| ids[*s] == (first + expert) as i64).collect();
            if slots.is_empty() {
                continue;
            }
            let [gate, up, down] = [0, 1, 2].map(|half| self.matrix(expert, half));
            for slot in slots {
                let token = slot / top_k;
                let x: Vec<f64> = x[token * hidden..][..hidden].iter().map(|b| bf16::from_bits(*b).to_f64()).collect();
                let h: Vec<f64> = (0..inter)
                    .map(|i| {
                        let (g, u) = (dot(&gate[i], &x).min(limit), dot(&up[i], &x).clamp(-limit, limit));
                        bf16::from_f64(g / (1.0 + (-g).exp()) * u).to_f64()
                    })
                    .collect();
                for (n, row) in down.iter().enumerate() {
                    out[token * hidden + n] += f64::from(weights[slot]) * dot(row, &h);
                }
            }
        }
        out
    }
}

/// A layer handle that is destroyed in the end.
pub struct Handle(pub *mut nvfp4_moe_layer);

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: made by create.
        unsafe { nvfp4_moe::abi::exports::nvfp4_moe_layer_destroy(self.0) }
    }
}

pub fn desc(shape: Shape) -> nvfp4_moe_layer_desc {
    nvfp4_moe_layer_desc {
        struct_size: size_of::<nvfp4_moe_layer_desc>() as u32,
        hidden_size: shape.hidden as i32,
        intermediate_size: shape.inter as i32,
        num_experts: shape.experts as i32,
        num_local_experts: shape.local as i32,
        first_local_expert: shape.first as i32,
        top_k: shape.top_k as i32,
        swiglu_limit: 10.0,
        ..Default::default()
    }
}

pub fn last_error() -> String {
    let mut buf = [0u8; 1024];
    // SAFETY: buf is writable for its length.
    let len = unsafe { nvfp4_moe::abi::exports::nvfp4_moe_last_error(buf.as_mut_ptr().cast::<c_char>(), buf.len()) };
    String::from_utf8_lossy(&buf[..len.min(buf.len() - 1)]).into_owned()
}

pub fn check(status: i32) {
    assert_eq!(status, 0, "{}", last_error());
}

pub fn rel_l2(got: &[u16], want: &[f64]) -> f64 {
    let error: f64 = got.iter().zip(want).map(|(g, w)| (bf16::from_bits(*g).to_f64() - w).powi(2)).sum();
    (error / want.iter().map(|w| w * w).sum::<f64>()).sqrt()
}
