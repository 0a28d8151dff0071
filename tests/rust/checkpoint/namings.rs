// SPDX-License-Identifier: Apache-2.0
//! Every naming of the table gives the same layer; what is none of them is named.

use crate::made::{DOWN, GATE, Made, Spec, Tensor, UP, noise};
use crate::read::{Copied, assert_reads_back, open};
use nvfp4_moe::activation::ActivationKind;
use nvfp4_moe::checkpoint::Layer;
use safetensors::tensor::Dtype;

const PROJECTIONS: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];
const TENSORS: [&str; 4] = ["weight", "weight_scale", "weight_scale_2", "input_scale"];

/// The same tensors under other names.
fn renamed(made: &Made, name: impl Fn(usize, usize, &str) -> String) -> Made {
    let mut other = Made { tensors: Default::default(), ..made.clone() };
    for expert in 0..made.spec.experts {
        for projection in [GATE, UP, DOWN] {
            for tensor in TENSORS {
                let value = made.tensors[&made.spec.name(0, expert, projection, tensor)].clone();
                other.tensors.insert(name(expert, projection, tensor), value);
            }
        }
    }
    other
}

/// `[E, rows, cols]` of the tensors of `projections`, rows one below the other.
fn stacked(made: &Made, projections: &[usize], tensor: &str) -> Tensor {
    let experts = made.spec.experts;
    let one = |e: usize, p: usize| &made.tensors[&made.spec.name(0, e, p, tensor)];
    let data = (0..experts).flat_map(|e| projections.iter().flat_map(move |p| one(e, *p).data.clone())).collect();
    let shape = match one(0, projections[0]).shape[..] {
        [rows, cols] => vec![experts, rows * projections.len(), cols],
        _ if projections.len() == 1 => vec![experts],
        _ => vec![experts, projections.len()],
    };
    Tensor { dtype: one(0, projections[0]).dtype, shape, data }
}

/// One tensor for all experts; `join` stands between the projection and the tensor's name.
fn stacked_layer(made: &Made, block: &str, matrices: &[(&str, &[usize])], join: &str) -> Made {
    let mut other = Made { tensors: Default::default(), ..made.clone() };
    for (name, projections) in matrices {
        for tensor in TENSORS {
            let bare = join == "_" && tensor == "weight";
            let name = if bare { format!("{block}.{name}") } else { format!("{block}.{name}{join}{tensor}") };
            other.tensors.insert(name, stacked(made, projections, tensor));
        }
    }
    other
}

const FUSED: [(&str, &[usize]); 2] = [("gate_up_proj", &[GATE, UP]), ("down_proj", &[DOWN])];
const APART: [(&str, &[usize]); 3] = [("gate_proj", &[GATE]), ("up_proj", &[UP]), ("down_proj", &[DOWN])];

#[test]
fn every_form_is_copied_bit_for_bit() {
    let made = Spec::default().made();
    let forms = [
        renamed(&made, |e, p, t| format!("backbone.layers.0.mixer.experts.{e}.{}.{t}", PROJECTIONS[p])),
        renamed(&made, |e, p, t| format!("model.language_model.layers.0.experts.{e}.{}.{t}", PROJECTIONS[p])),
        renamed(&made, |e, p, t| format!("transformer.h.0.ffn.moe.experts.{e}.{}.{t}", ["w1", "w3", "w2"][p])),
        renamed(&made, |e, p, t| format!("model.layers.0.mlp.experts.{}.{e}.{t}", PROJECTIONS[p])),
        stacked_layer(&made, "model.layers.0.feed_forward.experts", &FUSED, "_"),
        stacked_layer(&made, "model.layers.0.mlp.experts", &FUSED, "."),
        stacked_layer(&made, "model.layers.0.mlp.experts", &APART, "."),
        stacked_layer(&made, "model.layers.0.moe", &APART, "."),
    ];
    for form in forms {
        let checkpoint = open(&form).unwrap();
        assert!(checkpoint.skipped().is_empty(), "{:?}", checkpoint.skipped());
        let layer = checkpoint.layer(0).unwrap_or_else(|e| panic!("{e}: {:?}", form.tensors.keys().next()));
        let same = Made { tensors: made.tensors.clone(), ..form.clone() };
        assert_eq!((layer.w13_input_scale.num_usable, layer.w2_input_scale.num_usable), (6, 3));
        assert_reads_back(&checkpoint, &same, 0);
        assert_eq!(checkpoint.modules().len(), 1, "{:?}", checkpoint.modules());
    }
}

#[test]
fn a_stack_may_have_one_scale_for_all_and_codes_may_be_f4() {
    let made = Spec::default().made();
    let mut form = stacked_layer(&made, "layers.0.mlp.experts", &FUSED, "_");
    form.tensors.insert("layers.0.mlp.experts.gate_up_proj_weight_scale_2".into(), Tensor::scalar(0.25));
    let checkpoint = open(&form).unwrap();
    let layer = checkpoint.layer(0).unwrap();
    assert!(layer.global_scales().iter().all(|[gate, up, down]| (*gate, *up) == (0.25, 0.25) && *down != 0.25));

    let mut elements = made.clone();
    for tensor in elements.tensors.values_mut().filter(|tensor| tensor.dtype == Dtype::U8) {
        (tensor.dtype, tensor.shape[1]) = (Dtype::F4, tensor.shape[1] * 2);
    }
    assert_reads_back(&open(&elements).unwrap(), &made, 0);
}

#[track_caller]
fn assert_skipped(made: &Made, parts: &[&str]) {
    let checkpoint = open(made).unwrap();
    let text = format!("{:?}", checkpoint.skipped());
    assert!(parts.iter().all(|part| text.contains(part)), "{parts:?} are not in {text}");
}

#[test]
fn what_looks_like_nvfp4_and_is_not_understood_is_named_with_the_reason() {
    let made = Spec::default().made();
    // Blocks across the reduction: [E, H, 2I / 2].
    let mut across = stacked_layer(&made, "layers.0.mlp.experts", &FUSED, "_");
    across.tensors.get_mut("layers.0.mlp.experts.down_proj").unwrap().shape = vec![3, 32, 32];
    assert_skipped(&across, &["layers.0.mlp", "they must be [2I, H] and [H, I], or both by columns"]);

    let other = renamed(&made, |e, p, t| format!("layers.0.mlp.experts.{e}.fc{p}.{t}"));
    assert_skipped(&other, &["its experts have fc0, fc1, fc2", "known matrices are w1, w3, w2, gate_proj"]);

    let dumped = renamed(&made, |e, p, t| format!("layers.0.mlp.expert_{e}_{p}_{t}"));
    assert_skipped(&dumped, &["layers.0.mlp", "looks like NVFP4", "expert_0_0_weight U8 [32, 32]"]);

    let text = open(&dumped).unwrap().inspect(None, |_| {}).to_string();
    assert!(text.contains("skipped layers.0.mlp: it looks like NVFP4"), "{text}");
}

/// Without gates, as Nemotron-H has them.
fn ungated(changes: &[(&str, &str)]) -> Made {
    let mut made = Spec { deepseek_names: false, ..Spec::default() }.made();
    made.tensors.retain(|name, _| !name.contains("gate_proj"));
    for (key, value) in changes {
        made.config[*key] = (*value).into();
    }
    made
}

#[test]
fn experts_without_a_gate_are_read_with_w13_of_half_the_rows() {
    for changes in [&[("mlp_hidden_act", "relu2")][..], &[("model_type", "nemotron_h")]] {
        let made = ungated(changes);
        let named = renamed_ungated(&made);
        for made in [&made, &named] {
            let checkpoint = open(made).unwrap();
            let layer = checkpoint.layer(0).unwrap();
            assert!(!layer.dims.gated && layer.activation().unwrap().kind == ActivationKind::Relu2);
            let read = copied(&layer, 1, 2);
            let data = |e: usize, p: usize, t: &str| ungated(changes).data(0, e, p, t).to_vec();
            let both = |p: usize, t: &str| [data(1, p, t), data(2, p, t)].concat();
            assert!(read.w13 == both(UP, "weight") && read.w2 == both(DOWN, "weight"));
            assert!(read.w13_block_scale == both(UP, "weight_scale"));
            let scales: Vec<u8> = read.w13_global_scale.iter().flat_map(|scale| scale.to_le_bytes()).collect();
            assert_eq!(scales, both(UP, "weight_scale_2"));
        }
    }
    let silu = open(&ungated(&[("model_type", "nemotron_h"), ("mlp_hidden_act", "silu")])).unwrap();
    assert_eq!(silu.layer(0).unwrap().activation().unwrap().kind, ActivationKind::Silu);
    let table = silu.inspect(None, |_| {}).to_string();
    assert!(table.contains("silu, no gate"), "{table}");
}

/// `w1` and `w2`, without `w3`.
fn renamed_ungated(made: &Made) -> Made {
    let rename = |name: &String| name.replace(".up_proj.", ".w1.").replace(".down_proj.", ".w2.");
    let tensors = made.tensors.iter().map(|(name, tensor)| (rename(name), tensor.clone())).collect();
    Made { tensors, ..made.clone() }
}

#[test]
fn experts_that_lost_their_gate_are_not_taken_for_such_without() {
    for (changes, text) in [
        (&[("mlp_hidden_act", "silu")][..], "the experts have no gate, and config.json does not say relu2"),
        (&[("mlp_hidden_act", "gelu")], "mlp_hidden_act in config.json is gelu; without a gate this library computes"),
        (&[], "the experts have no gate, and config.json does not say relu2"),
    ] {
        let checkpoint = open(&ungated(changes)).unwrap();
        let error = checkpoint.layer(0).unwrap().activation().unwrap_err().to_string();
        assert!(error.starts_with(text), "{error}");
        assert!(checkpoint.modules()[0].refusal.as_ref().unwrap().starts_with(text));
    }
}

/// Some experts of a layer.
fn copied(layer: &Layer<'_>, first: usize, count: usize) -> Copied {
    let mut copied = Copied::poisoned(layer, count);
    layer.read(first, copied.buffers()).unwrap();
    copied
}

/// Rows of so many bytes of a stack's gate and up in turn, for each expert.
pub fn in_turn(tensor: &mut Tensor, experts: usize, row: usize) {
    let len = tensor.data.len() / experts;
    for expert in tensor.data.chunks_mut(len) {
        let (gate, up) = expert.split_at(expert.len() / 2);
        let rows = gate.chunks(row).zip(up.chunks(row)).flat_map(|(gate, up)| [gate, up].concat()).collect::<Vec<u8>>();
        expert.copy_from_slice(&rows);
    }
}

#[test]
fn interleaved_stacks_and_biases_are_read_gate_first() {
    let made = Spec::default().made();
    let mut form = stacked_layer(&made, "layers.0.mlp.experts", &FUSED, "_");
    form.config["model_type"] = "gpt_oss".into();
    let (hidden, inter) = (made.spec.hidden, made.spec.intermediate);
    in_turn(form.tensors.get_mut("layers.0.mlp.experts.gate_up_proj").unwrap(), 3, hidden / 2);
    in_turn(form.tensors.get_mut("layers.0.mlp.experts.gate_up_proj_weight_scale").unwrap(), 3, hidden / 16);
    let bias = |rows: usize, seed| Tensor { dtype: Dtype::BF16, shape: vec![3, rows], data: noise(seed, 6 * rows) };
    let (w13_bias, w2_bias) = (bias(2 * inter, 1), bias(hidden, 2));
    let mut interleaved = w13_bias.clone();
    in_turn(&mut interleaved, 3, 2);
    form.tensors.insert("layers.0.mlp.experts.gate_up_proj_bias".into(), interleaved);
    form.tensors.insert("layers.0.mlp.experts.down_proj_bias".into(), w2_bias.clone());

    let checkpoint = open(&form).unwrap();
    assert!(checkpoint.skipped().is_empty(), "{:?}", checkpoint.skipped());
    let layer = checkpoint.layer(0).unwrap();
    assert!(layer.has_bias());
    assert_eq!(layer.activation().unwrap().to_string(), "swiglu alpha 1.702 beta 1, clamp 7");
    let read = copied(&layer, 1, 2);
    for (e, w13) in read.w13.chunks(2 * inter * hidden / 2).enumerate() {
        assert!(w13 == [made.data(0, e + 1, GATE, "weight"), made.data(0, e + 1, UP, "weight")].concat());
    }
    for (e, scales) in read.w13_block_scale.chunks(2 * inter * hidden / 16).enumerate() {
        assert!(
            scales == [made.data(0, e + 1, GATE, "weight_scale"), made.data(0, e + 1, UP, "weight_scale")].concat()
        );
    }
    assert!(read.w13_bias == w13_bias.data[4 * inter..] && read.w2_bias == w2_bias.data[2 * hidden..]);
    let table = checkpoint.inspect(None, |_| {}).to_string();
    assert!(table.contains("clamp 7, biases"), "{table}");
}

/// Each expert's matrix of bytes by columns.
fn by_columns(tensor: &mut Tensor) {
    let [experts, rows, cols] = tensor.shape[..] else { panic!("{:?}", tensor.shape) };
    let byte = |data: &[u8], expert: usize, row: usize, col: usize| data[(expert * rows + row) * cols + col];
    let places = (0..experts).flat_map(|e| (0..cols).flat_map(move |c| (0..rows).map(move |r| (e, r, c))));
    tensor.data = places.map(|(e, r, c)| byte(&tensor.data, e, r, c)).collect();
    tensor.shape = vec![experts, cols, rows];
}

#[test]
fn stacks_that_are_stored_by_columns_are_turned() {
    let made = Spec::default().made();
    for model in ["llama4_text", "gpt_oss"] {
        let mut form = stacked_layer(&made, "layers.0.mlp.experts", &FUSED, "_");
        form.config["model_type"] = model.into();
        for (name, row) in
            [("gate_up_proj", made.spec.hidden / 2), ("gate_up_proj_weight_scale", made.spec.hidden / 16)]
        {
            if model == "gpt_oss" {
                in_turn(form.tensors.get_mut(&format!("layers.0.mlp.experts.{name}")).unwrap(), 3, row);
            }
        }
        form.tensors.values_mut().filter(|tensor| tensor.shape.len() == 3).for_each(by_columns);
        let checkpoint = open(&form).unwrap();
        assert!(checkpoint.skipped().is_empty(), "{:?}", checkpoint.skipped());
        assert_reads_back(&checkpoint, &Made { tensors: made.tensors.clone(), ..form.clone() }, 0);

        let scales = form.tensors.get_mut("layers.0.mlp.experts.down_proj_weight_scale").unwrap();
        scales.data[3] = 0x7f;
        let error = open(&form).unwrap().layer(0).unwrap().scan_block_scales(0..3).unwrap_err().to_string();
        let text = "layers.0.mlp.experts.down_proj_weight_scale of expert 0, Down[3, 0] is NaN";
        assert!(error.contains(text), "{error}");
    }
}

#[test]
fn a_bias_of_one_matrix_leaves_zeros_for_the_others_and_one_that_is_not_bf16_is_refused() {
    let mut made = Spec { deepseek_names: false, ..Spec::default() }.made();
    for expert in 0..3 {
        let name = made.spec.name(0, expert, UP, "bias");
        made.tensors.insert(name, Tensor { dtype: Dtype::BF16, shape: vec![32], data: noise(expert as u64, 64) });
    }
    let checkpoint = open(&made).unwrap();
    let read = copied(&checkpoint.layer(0).unwrap(), 2, 1);
    assert!(read.w13_bias[..64] == [0; 64] && read.w13_bias[64..] == noise(2, 64) && read.w2_bias == [0; 128]);
    let name = made.spec.name(0, 1, UP, "bias");
    made.tensors.insert(name.clone(), Tensor { dtype: Dtype::F32, shape: vec![32], data: vec![0; 128] });
    let error = open(&made).unwrap().layer(0).unwrap_err().to_string();
    assert!(error.contains(&format!("{name} is F32 [32]")), "{error}");
    made.tensors.remove(&name);
    let error = open(&made).unwrap().layer(0).unwrap_err().to_string();
    assert!(error.contains(&format!("{name} is missing")), "{error}");
}

#[test]
fn experts_that_the_exporter_left_as_they_were_are_told_from_missing_ones() {
    for compressed_tensors in [false, true] {
        for expert in [0, 2] {
            let spec = Spec { compressed_tensors, ..Spec::default() };
            let mut made = spec.made();
            made.tensors.retain(|name, _| !name.contains(&format!(".experts.{expert}.")));
            for (name, shape) in [("w1", vec![32, 64]), ("w3", vec![32, 64]), ("w2", vec![64, 32])] {
                let weight = Tensor { dtype: Dtype::BF16, shape, data: vec![0; 4096] };
                made.tensors.insert(format!("layers.0.ffn.experts.{expert}.{name}.weight"), weight);
            }
            let error = open(&made).unwrap().layer(0).unwrap_err().to_string();
            let text = format!("experts.{expert}.w1.weight is BF16 [32, 64]; other experts of this layer are NVFP4");
            assert!(error.contains(&text), "{error}");
            assert!(!error.contains("ownload"), "{error}");
        }
    }
}
