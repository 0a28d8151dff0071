// SPDX-License-Identifier: Apache-2.0
//! A tiny MoE layer on the CPU, from weights to a checked result: `cargo run --release --example layer`.
//!
//! Every weight is the same number, so that the answer can be written down: with tokens whose values are all c,
//! gate = up = c, h = c * sigmoid(c) * c, and expert e gives (e + 1) * h.

use nvfp4_moe::config::{LayerConfig, Mode};
use nvfp4_moe::error::Result;
use nvfp4_moe::host::{HostLayer, LayerTensors, bf16};

const TOKENS: usize = 3;
const HIDDEN: usize = 64;
const INTER: usize = 32;
const EXPERTS: usize = 4;
const TOP_K: usize = 2;
const ONE_E4M3: u8 = 0x38;
const ONES_E2M1: u8 = 0x22; // two codes in a byte

fn main() -> Result<()> {
    let config = LayerConfig::on_cpu(Mode::Bf16, HIDDEN, INTER, EXPERTS, TOP_K);
    let mut weights = LayerTensors::zeros(config.shape());
    weights.w13.fill(ONES_E2M1);
    weights.w13_block_scale.fill(ONE_E4M3);
    weights.w13_global_scale.fill(1.0 / HIDDEN as f32);
    weights.w2.fill(ONES_E2M1);
    weights.w2_block_scale.fill(ONE_E4M3);
    weights.w2_global_scale = (1..=EXPERTS).map(|e| e as f32 / INTER as f32).collect();
    let layer = HostLayer::new(config, weights)?;

    let x: Vec<bf16> = (0..TOKENS * HIDDEN).map(|i| bf16::from_f32((i / HIDDEN + 1) as f32)).collect();
    let topk_ids = [0, 1, 2, 3, 3, -1]; // -1: the last token asks for one expert only
    let topk_weights = [0.5, 0.5, 0.75, 0.25, 1.0, 1.0];
    let mut out = vec![bf16::ZERO; TOKENS * HIDDEN];
    layer.forward(&x, &topk_ids, Some(&topk_weights), &mut out)?;

    for (token, row) in out.chunks(HIDDEN).enumerate() {
        let c = (token + 1) as f32;
        let h = c / (1.0 + (-c).exp()) * c;
        let slots = token * TOP_K..(token + 1) * TOP_K;
        let wanted: f32 = slots.map(|s| topk_weights[s] * (topk_ids[s] + 1) as f32 * h).sum(); // id -1 adds 0
        let got: Vec<f32> = row.iter().map(|value| value.to_f32()).collect();
        println!("token {token}: {:.3}, wanted {wanted:.3}", got[0]);
        assert!(got.iter().all(|value| (value - wanted).abs() <= 0.01 * wanted), "token {token} is wrong: {got:?}");
    }
    println!("layer.rs: correct");
    Ok(())
}
