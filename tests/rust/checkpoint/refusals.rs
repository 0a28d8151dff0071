// SPDX-License-Identifier: Apache-2.0
//! What is refused, by tensor name and with both numbers.

use crate::made::{DOWN, GATE, Made, Spec, Tensor, UP, noise, write};
use crate::read::{Copied, open};
use nvfp4_moe::checkpoint::Checkpoint;
use nvfp4_moe::error::{Error, Result};
use safetensors::tensor::Dtype;
use std::collections::BTreeMap;

/// Everything that the reader checks of layer 0.
fn check(made: &Made) -> Result<()> {
    let checkpoint = open(made)?;
    let layer = checkpoint.layer(0)?;
    layer.scan_block_scales(0..layer.dims.num_experts).map(drop)
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(result: Result<T>, parts: &[&str]) {
    let error = result.unwrap_err();
    assert!(matches!(error, Error::Checkpoint(_)), "{error:?}");
    for part in parts {
        assert!(error.to_string().contains(part), "{part:?} is not in: {error}");
    }
}

fn both_formats() -> [Spec; 2] {
    [false, true].map(|compressed_tensors| Spec { compressed_tensors, ..Spec::default() })
}

#[test]
fn missing_tensors() {
    for spec in both_formats() {
        for tensor in ["weight", "weight_scale", "weight_scale_2"] {
            for (expert, projection) in [(0, GATE), (1, UP), (2, DOWN)] {
                let mut made = spec.made();
                let name = spec.name(0, expert, projection, tensor);
                made.tensors.remove(&name);
                assert_refused(check(&made), &[&format!("{name} is missing; none of 1 files has it.")]);
            }
        }
    }
}

#[test]
fn weight_global_scales_that_cannot_decode() {
    for spec in both_formats() {
        for (value, text) in
            [(0.0, "0"), (f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf"), (-0.5, "-0.5")]
        {
            let mut made = spec.made();
            *made.tensor(1, DOWN, "weight_scale_2") = Tensor::scalar(value);
            let name = spec.name(0, 1, DOWN, "weight_scale_2");
            assert_refused(check(&made), &[&format!("{name} is {text}; "), "at least 7.7037"]);
        }
    }
    let mut made = Spec::default().made();
    *made.tensor(1, DOWN, "weight_scale_2") = Tensor::scalar(1e-34);
    assert_refused(check(&made), &["w2.weight_scale_2 is 0.0000000", "2^-110"]);
    let mut made = Spec { compressed_tensors: true, ..Spec::default() }.made();
    *made.tensor(1, DOWN, "weight_scale_2") = Tensor::scalar(1e-40); // its inverse is infinite
    assert_refused(check(&made), &["w2.weight_global_scale is 0.0000000", "1 / scale"]);
}

#[test]
fn block_scales_that_are_nan_or_negative() {
    for spec in both_formats() {
        for (bits, text) in
            [(0x7f, "NaN (byte 0x7f)"), (0xff, "NaN (byte 0xff)"), (0x80, "-0 (byte 0x80)"), (0xc0, "-2 (byte 0xc0)")]
        {
            let mut made = spec.made();
            made.tensor(2, UP, "weight_scale").data[4 * 5 + 3] = bits; // [32, 4]
            let name = spec.name(0, 2, UP, "weight_scale");
            assert_refused(check(&made), &[&format!("{name}[5, 3] is {text}; "), "from 0 to 448"]);
        }
    }
}

#[test]
fn reading_refuses_bad_block_scales_before_it_writes_anything() {
    let mut made = Spec::default().made();
    made.tensor(2, DOWN, "weight_scale").data[0] = 0x7f;
    let checkpoint = open(&made).unwrap();
    let layer = checkpoint.layer(0).unwrap();
    let mut copied = Copied::poisoned(&layer, 3);
    assert_refused(layer.read(0, copied.buffers()), &["experts.2.w2.weight_scale[0, 0]"]);
    assert_eq!(copied, Copied::poisoned(&layer, 3));
    let mut good = Copied::poisoned(&layer, 2);
    layer.read(0, good.buffers()).unwrap();
}

#[test]
fn wrong_shapes() {
    // [intermediate 32, hidden 64]; the two of expert 0's gate are what the others are held against.
    let cases: [(usize, usize, &str, &[usize], &str); 6] = [
        (1, GATE, "weight", &[32, 24], "U8 [32, 24]; it must be U8 [32, 32] (rows, columns / 2)"),
        (0, DOWN, "weight", &[32, 32], "U8 [32, 32]; it must be U8 [64, 16] (rows, columns / 2)"),
        (2, UP, "weight_scale", &[32, 2], "F8_E4M3 [32, 2]; it must be F8_E4M3 [32, 4] (rows, columns / 16)"),
        (2, UP, "weight_scale", &[128], "F8_E4M3 [128]; it must be F8_E4M3 [32, 4]"),
        (0, GATE, "weight", &[1024], "of shape [1024]; it must have the extents (rows, columns / 2)"),
        (0, GATE, "weight", &[40, 32], "[40, 32], so intermediate_size is 40; it must be a positive multiple of 16"),
    ];
    for (expert, projection, tensor, shape, text) in cases {
        let mut made = Spec::default().made();
        let broken = made.tensor(expert, projection, tensor);
        broken.shape = shape.to_vec();
        broken.data = noise(1, shape.iter().product());
        let name = made.spec.name(0, expert, projection, tensor);
        assert_refused(check(&made), &[&format!("{name} is {text}")]);
    }
    let mut made = Spec::default().made();
    *made.tensor(1, GATE, "weight_scale_2") = Tensor { shape: vec![2], data: vec![0; 8], ..Tensor::scalar(0.0) };
    assert_refused(check(&made), &["experts.1.w1.weight_scale_2 is F32 [2]; it must be F32 [] or [1]"]);
}

#[test]
fn wrong_dtypes() {
    let cases = [
        ("weight", Dtype::I8, "I8 [32, 32]; it must be U8 [32, 32]"),
        ("weight_scale", Dtype::U8, "U8 [32, 4]; it must be F8_E4M3 [32, 4]"),
        ("weight_scale", Dtype::F8_E5M2, "F8_E5M2 [32, 4]; it must be F8_E4M3 [32, 4]"),
        ("weight_scale_2", Dtype::I32, "I32 []; it must be F32 [] or [1]"),
        ("input_scale", Dtype::U32, "U32 []; it must be F32 [] or [1]"),
    ];
    for (tensor, dtype, text) in cases {
        let mut made = Spec::default().made();
        made.tensor(1, UP, tensor).dtype = dtype;
        let name = made.spec.name(0, 1, UP, tensor);
        assert_refused(check(&made), &[&format!("{name} is {text}")]);
    }
}

#[test]
fn tensors_that_would_change_the_result_if_ignored() {
    let mut made = Spec::default().made();
    let name = made.spec.name(0, 1, UP, "weight_offset");
    made.tensors.insert(name.clone(), Tensor::scalar(1.0));
    assert_refused(check(&made), &[&format!("{name} is present; experts in format modelopt have no such tensor")]);
}

#[test]
fn what_goes_beyond_the_format_is_refused_for_what_it_is() {
    for (tensor, meaning) in [
        ("pre_quant_scale", "AWQ multiplies the activations' columns by it before they are quantised"),
        ("svdquant_lora_a", "SVDQuant adds a product of low rank to the matrix"),
        ("weight_zero_point", "codes have an offset"),
    ] {
        let mut made = Spec::default().made();
        let linear = "layers.0.attn.wq_b";
        for part in ["weight", "weight_scale", "weight_scale_2"] {
            let like = made.tensors[&made.spec.name(0, 0, UP, part)].clone();
            made.tensors.insert(format!("{linear}.{part}"), like);
        }
        for name in [made.spec.name(0, 1, UP, tensor), format!("{linear}.{tensor}")] {
            made.tensors.insert(name, Tensor::scalar(1.0));
        }
        let checkpoint = open(&made).unwrap();
        let error = checkpoint.layer(0).unwrap_err().to_string();
        let start = format!("{} is present; {meaning}", made.spec.name(0, 1, UP, tensor));
        assert!(error.starts_with(&start) && error.contains("NVFP4_DEFAULT_CFG"), "{error}");
        let refusals: Vec<_> = checkpoint.modules().iter().filter_map(|module| module.refusal.as_ref()).collect();
        assert!(refusals.len() == 2 && refusals.iter().all(|refusal| refusal.contains(meaning)), "{refusals:?}");
    }
}

#[test]
fn a_config_that_contradicts_the_weights() {
    for (key, value, text) in [
        (
            "hidden_size",
            128,
            "layers.0.ffn.experts.0.w1.weight is [32, 32], so hidden_size is 64; config.json says 128",
        ),
        ("moe_intermediate_size", 16, "so intermediate_size is 32; config.json says 16"),
        ("n_routed_experts", 2, "layers.0.ffn.experts is 3 experts; config.json says 2"),
        ("n_routed_experts", 4, "layers.0.ffn.experts.3.w1.weight is missing"),
    ] {
        let mut made = Spec::default().made();
        made.config[key] = value.into();
        assert_refused(check(&made), &[text]);
    }
}

#[test]
fn files_cut_anywhere() {
    let files = Spec { experts: 1, ..Spec::default() }.made().files();
    let whole = &files["model.safetensors"];
    for cut in 0..whole.len() {
        let mut files = files.clone();
        files.insert("model.safetensors".to_owned(), whole[..cut].to_vec());
        // A layer of one expert misses whatever is missing.
        let refused = Checkpoint::from_memory(files).and_then(|checkpoint| checkpoint.layer(0).map(|_| ()));
        assert!(matches!(refused, Err(Error::Checkpoint(_))), "{cut} of {}", whole.len());
    }
    let cut = |len: usize| {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), &files);
        std::fs::write(directory.path().join("model.safetensors"), &whole[..len]).unwrap();
        Checkpoint::open(directory.path())
    };
    assert_refused(cut(5), &["model.safetensors is 5 bytes; a safetensors file is at least 8 bytes"]);
    assert_refused(cut(100), &["model.safetensors is 100 bytes; its header ends at byte"]);
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let data = whole.len() - header;
    let text = format!("of the data of model.safetensors; the file has {} bytes of data", data - 600);
    let (checkpoint, name) = (cut(whole.len() - 600).unwrap(), "layers.0.ffn.experts.0.w");
    assert_refused(checkpoint.layer(0), &[name, ".weight is bytes ", &text]);
    let mut longer = files.clone();
    longer.get_mut("model.safetensors").unwrap().push(0);
    let (given, needed) = (whole.len() + 1, whole.len());
    let text = format!("model.safetensors is {given} bytes; its last tensor ends at byte {needed}");
    assert_refused(Checkpoint::from_memory(longer), &[&text]);
}

fn with_header(header: &str, data: usize) -> Result<Checkpoint> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.bytes());
    file.resize(file.len() + data, 0);
    let config = ("config.json".to_owned(), b"{}".to_vec());
    Checkpoint::from_memory(BTreeMap::from([config, ("model.safetensors".to_owned(), file)]))
}

#[test]
fn headers_that_lie() {
    let tensor = |name: &str, shape: &str, start: u64, end: u64| {
        format!(r#""{name}":{{"dtype":"U8","shape":{shape},"data_offsets":[{start},{end}]}}"#)
    };
    let two = |a: &str, b: &str| format!("{{{a},{b}}}");
    let a = tensor("a", "[4]", 0, 4);
    with_header(&two(&a, &tensor("b", "[2,2]", 4, 8)), 8).unwrap();
    let cases = [
        (
            format!("{{{}}}", tensor("b", "[12]", 0, 12)),
            "b is bytes 0 to 12 of the data of model.safetensors; the file has 8",
        ),
        (
            two(&a, &tensor("b", "[4]", 2, 6)),
            "b is at byte 2 of the data of model.safetensors; the tensor before it ends at 4",
        ),
        (
            two(&a, &tensor("b", "[2]", 6, 8)),
            "b is at byte 6 of the data of model.safetensors; the tensor before it ends at 4",
        ),
        (two(&a, &tensor("b", "[4]", 8, 4)), "b is bytes 8 to 4 of the data"),
        (two(&a, &tensor("b", "[5]", 4, 8)), "b is 4 bytes in model.safetensors; its dtype U8 and shape [5]"),
        (
            two(&a, &tensor("b", "[4294967296,4294967297]", 4, 8)),
            "b is 4 bytes in model.safetensors; its dtype U8 and shape [4294967296, 4294967297]",
        ),
        (
            two(&a, &tensor("b", "[4]", 4, u64::MAX)),
            "b is 18446744073709551611 bytes in model.safetensors; its dtype U8",
        ),
        (two(&a, &tensor("a", "[4]", 4, 8)), "a is twice in the header of model.safetensors; a tensor may occur once"),
        (format!("{{{a}}}"), "model.safetensors is 69 bytes; its last tensor ends at byte 65"),
        (two(&a, &tensor("b", "[-4]", 4, 8)), "header of model.safetensors is malformed"),
        (two(&a, &tensor("b", "[4]", 4, 8).replace("U8", r"\ud800")), "header of model.safetensors is malformed"),
        ("[]".to_owned(), "header of model.safetensors is malformed"),
        ("[".repeat(100_000), "header of model.safetensors is malformed"),
    ];
    for (header, text) in cases {
        assert_refused(with_header(&header, 8), &[text]);
    }
    let warnings = with_header(&two(&a, &tensor("b", "[8]", 4, 12)), 8).unwrap().survey().warnings;
    assert!(
        warnings[0].starts_with("model.safetensors is cut off; 1 of its tensors lie past its end (b)"),
        "{warnings:?}"
    );
    let mut claims_too_much = u64::MAX.to_le_bytes().to_vec();
    claims_too_much.resize(100, b'{');
    let files = BTreeMap::from([("model.safetensors".to_owned(), claims_too_much)]);
    assert_refused(Checkpoint::from_memory(files), &["18446744073709551615 bytes; it must be at most 100000000"]);
}

#[test]
fn indices_that_do_not_match_their_files() {
    let made = Spec { layers: 2, ..Spec::default() }.made();
    let (first, second) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");

    let mut partial = made.sharded();
    partial.remove(second);
    let checkpoint = Checkpoint::from_memory(partial).unwrap();
    checkpoint.layer(0).unwrap();
    let place = format!("index.json places it in {second}, which is not in the directory. Download {second}.");
    assert_refused(checkpoint.layer(1), &["layers.1.ffn.experts.0.w1.weight is missing", &place]);

    let mut swapped = made.sharded();
    swapped.insert(second.to_owned(), made.file(|name| name.contains("layers.1.") && !name.ends_with("1.w2.weight")));
    let text =
        format!("layers.1.ffn.experts.1.w2.weight is missing; model.safetensors.index.json places it in {second}");
    let checkpoint = Checkpoint::from_memory(swapped).unwrap();
    checkpoint.layer(0).unwrap();
    assert_refused(checkpoint.layer(1), &[&text, "which does not hold it"]);

    let mut twice = made.sharded();
    twice.insert(second.to_owned(), made.file(|_| true));
    let checkpoint = Checkpoint::from_memory(twice).unwrap();
    checkpoint.layer(1).unwrap();
    assert_refused(checkpoint.layer(0), &[&format!("is in {first} and in {second}; a tensor may occur once")]);

    for file in ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "model.bin"] {
        let mut files = made.sharded();
        let index = format!(r#"{{"weight_map": {{"a": "{file}"}}}}"#);
        files.insert("model.safetensors.index.json".to_owned(), index.into_bytes());
        assert_refused(
            Checkpoint::from_memory(files),
            &[&format!("file of a in model.safetensors.index.json is {file:?}")],
        );
    }
}

#[test]
fn two_models_in_one_directory() {
    let mut made = Spec::default().made();
    made.tensors.extend(Spec { deepseek_names: false, ..Spec::default() }.made().tensors);
    assert_refused(check(&made), &["layer 0 is layers.0.ffn and model.layers.0.mlp; one number names one layer"]);
}

#[test]
fn directories_that_are_none() {
    let io = |result: Result<Checkpoint>, text: &str| match result {
        Err(Error::Io(error)) => assert!(error.contains(text), "{error}"),
        other => panic!("{other:?}"),
    };
    let directory = tempfile::tempdir().unwrap();
    io(Checkpoint::open(&directory.path().join("none")), "it must be a readable directory");
    io(Checkpoint::open(directory.path()), "checkpoint is a directory without weights");
    let mut files = Spec::default().made().files();
    files.remove("config.json");
    write(directory.path(), &files);
    io(Checkpoint::open(directory.path()), "config.json is missing");
    std::fs::create_dir(directory.path().join("config.json")).unwrap();
    io(Checkpoint::open(directory.path()), "config.json is unreadable (it is not a regular file)");
}

#[test]
fn ranges_and_buffers_that_do_not_fit() {
    let made = Spec::default().made();
    let checkpoint = open(&made).unwrap();
    let layer = checkpoint.layer(0).unwrap();
    let mut copied = Copied::poisoned(&layer, 2);
    for first in [2, 3, usize::MAX] {
        let error = layer.read(first, copied.buffers()).unwrap_err().to_string();
        assert!(error.contains(&format!("{first} + 2; layers.0.ffn has 3 experts")), "{error}");
    }
    copied.w2.pop();
    let error = layer.read(0, copied.buffers()).unwrap_err().to_string();
    assert!(error.contains("w2: 2047") && error.contains("w2: 2048"), "{error}");
}
