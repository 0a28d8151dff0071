// SPDX-License-Identifier: Apache-2.0
//! A tiny MoE layer on the CPU, from weights to a checked result: `cargo run --release --example layer`.
//!
//! Every weight is the same number, so that the answer can be written down: with tokens whose values are all c,
//! gate = up = c, h = c * sigmoid(c) * c, and expert e gives (e + 1) * h.

use nvfp4_moe::activation::Activation;
use nvfp4_moe::call::{InputScales, LayerArgs, LayerWeights, Storage, Tensor, TopkIds, Workspace};
use nvfp4_moe::config::{Device, LayerConfig, Mode, ScalePolicy};
use nvfp4_moe::error::Result;
use nvfp4_moe::layer::Layer;
use nvfp4_moe::shape::RowOrder;
use std::ptr::{null, null_mut};

const TOKENS: usize = 3;
const HIDDEN: usize = 64;
const INTER: usize = 32;
const EXPERTS: usize = 4;
const TOP_K: usize = 2;
const ONE_E4M3: u8 = 0x38;
const ONES_E2M1: u8 = 0x22; // two codes in a byte

fn tensor<T>(values: &[T]) -> Tensor<T> {
    Tensor { pointer: values.as_ptr(), len: values.len() }
}

fn main() -> Result<()> {
    let values = EXPERTS * HIDDEN * INTER; // of w2; w13 has gate and up, twice as many
    let (w13, w13_block_scale) = (vec![ONES_E2M1; values], vec![ONE_E4M3; 2 * values / 16]);
    let (w2, w2_block_scale) = (vec![ONES_E2M1; values / 2], vec![ONE_E4M3; values / 16]);
    let w13_global_scale = vec![1.0 / HIDDEN as f32; 2 * EXPERTS];
    let w2_global_scale: Vec<f32> = (1..=EXPERTS).map(|e| e as f32 / INTER as f32).collect();

    let mut layer = Layer::new(LayerConfig {
        device: Device::Cpu,
        mode: Mode::Bf16,
        scale_policy: ScalePolicy::Static,
        hidden_size: HIDDEN,
        intermediate_size: INTER,
        num_experts: EXPERTS,
        num_local_experts: EXPERTS,
        first_local_expert: 0,
        top_k: TOP_K,
        activation: Activation::swiglu(0.0, 1.0, 0.0)?,
        has_bias: false,
        tile_rows: None,
    })?;
    let weights = LayerWeights {
        row_order: RowOrder::GateFirst,
        w13: tensor(&w13),
        w13_block_scale: tensor(&w13_block_scale),
        w13_global_scale: tensor(&w13_global_scale),
        w2: tensor(&w2),
        w2_block_scale: tensor(&w2_block_scale),
        w2_global_scale: tensor(&w2_global_scale),
        w13_bias: None,
        w2_bias: None,
        input_scales: InputScales::default(),
    };
    let no_storage = Storage { pointer: null_mut(), size: 0 }; // the CPU uses weights in place
    // SAFETY: the vectors have the lengths that the configuration asks for, and outlive the layer.
    unsafe { layer.prepare(weights, no_storage, null_mut()) }?;

    let x: Vec<u16> = (0..TOKENS * HIDDEN).map(|i| half::bf16::from_f32((i / HIDDEN + 1) as f32).to_bits()).collect();
    let topk_ids = [0i32, 1, 2, 3, 3, -1]; // -1: the last token asks for one expert only
    let topk_weights = [0.5f32, 0.5, 0.75, 0.25, 1.0, 1.0];
    let mut out = vec![0u16; TOKENS * HIDDEN];
    let args = LayerArgs {
        num_tokens: TOKENS,
        x: x.as_ptr(),
        x_row_stride: HIDDEN,
        topk_ids: TopkIds::I32(topk_ids.as_ptr()),
        topk_ids_row_stride: TOP_K,
        topk_weights: topk_weights.as_ptr(),
        topk_weights_row_stride: TOP_K,
        expert_map: null(),
        out: out.as_mut_ptr(),
        out_row_stride: HIDDEN,
        workspace: Workspace { pointer: null_mut(), size: 0 }, // the device's shared one
    };
    // SAFETY: the arrays have the shapes that `args` states, and live until the call returns.
    unsafe { layer.forward(&args, null_mut()) }?;

    for (token, row) in out.chunks(HIDDEN).enumerate() {
        let c = (token + 1) as f32;
        let h = c / (1.0 + (-c).exp()) * c;
        let slots = token * TOP_K..(token + 1) * TOP_K;
        let wanted: f32 = slots.map(|s| topk_weights[s] * (topk_ids[s] + 1) as f32 * h).sum(); // id -1 adds 0
        let got: Vec<f32> = row.iter().map(|bits| half::bf16::from_bits(*bits).to_f32()).collect();
        println!("token {token}: {:.3}, wanted {wanted:.3}", got[0]);
        assert!(got.iter().all(|value| (value - wanted).abs() <= 0.01 * wanted), "token {token} is wrong: {got:?}");
    }
    println!("layer.rs: correct");
    Ok(())
}
