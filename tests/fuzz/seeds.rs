// SPDX-License-Identifier: Apache-2.0
//! Writes seed inputs of the `checkpoint` target: one for each format, naming and file layout, and broken ones.

#[path = "../rust/checkpoint/made.rs"]
#[allow(dead_code)]
mod made;

use made::{Made, Spec, UP};
use std::{collections::BTreeMap, fs, path::Path};

/// `config | index | header \n data | ...`, as the target takes it apart.
fn input(files: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let part = |name: &str| files.get(name).cloned().unwrap_or_default();
    let mut parts = vec![part("config.json"), part("model.safetensors.index.json")];
    for (_, file) in files.iter().filter(|(name, _)| name.ends_with(".safetensors")) {
        let header = 8 + u64::from_le_bytes(file[..8].try_into().expect("8 bytes")) as usize;
        parts.push([&file[8..header], b"\n", &file[header..]].concat());
    }
    parts.join(&b"|FILE|"[..])
}

fn main() -> std::io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/checkpoint");
    fs::create_dir_all(&corpus)?;
    let small = Spec { layers: 1, experts: 1, hidden: 16, intermediate: 16, ..Spec::default() };
    let mut seeds: Vec<Made> = Vec::new();
    for (deepseek_names, compressed_tensors) in [(true, false), (true, true), (false, false), (false, true)] {
        seeds.push(Spec { deepseek_names, compressed_tensors, ..small.clone() }.made());
    }
    seeds.push(Spec { hidden: 32, intermediate: 32, lossless_cast: true, ..small.clone() }.made());
    let mut broken = small.made();
    broken.tensor(0, UP, "weight_scale").data[3] = 0x7f;
    seeds.push(broken);
    let mut mixed = small.made();
    mixed.config["quantization_config"] = serde_json::json!({"quant_method": "fp8", "moe_quant_algo": "NVFP4"});
    mixed.config["swiglu_limit"] = 10.0.into();
    seeds.push(mixed);
    for (number, made) in seeds.iter().enumerate() {
        fs::write(corpus.join(format!("seed-{number}")), input(&made.files()))?;
    }
    // The target calls its files a, b and c.
    let made = Spec { layers: 2, ..small }.made();
    let index = |text: String| text.replace("model-00001-of-00002", "a").replace("model-00002-of-00002", "b");
    let mut sharded = made.sharded();
    for text in sharded.values_mut() {
        if let Ok(json) = String::from_utf8(text.clone()) {
            *text = index(json).into_bytes();
        }
    }
    fs::write(corpus.join("seed-sharded"), input(&sharded))
}
