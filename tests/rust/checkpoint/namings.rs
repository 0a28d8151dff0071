// SPDX-License-Identifier: Apache-2.0
//! Every naming of the table gives the same layer; what is none of them is named.

use crate::made::{DOWN, GATE, Made, Spec, Tensor, UP};
use crate::read::{assert_reads_back, open};
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
    assert_skipped(&across, &["layers.0.mlp", "they must be [2I, H] and [H, I], output features first"]);

    let mut interleaved = stacked_layer(&made, "layers.0.mlp.experts", &FUSED, "_");
    interleaved.config["model_type"] = "gpt_oss".into();
    assert_skipped(&interleaved, &["gpt_oss, which interleaves the rows of gate and up"]);

    let other = renamed(&made, |e, p, t| format!("layers.0.mlp.experts.{e}.fc{p}.{t}"));
    assert_skipped(&other, &["its experts have fc0, fc1, fc2", "known matrices are w1, w3, w2, gate_proj"]);

    let dumped = renamed(&made, |e, p, t| format!("layers.0.mlp.expert_{e}_{p}_{t}"));
    assert_skipped(&dumped, &["layers.0.mlp", "looks like NVFP4", "expert_0_0_weight U8 [32, 32]"]);

    let text = open(&dumped).unwrap().inspect(None, |_| {}).to_string();
    assert!(text.contains("skipped layers.0.mlp: it looks like NVFP4"), "{text}");
}

#[test]
fn experts_without_a_gate_are_another_kind_and_no_damage() {
    let mut made = Spec { deepseek_names: false, ..Spec::default() }.made();
    made.tensors.retain(|name, _| !name.contains("gate_proj"));
    made.config["mlp_hidden_act"] = "relu2".into();
    let checkpoint = open(&made).unwrap();
    let error = checkpoint.layer(0).unwrap_err().to_string();
    for part in ["not gated (no gate_proj in any of 3 experts; mlp_hidden_act in config.json is relu2)", "SwiGLU"] {
        assert!(error.contains(part), "{error}");
    }
    assert!(!error.contains("ownload"), "{error}");
    assert!(checkpoint.modules()[0].refusal.as_ref().unwrap().contains("not gated"));
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
