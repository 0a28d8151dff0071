// SPDX-License-Identifier: Apache-2.0
//! The report, as a library, and as the command line prints it.

use crate::made::{Made, Spec, Tensor, UP, write};
use crate::read::open;
use nvfp4_moe::checkpoint::Checkpoint;
use std::path::Path;
use std::process::{Command, Output};

fn nvfp4_moe(directory: &Path, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nvfp4-moe")).arg("inspect").arg(directory).args(more).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn warnings(made: &Made) -> Vec<String> {
    open(made).unwrap().inspect(None, |_| {}).warnings.clone()
}

#[track_caller]
fn assert_warns(made: &Made, parts: &[&str]) {
    let warnings = warnings(made);
    let has_all = |warning: &String| parts.iter().all(|part| warning.contains(part));
    assert!(warnings.iter().any(has_all), "{parts:?} in none of {warnings:#?}");
}

/// A checkpoint that there is nothing to say about.
fn quiet() -> Made {
    let mut made = Spec { layers: 2, ..Spec::default() }.made();
    made.config["swiglu_limit"] = 10.0.into();
    made
}

#[test]
fn a_good_checkpoint_gives_a_table_and_no_warning() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), &quiet().files());
    let output = nvfp4_moe(directory.path(), &[]);
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    for layer in ["0", "1"] {
        let row = rows.iter().find(|row| row.first() == Some(&layer)).unwrap();
        assert_eq!(row[1..5], ["modelopt", "3", "64", "32"], "{text}");
    }
    assert!(text.contains("top-k 2, swiglu_limit 10"), "{text}");
    assert!(!text.contains("warning"), "{text}");
}

#[test]
fn json_holds_the_same() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), &quiet().sharded());
    let output = nvfp4_moe(directory.path(), &["--json", "--layer", "1"]);
    assert_eq!(output.status.code(), Some(0));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["num_files"], 2);
    assert_eq!(report["layers"].as_array().unwrap().len(), 1);
    let layer = &report["layers"][0];
    for (key, value) in [
        ("layer", 1),
        ("num_experts", 3),
        ("hidden_size", 64),
        ("intermediate_size", 32),
        ("bytes", 3 * 3 * (1024 + 128 + 4)),
    ] {
        assert_eq!(layer[key], value, "{key}");
    }
    assert_eq!((&layer["format"], &layer["lossless_cast"]), (&"modelopt".into(), &false.into()));
    assert_eq!(layer["w13_input_scale"]["num_usable"], 6);
}

#[test]
fn exit_codes_tell_fine_from_refused_from_misused() {
    let directory = tempfile::tempdir().unwrap();
    let mut made = quiet();
    made.tensor(1, UP, "weight_scale").data[0] = 0x7f;
    write(directory.path(), &made.files());
    let output = nvfp4_moe(directory.path(), &[]);
    assert_eq!(output.status.code(), Some(1));
    let text = stdout(&output);
    assert!(text.contains("REFUSED layer 0: layers.0.ffn.experts.1.w3.weight_scale[0, 0] is NaN"), "{text}");
    assert!(text.lines().any(|line| line.starts_with("1 ")), "layer 1 is still described: {text}");
    assert_eq!(nvfp4_moe(directory.path(), &["--layer", "1"]).status.code(), Some(0));
    assert_eq!(nvfp4_moe(directory.path(), &["--layer", "9"]).status.code(), Some(1));
    assert_eq!(nvfp4_moe(directory.path(), &["--layer", "x"]).status.code(), Some(2));
    assert_eq!(nvfp4_moe(directory.path(), &["--nonsense"]).status.code(), Some(2));
    assert_eq!(nvfp4_moe(&directory.path().join("none"), &[]).status.code(), Some(1));

    made.tensors.retain(|name, _| name.ends_with("weight_scale_2"));
    made.tensors = [("embed.weight".to_owned(), Tensor::scalar(1.0))].into();
    write(directory.path(), &made.files());
    let output = nvfp4_moe(directory.path(), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("has no FP4 MoE layer"));
}

#[test]
fn warnings_name_what_to_act_on() {
    assert_eq!(warnings(&quiet()), [""; 0]);

    let mut made = quiet();
    *made.tensor(2, UP, "input_scale") = Tensor::scalar(f32::NAN);
    assert_warns(
        &made,
        &["layer 0: 1 of 6 w13 input scales are unusable", "layers.0.ffn.experts.2.w3.input_scale = NaN"],
    );

    let mut made = quiet();
    made.tensors.retain(|name, _| !name.contains("layers.1.") || !name.ends_with("w2.input_scale"));
    assert_warns(&made, &["layer 1: w2 has no usable input scale", "experts.0.w2.input_scale missing", "calibrate"]);

    let mut made = quiet();
    *made.tensor(0, UP, "weight_scale_2") = Tensor::scalar(0.002);
    assert_warns(&made, &["layer 0: gate and up of 1 of 3 experts have different global scales, up to 2.000 times"]);

    let mut made = quiet();
    made.config["swiglu_limit"] = serde_json::Value::Null;
    assert_warns(&made, &["swiglu_limit is missing in config.json; deepseek_v4 clamps"]);

    let mut made = quiet();
    made.config.as_object_mut().unwrap().remove("num_experts_per_tok");
    assert_warns(&made, &["num_experts_per_tok is missing"]);

    let mut made = quiet();
    made.config["quantization_config"]["quant_method"] = "compressed-tensors".into();
    assert_warns(&made, &["quant_method is \"compressed-tensors\"", "named as modelopt does"]);
    made.config["quantization_config"] = serde_json::Value::Null;
    assert_warns(&made, &["quantization_config is missing in config.json"]);

    let mut made = quiet();
    for tensor in ["weight", "weight_scale", "weight_scale_2"] {
        let of_expert = made.tensor(0, UP, tensor).clone();
        made.tensors.insert(format!("layers.0.attn.wq_b.{tensor}"), of_expert);
    }
    assert_warns(&made, &["1 linears outside the routed experts are NVFP4 (layers.0.attn.wq_b)"]);

    let mut made = quiet();
    let low = |(name, tensor): (&String, &mut Tensor)| {
        if name.starts_with("layers.0.") && name.ends_with("input_scale") {
            *tensor = Tensor::scalar(0.000_251_41); // a real checkpoint's: calibrated amax 0.676
        }
    };
    made.tensors.iter_mut().for_each(low);
    assert_warns(&made, &["layer 0: the calibrated amax of GEMM1's input is 0.676; normalised rows have at least 1"]);

    let mut made = quiet();
    made.tensor(1, UP, "weight_scale").data.fill(0);
    assert_warns(&made, &["1 block-scale tensors hold zeros alone (layers.0.ffn.experts.1.w3.weight_scale)"]);

    let mut files = quiet().sharded();
    files.remove("model-00002-of-00002.safetensors");
    let checkpoint = Checkpoint::from_memory(files).unwrap();
    let report = checkpoint.inspect(None, |_| {});
    assert_eq!(
        report.warnings,
        ["model-00002-of-00002.safetensors is missing; the index places 36 tensors in it. Download it."]
    );
    assert_eq!((report.layers.len(), report.refused.len()), (1, 1));
}
