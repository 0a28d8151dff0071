// SPDX-License-Identifier: Apache-2.0
//! Times the CPU layer at DeepSeek-V4 Flash shape, beside this machine's read bandwidth: `cargo bench`.
//!
//! For tuning the microkernel. The comparison with torch is `tests/bench/cpu_bench.py`.

#![allow(missing_docs)]

#[path = "../rust/support/mod.rs"]
mod support;

use nvfp4_moe::abi::exports::*;
use nvfp4_moe::abi::header::*;
use rayon::prelude::*;
use std::time::Instant;
use support::*;

fn best_of<R>(repeats: usize, mut body: impl FnMut() -> R) -> f64 {
    let times = (0..repeats).map(|_| {
        let start = Instant::now();
        std::hint::black_box(body());
        start.elapsed().as_secs_f64()
    });
    times.fold(f64::INFINITY, f64::min)
}

fn main() {
    let mut random = Random::new(5);
    let shape = Shape { hidden: 4096, inter: 2048, experts: 32, local: 32, first: 0, top_k: 6 };
    let weights = Weights::random(shape, &mut random);
    let all: u64 = best_read(&weights.w13);
    let mut layer = std::ptr::null_mut();
    // SAFETY: complete structs; the weights outlive the layer.
    unsafe {
        check(nvfp4_moe_layer_create(&desc(shape), &mut layer));
        check(nvfp4_moe_layer_prepare(layer, &weights.as_struct(), std::ptr::null_mut(), 0, std::ptr::null_mut()));
    }
    let handle = Handle(layer);
    let expert_bytes = 0.5625 * 3.0 * (shape.hidden * shape.inter) as f64;
    for tokens in tokens_to_time() {
        let x = random.bf16s(tokens * shape.hidden);
        let mut out = vec![0u16; tokens * shape.hidden];
        let topk_weights = vec![1.0f32; tokens * shape.top_k];
        let mut touched = 0;
        let time = best_of(if tokens > 64 { 3 } else { 10 }, || {
            let ids: Vec<i32> = (0..tokens)
                .flat_map(|_| {
                    let mut ids: Vec<i32> = (0..shape.experts as i32).collect();
                    (0..shape.top_k).for_each(|k| ids.swap(k, k + random.below((shape.experts - k) as u64) as usize));
                    ids.truncate(shape.top_k);
                    ids
                })
                .collect();
            touched = (0..32).filter(|e| ids.contains(e)).count();
            let args = nvfp4_moe_layer_args {
                struct_size: size_of::<nvfp4_moe_layer_args>() as u32,
                num_tokens: tokens as i32,
                x: x.as_ptr().cast(),
                topk_ids: ids.as_ptr().cast(),
                topk_weights: topk_weights.as_ptr(),
                out: out.as_mut_ptr().cast(),
                ..Default::default()
            };
            // SAFETY: valid for the sizes stated; the shared workspace is used.
            unsafe { check(nvfp4_moe_layer_forward(handle.0, &args, std::ptr::null_mut())) };
        });
        let gb = touched as f64 * expert_bytes / time / 1e9;
        let gflop = 6.0 * (tokens * shape.top_k * shape.hidden * shape.inter) as f64 / time / 1e9;
        println!(
            "T {tokens:4}  {:9.2} ms  {gb:6.2} GB/s of weights  {gflop:7.1} GFLOP/s  {touched} experts",
            time * 1e3
        );
    }
    println!("checksum {all}");
}

/// Prints the read bandwidth over a large buffer.
fn best_read(buffer: &[u8]) -> u64 {
    let (words, _) = buffer.as_chunks::<8>();
    let mut sum = 0;
    let time = best_of(5, || {
        sum = words.par_chunks(1 << 16).map(|part| part.iter().fold(0, |a, w| a ^ u64::from_ne_bytes(*w))).sum();
    });
    println!("read bandwidth {:.2} GB/s", buffer.len() as f64 / time / 1e9);
    sum
}

/// Token counts from the command line (`cargo bench -- 1 8`), or all.
fn tokens_to_time() -> Vec<usize> {
    let given: Vec<usize> = std::env::args().filter_map(|arg| arg.parse().ok()).collect();
    if given.is_empty() { vec![1, 2, 4, 8, 64, 512] } else { given }
}
