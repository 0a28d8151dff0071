// SPDX-License-Identifier: Apache-2.0
//! What the config decides: the activation, and where a model keeps its sizes.

use crate::made::{Made, Spec};
use crate::read::{assert_reads_back, open};
use nvfp4_moe::activation::{Activation, ActivationKind};
use nvfp4_moe::error::Error;
use serde_json::{Value, json};

fn with(changes: &Value) -> Made {
    let mut made = Spec { deepseek_names: false, layers: 2, ..Spec::default() }.made();
    for (key, value) in changes.as_object().unwrap() {
        made.config[key] = value.clone();
    }
    made
}

fn activation(changes: &Value, layer: u32) -> Result<Activation, Error> {
    open(&with(changes)).unwrap().layer(layer).unwrap().activation()
}

#[test]
fn what_is_swiglu_is_read_with_its_parameters() {
    for (changes, limit, alpha, beta) in [
        (json!({}), 0.0, 1.0, 0.0),
        (json!({"hidden_act": "silu"}), 0.0, 1.0, 0.0),
        (json!({"hidden_act": "SiLU", "swiglu_limit": 10.0}), 10.0, 1.0, 0.0),
        (json!({"hidden_act": "swish", "swiglu_limit": null, "swiglu_limits": [0.0, null]}), 0.0, 1.0, 0.0),
        (json!({"hidden_act": "swigluoai", "swiglu_limit": 6, "swiglu_alpha": 1.5, "swiglu_beta": 0.5}), 6.0, 1.5, 0.5),
        (json!({"model_type": "minimax_m3", "hidden_act": "swigluoai", "swiglu_alpha": 1.702}), 7.0, 1.702, 1.0),
        (json!({"model_type": "gpt_oss", "hidden_act": "silu", "swiglu_limit": 7.0}), 7.0, 1.702, 1.0),
        (json!({"hidden_act": "silu", "swiglu_alpha": 1.702, "swiglu_beta": 1.0}), 0.0, 1.702, 1.0),
        (json!({"swiglu_limit": [0.0, 4.0]}), 4.0, 1.0, 0.0),
        (json!({"model_type": "step3p5", "hidden_act": "silu", "swiglu_limits": [7.0, 0.0]}), 0.0, 1.0, 0.0),
        (json!({"model_type": "step3p5", "swiglu_limits": [7.0, null]}), 0.0, 1.0, 0.0),
        // Of other parts of a model, or switched off.
        (
            json!({"mamba_hidden_act": "relu", "projector_hidden_act": "gelu", "moe_router_activation_func": "sigmoid"}),
            0.0,
            1.0,
            0.0,
        ),
        (
            json!({"swiglu_limits_shared": [7.0], "activation_dropout": 0.1, "use_swiglu": true, "situ_beta": null}),
            0.0,
            1.0,
            0.0,
        ),
        (json!({"hidden_act": "silu", "vision_config": {"hidden_act": "gelu"}}), 0.0, 1.0, 0.0),
        (json!({"hidden_act": "gelu", "text_config": {"hidden_act": "silu", "num_experts": 3}}), 0.0, 1.0, 0.0),
    ] {
        assert_eq!(activation(&changes, 1).unwrap(), Activation::swiglu(limit, alpha, beta).unwrap(), "{changes}");
    }
}

#[test]
fn other_activations_with_a_gate_are_read_with_their_parameters() {
    let situ = json!({"hidden_act": "situ", "activation_situ_beta": 4.0, "activation_situ_linear_beta": 25.0});
    let unbounded = json!({"hidden_act": "situ", "activation_situ_beta": null, "activation_situ_linear_beta": null});
    for (changes, kind, limit, beta, words) in [
        (json!({"hidden_activation": "gelu_pytorch_tanh"}), ActivationKind::GeluTanh, 0.0, 0.0, "gelu_tanh"),
        (json!({"hidden_act": "gelu"}), ActivationKind::Gelu, 0.0, 0.0, "gelu"),
        (json!({"hidden_act": "gelu_new"}), ActivationKind::GeluTanh, 0.0, 0.0, "gelu_tanh"),
        (json!({"model_type": "gemma4"}), ActivationKind::GeluTanh, 0.0, 0.0, "gelu_tanh"),
        (situ, ActivationKind::Situ, 25.0, 4.0, "situ beta 4 and 25"),
        (unbounded, ActivationKind::Situ, 0.0, 1.0, "situ beta 1"),
        (
            json!({"model_type": "step3p5", "swiglu_limits": [0.0, 7.0]}),
            ActivationKind::SwigluStep,
            7.0,
            0.0,
            "silu, clamp 7 after",
        ),
        (
            json!({"model_type": "step3p5", "swiglu_limit": 7.0}),
            ActivationKind::SwigluStep,
            7.0,
            0.0,
            "silu, clamp 7 after",
        ),
        (
            json!({"hidden_act": "swiglustep", "swiglu_limit": 5.0}),
            ActivationKind::SwigluStep,
            5.0,
            0.0,
            "silu, clamp 5 after",
        ),
    ] {
        let found = activation(&changes, 1).unwrap();
        assert_eq!(found, Activation::new(kind, limit, 0.0, beta).unwrap(), "{changes}");
        assert_eq!(found.to_string(), words);
    }
}

#[test]
fn every_other_activation_is_refused_by_the_name_of_its_key() {
    for (changes, text) in [
        (json!({"hidden_act": "quick_gelu"}), "hidden_act in config.json is quick_gelu; "),
        (json!({"mlp_hidden_act": "relu2"}), "mlp_hidden_act in config.json is relu2; "),
        (json!({"ffn_act_fn": {"name": "geglu"}}), "ffn_act_fn in config.json is {\"name\":\"geglu\"}; "),
        (json!({"hidden_act": ["silu", "relu"]}), "hidden_act in config.json is relu; "),
        (json!({"hidden_act": "silu", "moe_activation": "swigluoai"}), "otherwise"),
        (json!({"model_type": "nemotron_h"}), "model_type in config.json is nemotron_h, whose experts use relu2; "),
        (json!({"model_type": "grok-1", "hidden_act": "gelu"}), "is grok-1, whose code is not at one on GELU"),
        (
            json!({"model_type": "gpt_oss", "hidden_act": "gelu"}),
            "hidden_act in config.json is no swigluoai; model_type gpt_oss says otherwise",
        ),
        (
            json!({"model_type": "kimi_k3", "hidden_act": "silu"}),
            "activation_situ_beta is missing in config.json; SiTU",
        ),
        (
            json!({"hidden_act": "situ", "activation_situ_beta": 4.0}),
            "activation_situ_linear_beta is missing in config.json; SiTU",
        ),
        (json!({"activation_situ_beta": 4.0}), "activation_situ_beta in config.json is 4.0; "),
        (json!({"hidden_act": "gelu_tanh", "swiglu_limit": 7.0}), "swiglu_limit is 7; activation 3 (gelu_tanh)"),
        (json!({"situ_beta": 4.0}), "situ_beta in config.json is 4.0; "),
        (json!({"activation_limit": 7}), "activation_limit in config.json is 7; "),
        (json!({"expert_clamp": 7.0}), "expert_clamp in config.json is 7.0; "),
        (json!({"hidden_act_params": {"alpha": 2}}), "hidden_act_params in config.json is {\"alpha\":2}; "),
        (json!({"gate_limit": 7}), "gate_limit in config.json is 7; "),
        (json!({"swiglu_gamma": 2}), "swiglu_gamma in config.json is 2; "),
        (json!({"swiglu_limits": [0.0, 7.0]}), "swiglu_limits in config.json is 7.0; "),
        (json!({"swiglu_limits": [7.0]}), "swiglu_limits in config.json is [7.0]; "),
        (json!({"model_type": "step3p5", "swiglu_limits": [7.0]}), "swiglu_limits in config.json is [7.0]; it must be"),
        (json!({"swiglu_limit": -7}), "swiglu_limit in config.json is -7; it must be a finite number, not negative"),
        (json!({"swiglu_limit": "ten"}), "swiglu_limit in config.json is \"ten\"; it must be a finite number"),
        (json!({"swiglu_alpha": 1.702}), "swiglu_alpha in config.json is 1.702; swiglu_beta is missing"),
        (json!({"text_config": {"hidden_act": "relu", "num_experts": 3}}), "hidden_act in config.json is relu; "),
    ] {
        let error = activation(&changes, 1).unwrap_err();
        assert!(matches!(error, Error::Unsupported(_)), "{error:?}");
        let text_of = error.to_string();
        assert!(text_of.contains(text), "{changes}: {text_of}");
    }
}

#[test]
fn a_refused_activation_refuses_the_layer_in_the_report_and_not_its_weights() {
    let made = with(&json!({"hidden_act": "relu"}));
    let checkpoint = open(&made).unwrap();
    assert_reads_back(&checkpoint, &made, 0);
    let report = checkpoint.inspect(None, |_| {});
    assert_eq!((report.layers.len(), report.refused.len(), report.is_accepted()), (0, 2, false));
    let table = report.to_string();
    assert!(table.contains("REFUSED layers 0 to 1: hidden_act in config.json is relu; "), "{table}");
    let refusals: Vec<_> = checkpoint.modules().iter().map(|module| module.refusal.is_some()).collect();
    assert_eq!(refusals, [true, true]);

    let table = open(&with(&json!({"hidden_act": "swigluoai"}))).unwrap().inspect(None, |_| {}).to_string();
    assert!(table.contains("swiglu alpha 1.702 beta 1, clamp 7"), "{table}");
}

#[test]
fn sizes_are_found_wherever_and_under_whatever_name_a_model_keeps_them() {
    let plain = with(&json!({}));
    for top_k in ["num_experts_per_token", "moe_topk", "moe_k", "moe_top_k", "top_k_experts", "num_selected_experts"] {
        for tower in ["text_config", "llm_config", "language_config", "thinker_config"] {
            let mut config = plain.config.clone();
            let quantization = config["quantization_config"].take();
            config.as_object_mut().unwrap().remove("num_experts_per_tok");
            config[top_k] = 2.into();
            let mut made = plain.clone();
            made.config = json!({"model_type": "m", tower: config, "quantization_config": quantization});
            let checkpoint = open(&made).unwrap();
            assert_reads_back(&checkpoint, &made, 0);
            assert_eq!(checkpoint.layer(0).unwrap().facts.top_k, Some(2), "{top_k} in {tower}");
            assert_eq!(checkpoint.config.top_k, Some(2));
        }
    }
}

#[test]
fn the_number_of_experts_is_held_against_the_files_under_each_of_its_names() {
    for key in
        ["n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts", "num_routed_experts", "n_experts"]
    {
        let mut made = with(&json!({}));
        made.config.as_object_mut().unwrap().retain(|key, _| !key.contains("experts") || key.contains("tok"));
        made.config[key] = 2.into();
        let error = open(&made).unwrap().layer(0).unwrap_err().to_string();
        assert!(error.contains("experts is 3 experts; config.json says 2"), "{key}: {error}");
    }
}

#[test]
fn lists_give_a_layer_its_element_and_what_is_no_size_is_done_without() {
    for (changes, noted) in [
        (json!({"moe_intermediate_size": [32, 16]}), false),
        (json!({"num_experts_per_tok": [2, 8]}), false),
        (json!({"num_experts": [3, 3]}), false),
        (json!({"moe_intermediate_size": 32.0}), false),
        (json!({"num_experts": 0}), true),
        (json!({"hidden_size": "wide"}), true),
        (json!({"moe_intermediate_size": [16, 32]}), true),
        (json!({"num_experts": [64, 2]}), true),
        (json!({"moe_intermediate_size": -1}), true),
    ] {
        let made = with(&changes);
        let checkpoint = open(&made).unwrap();
        assert_reads_back(&checkpoint, &made, 0);
        let facts = checkpoint.layer(0).unwrap().facts;
        assert_eq!(facts.notes.is_empty(), !noted, "{changes}: {:?}", facts.notes);
        assert_eq!(facts.top_k, Some(2));
        let warnings = checkpoint.survey().warnings;
        assert!(facts.notes.iter().all(|note| warnings.contains(note)), "{warnings:?}");
    }
    let checkpoint = open(&with(&json!({"num_experts_per_tok": -1}))).unwrap();
    assert_eq!(checkpoint.layer(0).unwrap().facts.top_k, None);
}

#[test]
fn experts_in_a_latent_space_have_their_own_width() {
    open(&with(&json!({"hidden_size": 4096, "moe_latent_size": 64}))).unwrap().layer(0).unwrap();
    let error = open(&with(&json!({"hidden_size": 4096, "moe_latent_size": 32}))).unwrap().layer(0).unwrap_err();
    assert!(error.to_string().contains("config.json says 4096"), "{error}");
}

#[test]
fn each_tower_of_two_has_its_own_layers_and_sizes() {
    let big = Spec { deepseek_names: false, ..Spec::default() }.made();
    let small = Spec { deepseek_names: false, experts: 2, hidden: 32, intermediate: 16, ..Spec::default() }.made();
    let mut made = big.clone();
    let under = |tower: &str, made: &Made| {
        made.tensors.iter().map(|(name, t)| (format!("{tower}.{name}"), t.clone())).collect::<Vec<_>>()
    };
    made.tensors = under("thinker", &big).into_iter().chain(under("talker", &small)).collect();
    made.config = json!({
        "model_type": "omni", "quantization_config": big.config["quantization_config"],
        "thinker_config": {"text_config": big.config}, "talker_config": {"text_config": small.config},
    });
    let checkpoint = open(&made).unwrap();
    let report = checkpoint.inspect(None, |_| {});
    assert_eq!((report.layers.len(), report.refused.len()), (2, 0), "{report}");
    assert!(report.to_string().contains("thinker.model.layers.0.mlp"), "{report}");
    let error = checkpoint.layer(0).unwrap_err().to_string();
    assert!(error.contains("thinker.model.layers.0.mlp") && error.contains("open one tower by its prefix"), "{error}");
    let directory = tempfile::tempdir().unwrap();
    crate::made::write(directory.path(), &made.files());
    for (prefix, hidden) in [("thinker.", 64), ("talker.", 32)] {
        let one = nvfp4_moe::checkpoint::Checkpoint::open_prefix(directory.path(), prefix).unwrap();
        assert_eq!(one.layer(0).unwrap().dims.hidden_size, hidden);
    }
}
