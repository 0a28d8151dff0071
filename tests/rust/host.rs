// SPDX-License-Identifier: Apache-2.0
//! The safe door: what slices cannot be is an error, and what they can be computes. (Its documentation computes a layer.)

use nvfp4_moe::config::{Device, KernelChoice, LayerConfig, LinearConfig, Mode, ScalePolicy};
use nvfp4_moe::format::{dequantize_row, e4m3_encode};
use nvfp4_moe::host::{HostLayer, HostLinear, LayerTensors, LinearTensors, bf16};

const ONE: u8 = 0x38; // e4m3

fn layer_config() -> LayerConfig {
    LayerConfig::on_cpu(Mode::Bf16, 32, 16, 3, 2)
}

fn layer_tensors() -> LayerTensors {
    let mut tensors = LayerTensors::zeros(layer_config().shape());
    tensors.w13_block_scale.fill(ONE);
    tensors.w2_block_scale.fill(ONE);
    tensors.w13_global_scale.fill(1.0);
    tensors.w2_global_scale.fill(1.0);
    tensors
}

fn linear_config() -> LinearConfig {
    LinearConfig {
        device: Device::Cpu,
        mode: Mode::Bf16,
        scale_policy: ScalePolicy::Static,
        in_features: 32,
        out_features: 3,
        num_parts: 2,
        tile_rows: None,
    }
}

fn linear_tensors() -> LinearTensors {
    LinearTensors {
        weight: (0..3 * 16).map(|i| (i * 37 % 256) as u8).collect(),
        block_scale: (1..=6).map(|i| e4m3_encode(i as f32)).collect(),
        global_scale: vec![0.5, 2.0],
        part_rows: vec![1, 2],
        bias: Some([1.0, -2.0, 3.0].map(bf16::from_f32).to_vec()),
        input_scale: 0.0,
    }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: nvfp4_moe::error::Result<T>, text: &str) {
    let error = outcome.expect_err(text).to_string();
    assert!(error.starts_with(text), "{error}");
}

#[test]
fn weights_of_another_length_are_refused() {
    let mut tensors = layer_tensors();
    tensors.w13.pop();
    refused(HostLayer::new(layer_config(), tensors), "w13.len() is 1535; it must be L * 2I * H/2, which is 1536. ");
    let mut tensors = layer_tensors();
    tensors.w2_global_scale.push(1.0);
    refused(HostLayer::new(layer_config(), tensors), "w2_global_scale.len() is 4; it must be L, which is 3. ");
    let mut tensors = linear_tensors();
    tensors.part_rows = vec![1, usize::MAX];
    refused(HostLinear::new(linear_config(), tensors), "the sum of part_rows is ");
    let none = LinearConfig { num_parts: 0, ..linear_config() };
    let tensors = LinearTensors { global_scale: vec![], part_rows: vec![], ..linear_tensors() };
    refused(HostLinear::new(none, tensors), "the sum of part_rows is 0; it must be out_features, which is 3. ");
}

#[test]
fn another_device_is_refused() {
    let config = LayerConfig { device: Device::Cuda(1, KernelChoice::Own), ..layer_config() };
    refused(HostLayer::new(config, layer_tensors()), "device is CUDA device 1; it must be the CPU. ");
}

#[test]
fn weights_are_rounded_where_they_may_and_say_what_it_cost() {
    let mut tensors = layer_tensors();
    tensors.w13.fill(0x33); // 1.5
    tensors.w13_block_scale[1] = 0x31; // 9/16: 27 of 28
    let config = LayerConfig { mode: Mode::Fp8, fp8_max_error: 0.5, ..layer_config() };
    let error = HostLayer::new(config, tensors).and_then(|layer| layer.weight_error()).expect("a layer");
    assert!((error.block_rel_l2 - 1.0 / 27.0).abs() < 1e-6 && error.rel_l2 > 0.0, "{error:?}");
    assert_eq!((error.block_matrix.expert, error.block_row, error.block), (0, 0, 1));
}

#[test]
fn a_range_of_experts_that_wraps_is_refused() {
    let config = LayerConfig { first_local_expert: usize::MAX, num_local_experts: 2, ..layer_config() };
    refused(HostLayer::new(config, layer_tensors()), "first_local_expert is ");
}

#[test]
fn arguments_of_another_length_are_refused_and_leave_out_alone() {
    let layer = HostLayer::new(layer_config(), layer_tensors()).expect("a layer");
    let (x, ids) = ([bf16::ONE; 64], [0, 1, 2, -1]);
    let mut out = [bf16::NAN; 64];
    refused(layer.forward(&x[1..], &ids, None, &mut out), "x.len() is 63; it must be a multiple of hidden_size");
    refused(layer.forward(&x, &ids, None, &mut out[1..]), "out.len() is 63; it must be x.len(), which is 64. ");
    refused(layer.forward(&x, &ids[1..], None, &mut out), "topk_ids.len() is 3; it must be num_tokens * top_k");
    refused(layer.forward(&x, &ids, Some(&[1.0]), &mut out), "topk_weights.len() is 1; it must be num_tokens * top_k");
    assert!(out.iter().all(|value| value.is_nan()));
    layer.forward(&x, &[i32::MIN, 3, i32::MAX, -1], None, &mut out).expect("hostile ids are unrouted");
    assert!(out.iter().all(|value| value.to_bits() == 0));
    layer.forward(&[], &[], None, &mut []).expect("no tokens");
}

#[test]
fn a_linear_is_its_dequantised_rows() {
    let tensors = linear_tensors();
    let linear = HostLinear::new(linear_config(), tensors.clone()).expect("a linear");
    let x: Vec<bf16> = (0..64).map(|i| bf16::from_f32((i % 7) as f32 - 3.0)).collect();
    let mut out = [bf16::NAN; 6];
    refused(linear.forward(&x, &mut out[1..]), "out.len() is 5; it must be num_tokens * out_features, which is 6. ");
    linear.forward(&x, &mut out).expect("forward");
    for (i, got) in out.iter().enumerate() {
        let (token, row) = (i / 3, i % 3);
        let mut weight = [0.0; 32];
        let (codes, scales) = (&tensors.weight[row * 16..][..16], &tensors.block_scale[row * 2..][..2]);
        dequantize_row(codes, scales, tensors.global_scale[row.min(1)], &mut weight);
        let sum: f32 = weight.iter().zip(&x[token * 32..]).map(|(w, x)| w * x.to_f32()).sum();
        let wanted = sum + tensors.bias.as_ref().map_or(0.0, |bias| bias[row].to_f32());
        assert!((got.to_f32() - wanted).abs() <= wanted.abs() / 128.0, "row {row}: {got}, wanted {wanted}");
    }
}

#[test]
fn a_layer_can_be_sent_and_shared() {
    fn is<T: Send + Sync + 'static>() {}
    is::<HostLayer>();
    is::<HostLinear>();
}

#[test]
fn sums_begin_with_the_shared_output() {
    let layer = HostLayer::new(layer_config(), layer_tensors()).expect("a layer of zeros");
    let shared: Vec<bf16> = (0..64).map(|i| bf16::from_f32(i as f32 / 8.0 - 3.0)).collect();
    let (x, mut out) = ([bf16::ONE; 64], [bf16::NAN; 64]);
    layer.forward_with_shared(&x, &[0, 1, -1, 2], Some(&[0.5; 4]), &shared, &mut out).expect("two tokens");
    assert_eq!(out[..], shared[..], "the experts' outputs are 0");
    refused(
        layer.forward_with_shared(&x, &[0, 1, 1, 2], None, &shared[1..], &mut out),
        "shared_output.len() is 63; it must be x.len(), which is 64. ",
    );
}
