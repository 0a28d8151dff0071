// SPDX-License-Identifier: Apache-2.0
//! A fault stays where it is, and whatever lies in a directory gets a sentence.

use crate::made::{Made, Spec, Tensor, UP, write};
use crate::read::{Copied, assert_reads_back, open};
use nvfp4_moe::checkpoint::Checkpoint;
use std::collections::BTreeMap;

const SECOND: &str = "model-00002-of-00002.safetensors";

fn two_layers() -> Made {
    Spec { layers: 2, ..Spec::default() }.made()
}

/// Layer 0 is whole and read, layer 1 is refused, and both facts and the warning are in the report.
#[track_caller]
fn assert_only_layer_1_suffers(files: BTreeMap<String, Vec<u8>>, warning: &str) {
    let checkpoint = Checkpoint::from_memory(files).unwrap();
    assert_reads_back(&checkpoint, &two_layers(), 0);
    let report = checkpoint.inspect(None, |_| {});
    assert_eq!((report.layers.len(), report.refused.len()), (1, 1));
    assert!(report.warnings.iter().any(|text| text.contains(warning)), "{warning} is not in {:?}", report.warnings);
    checkpoint.layer(1).unwrap_err();
}

#[test]
fn damage_in_one_file_stops_no_layer_of_another() {
    let made = two_layers();
    let whole = made.sharded();
    for (damaged, warning) in [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n".to_vec(), "is a git-lfs pointer"),
        (b"<!DOCTYPE html><html></html>".to_vec(), "is an HTML page"),
        (Vec::new(), "is 0 bytes"),
        (whole[SECOND][..1000].to_vec(), "its header ends at byte"),
    ] {
        let files = whole.iter().map(|(n, b)| (n.clone(), if n == SECOND { damaged.clone() } else { b.clone() }));
        assert_only_layer_1_suffers(files.collect(), warning);
    }
    let mut broken = made.clone();
    broken.tensors.get_mut("layers.1.ffn.experts.0.w3.weight_scale").unwrap().data[0] = 0x7f;
    let report = open(&broken).unwrap();
    assert_eq!(report.inspect(None, |_| {}).layers.len(), 1);
}

#[test]
fn an_entry_of_the_index_that_no_shard_has_is_only_warned_of() {
    let made = two_layers();
    let mut files = made.sharded();
    let mut index: serde_json::Value = serde_json::from_slice(&files["model.safetensors.index.json"]).unwrap();
    index["weight_map"]["mtp.fc.weight"] = SECOND.into();
    files.insert("model.safetensors.index.json".to_owned(), index.to_string().into_bytes());
    files.insert("consolidated.safetensors".to_owned(), made.file(|_| true));
    let checkpoint = Checkpoint::from_memory(files).unwrap();
    assert_reads_back(&checkpoint, &made, 1);
    let warnings = checkpoint.inspect(None, |_| {}).warnings;
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    assert!(warnings[0].contains("mtp.fc.weight of model-00002-of-00002.safetensors are missing"), "{warnings:?}");
    assert!(warnings[1].contains("consolidated.safetensors is in the directory and not read"), "{warnings:?}");
}

#[test]
fn a_link_to_nothing_among_the_shards() {
    let made = two_layers();
    for indexed in [true, false] {
        let directory = tempfile::tempdir().unwrap();
        let mut files = made.sharded();
        files.remove(SECOND);
        if !indexed {
            files.remove("model.safetensors.index.json");
        }
        write(directory.path(), &files);
        std::os::unix::fs::symlink("../nothing", directory.path().join(SECOND)).unwrap();
        let checkpoint = Checkpoint::open(directory.path()).unwrap();
        assert_reads_back(&checkpoint, &made, 0);
        checkpoint.layer(1).unwrap_err();
        let warnings = checkpoint.survey().warnings;
        let text = format!("{SECOND} is unreadable (it is a symbolic link to a file that is not there)");
        assert!(warnings.iter().any(|warning| warning.contains(&text)), "{warnings:?}");
    }
}

#[test]
fn configs_that_are_no_object() {
    for (config, text) in [
        ("null", "config.json is null; it must be a JSON object"),
        ("[]", "config.json is []; it must be a JSON object"),
        ("", "config.json is malformed (EOF"),
        ("version https://git-lfs.github.com/spec/v1\n", "config.json is a git-lfs pointer; it must be JSON"),
    ] {
        let mut files = Spec::default().made().files();
        files.insert("config.json".to_owned(), config.as_bytes().to_vec());
        let error = Checkpoint::from_memory(files).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
    let mut files = Spec::default().made().files();
    files.insert("hf_quant_config.json".to_owned(), b"[".to_vec());
    let warnings = Checkpoint::from_memory(files).unwrap().survey().warnings;
    assert!(warnings.iter().any(|warning| warning.contains("hf_quant_config.json is malformed")), "{warnings:?}");
    let error = Checkpoint::open("somebody/Model-NVFP4".as_ref()).unwrap_err().to_string();
    assert!(error.contains("a model that is only on a hub has to be downloaded first"), "{error}");
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = Checkpoint::open(file.path()).unwrap_err().to_string();
    assert!(error.contains("it must be a readable directory"), "{error}");
}

#[test]
fn names_of_a_hostile_file_are_written_out_and_bounded() {
    let mut made = Spec::default().made();
    let name = format!("layers.0.ffn.experts.1.w3.\u{1b}[2J\u{202e}{}", "x".repeat(100_000));
    made.tensors.insert(name.clone(), Tensor::scalar(1.0));
    made.tensors.insert(format!("{name}.experts.0.w1.weight"), Tensor::scalar(1.0));
    made.config["model_type"] = "\u{1b}]0;title\u{7}".into();
    let checkpoint = open(&made).unwrap();
    let error = checkpoint.layer(0).unwrap_err().to_string();
    let table = checkpoint.inspect(None, |_| {}).to_string();
    // What a program prints of the JSON that it decoded.
    let json: serde_json::Value = serde_json::from_str(&checkpoint.survey().to_json().unwrap()).unwrap();
    let strings = decoded_strings(&json).join("\n");
    for text in [error, table, strings] {
        assert!(text.contains("\\u{1b}") && !text.contains(['\u{1b}', '\u{202e}', '\u{7}']), "{text:.900}");
        assert!(text.len() < 5000, "{} bytes", text.len());
    }
}

fn decoded_strings(json: &serde_json::Value) -> Vec<String> {
    match json {
        serde_json::Value::String(text) => vec![text.clone()],
        serde_json::Value::Array(list) => list.iter().flat_map(decoded_strings).collect(),
        serde_json::Value::Object(object) => object.values().flat_map(decoded_strings).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn a_file_that_was_cut_off_keeps_the_layers_before_the_cut() {
    let whole = two_layers().files();
    let file = &whole["model.safetensors"];
    let header_bytes = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    // safetensors puts tensors in the order of their names, scalars first, so the last tenth is weights of layer 1.
    let cut = |bytes: usize| {
        let mut files = whole.clone();
        files.get_mut("model.safetensors").unwrap().truncate(bytes);
        files
    };
    assert_only_layer_1_suffers(
        cut(file.len() - 100),
        "model.safetensors is cut off; 1 of its tensors lie past its end",
    );
    let error = Checkpoint::from_memory(cut(header_bytes + 1)).unwrap_err().to_string();
    assert!(error.contains("the file has 1 bytes of data. The file is truncated"), "{error}");
}

/// Once bad scales with OK: what was checked and what was copied were two readings.
#[test]
fn a_file_that_is_written_to_while_it_is_open_is_refused() {
    let (directory, made) = (tempfile::tempdir().unwrap(), Spec::default().made());
    write(directory.path(), &made.files());
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    let layer = checkpoint.layer(0).unwrap();
    let mut copied = Copied::poisoned(&layer, 3);
    layer.read(0, copied.buffers()).unwrap();
    let file = std::fs::File::options().append(true).open(directory.path().join("model.safetensors")).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    let error = layer.read(0, copied.buffers()).unwrap_err().to_string();
    assert!(error.contains("was changed since it had"), "{error}");
}

#[test]
fn scales_that_nobody_measured_are_left_out_with_both_numbers() {
    for (sentinel, text) in
        [(1.0, "w3.input_scale = 1, a placeholder"), (3e4, "w3.input_scale = 3e4; the largest of all others is")]
    {
        let mut made = Spec::default().made();
        *made.tensor(1, UP, "input_scale") = Tensor::scalar(sentinel);
        let checkpoint = open(&made).unwrap();
        let report = checkpoint.survey();
        let scale = &report.layers[0].w13_input_scale;
        assert_eq!((scale.num_usable, scale.max), (5, made.value(0, 2, UP, "input_scale")));
        let warned = |warning: &String| warning.contains(text) && warning.contains("left out of the maximum");
        assert!(report.warnings.iter().any(warned), "{:?}", report.warnings);
    }
}
