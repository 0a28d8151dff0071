// SPDX-License-Identifier: Apache-2.0
//! MXFP4 under each naming is read as NVFP4 of the same values, and what cannot be is refused by name.

use crate::made::{DOWN, GATE, Made, Spec, Tensor, UP, noise};
use crate::namings::in_turn;
use crate::read::{Copied, open};
use nvfp4_moe::checkpoint::Format;
use nvfp4_moe::format::cast_mxfp4;
use safetensors::tensor::Dtype;

/// (names of codes and scales, their types, what the config says, are its experts called w1, w3, w2?)
const DEEPSEEK: Naming = Naming(["weight", "scale"], [Dtype::I8, Dtype::F8_E8M0], ("quant_method", "fp8"), true);
const COMPRESSED: Naming =
    Naming(["weight_packed", "weight_scale"], [Dtype::U8, Dtype::U8], ("format", "mxfp4-pack-quantized"), false);
const MODELOPT: Naming = Naming(["weight", "weight_scale"], [Dtype::U8, Dtype::U8], ("quant_algo", "MXFP4"), false);

#[derive(Clone, Copy)]
struct Naming([&'static str; 2], [Dtype; 2], (&'static str, &'static str), bool);

impl Naming {
    fn made(self) -> Made {
        let Naming(names, dtypes, (key, value), deepseek_names) = self;
        let spec = Spec { deepseek_names, ..Spec::default() };
        let mut made = Made { tensors: Default::default(), ..spec.made() };
        for (expert, projection) in (0..spec.experts).flat_map(|e| [GATE, UP, DOWN].map(|p| (e, p))) {
            let (rows, cols) =
                if projection == DOWN { (spec.hidden, spec.intermediate) } else { (spec.intermediate, spec.hidden) };
            let seed = (expert * 3 + projection) as u64;
            let scales = noise(seed + 99, rows * cols / 32).into_iter().map(|byte| 90 + expert as u8 * 60 + byte % 18);
            let shapes = [vec![rows, cols / 2], vec![rows, cols / 32]];
            let data = [noise(seed, rows * cols / 2), scales.collect()];
            for (i, (shape, data)) in shapes.into_iter().zip(data).enumerate() {
                made.tensors
                    .insert(spec.name(0, expert, projection, names[i]), Tensor { dtype: dtypes[i], shape, data });
            }
        }
        made.config["quantization_config"] = serde_json::json!({key: value});
        made
    }

    fn tensor(self, made: &mut Made, expert: usize, projection: usize, at: usize) -> &mut Tensor {
        made.tensor(expert, projection, self.0[at])
    }

    /// (codes, block scales, global scale) of a matrix, by the law.
    fn cast(self, made: &Made, expert: usize, projection: usize) -> (Vec<u8>, Vec<u8>, f32) {
        let [codes, scales] = self.0.map(|name| made.data(0, expert, projection, name));
        let mut block_scales = vec![0; 2 * scales.len()];
        let global = cast_mxfp4(&"", codes, scales, &mut block_scales).unwrap();
        (codes.to_vec(), block_scales, global)
    }
}

#[test]
fn every_naming_is_cast_by_the_law() {
    for naming in [DEEPSEEK, COMPRESSED, MODELOPT] {
        let made = naming.made();
        let checkpoint = open(&made).unwrap();
        let layer = checkpoint.layer(0).unwrap();
        assert_eq!(layer.format, Format::Mxfp4);
        let mut copied = Copied::poisoned(&layer, 2);
        layer.read(1, copied.buffers()).unwrap();
        for expert in [1, 2] {
            let (codes, scales) = (copied.w13.len() / 4, copied.w13_block_scale.len() / 4);
            for projection in [GATE, UP] {
                let at = 2 * (expert - 1) + projection;
                let read = (
                    copied.w13[at * codes..][..codes].to_vec(),
                    copied.w13_block_scale[at * scales..][..scales].to_vec(),
                    copied.w13_global_scale[at],
                );
                assert_eq!(read, naming.cast(&made, expert, projection));
            }
            let (codes, scales) = (copied.w2.len() / 2, copied.w2_block_scale.len() / 2);
            let read = (
                copied.w2[(expert - 1) * codes..][..codes].to_vec(),
                copied.w2_block_scale[(expert - 1) * scales..][..scales].to_vec(),
                copied.w2_global_scale[expert - 1],
            );
            assert_eq!(read, naming.cast(&made, expert, DOWN));
        }
    }
}

#[test]
fn experts_without_a_gate_keep_ups_factor() {
    let mut made = MODELOPT.made();
    made.tensors.retain(|name, _| !name.contains(".gate_proj."));
    made.config["mlp_hidden_act"] = "relu2".into();
    let checkpoint = open(&made).unwrap();
    let layer = checkpoint.layer(0).unwrap();
    let mut copied = Copied::poisoned(&layer, 1);
    layer.read(1, copied.buffers()).unwrap();
    let (w13, w13_block_scale, up) = MODELOPT.cast(&made, 1, UP);
    assert_eq!((copied.w13, copied.w13_block_scale, copied.w13_global_scale), (w13, w13_block_scale, vec![up]));
    assert_eq!(copied.w2_global_scale, [MODELOPT.cast(&made, 1, DOWN).2]);
}

#[test]
fn the_report_names_it_and_asks_for_no_input_scales() {
    let checkpoint = open(&DEEPSEEK.made()).unwrap();
    let report = checkpoint.inspect(None, |_| {});
    assert!(report.is_accepted());
    let text = report.to_string();
    assert!(text.contains("MXFP4") && text.contains("U8 + F8_E8M0"), "{text}");
    assert_eq!(text.matches("input scale").count(), 3, "two headings and one warning: {text}");
    assert!(text.contains("MXFP4, which has no input scales; mode nvfp4 needs them."), "{text}");
    assert!(report.layers[0].blocks.as_ref().unwrap().lossless_cast);
    assert_eq!(checkpoint.modules()[0].format, "mxfp4");
    assert_eq!(checkpoint.modules()[0].num_matrices, 9);
}

#[test]
fn scales_that_do_not_fit_are_refused_unless_their_codes_are_zero() {
    let mut made = DEEPSEEK.made();
    DEEPSEEK.tensor(&mut made, 1, UP, 1).data[3] = 1;
    let refusal = |made: &Made| {
        let checkpoint = open(made).unwrap();
        let layer = checkpoint.layer(0).unwrap();
        let mut copied = Copied::poisoned(&layer, 3);
        let error = layer.read(0, copied.buffers()).unwrap_err();
        assert_eq!(copied, Copied::poisoned(&layer, 3), "nothing is written");
        assert_eq!(layer.scan_block_scales(0..3).unwrap_err(), error);
        error.to_string()
    };
    let error = refusal(&made);
    assert!(error.starts_with("layers.0.ffn.experts.1.w3.scale is 2^-126 to 2^"), "{error}");
    assert!(error.contains("a factor of 2^17"), "{error}");

    DEEPSEEK.tensor(&mut made, 1, UP, 0).data[3 * 16..4 * 16].fill(0x80);
    let checkpoint = open(&made).unwrap();
    let layer = checkpoint.layer(0).unwrap();
    let mut copied = Copied::poisoned(&layer, 1);
    layer.read(1, copied.buffers()).unwrap();
    assert_eq!(copied.w13_global_scale[1], DEEPSEEK.cast(&made, 1, UP).2);

    DEEPSEEK.tensor(&mut made, 1, UP, 1).data[3] = 0xff;
    let error = refusal(&made);
    assert!(error.starts_with("layers.0.ffn.experts.1.w3.scale[3] is NaN (byte 0xff)"), "{error}");
}

#[test]
fn what_is_not_known_to_be_mxfp4_is_named() {
    let mut made = MODELOPT.made();
    made.config["quantization_config"] = serde_json::json!({"quant_method": "modelopt"});
    let reason = |made: &Made| open(made).unwrap().skipped()[0].reason.clone();
    assert!(reason(&made).contains("weight U8, weight_scale U8"), "bytes may be anything: {}", reason(&made));

    let mut made = DEEPSEEK.made();
    DEEPSEEK.tensor(&mut made, 0, GATE, 1).shape = vec![16, 4];
    let error = open(&made).unwrap().layer(0).unwrap_err().to_string();
    assert!(error.contains("w1.scale is F8_E8M0 [16, 4]; it must be F8_E8M0 [32, 2] (rows, columns / 32)"), "{error}");
}

/// The same matrices as gpt-oss has them: stacked, gate and up in turn, codes `[E, rows, columns / 32, 16]`.
fn as_gpt_oss(made: &Made) -> Made {
    let (experts, hidden, inter) = (made.spec.experts, made.spec.hidden, made.spec.intermediate);
    let mut other = Made { tensors: Default::default(), ..made.clone() };
    other.config["model_type"] = "gpt_oss".into();
    for (at, name, block) in [(0, "blocks", vec![16]), (1, "scales", vec![])] {
        let data = |e: usize, p: usize| made.data(0, e, p, MODELOPT.0[at]).to_vec();
        let gate_up = (0..experts).flat_map(|e| [data(e, GATE), data(e, UP)].concat()).collect::<Vec<u8>>();
        let down = (0..experts).flat_map(|e| data(e, DOWN)).collect();
        let tensor = |rows, cols, data| Tensor {
            dtype: Dtype::U8,
            shape: [&[experts, rows, cols / 32], &block[..]].concat(),
            data,
        };
        let mut gate_up = tensor(2 * inter, hidden, gate_up);
        in_turn(&mut gate_up, experts, [hidden / 2, hidden / 32][at]);
        for (matrix, tensor) in [("gate_up_proj", gate_up), ("down_proj", tensor(hidden, inter, down))] {
            other.tensors.insert(format!("model.layers.0.mlp.experts.{matrix}_{name}"), tensor);
        }
    }
    for (matrix, rows) in [("gate_up_proj", 2 * inter), ("down_proj", hidden)] {
        let bias =
            Tensor { dtype: Dtype::BF16, shape: vec![experts, rows], data: noise(rows as u64, 2 * experts * rows) };
        other.tensors.insert(format!("model.layers.0.mlp.experts.{matrix}_bias"), bias);
    }
    other
}

#[test]
fn gpt_oss_is_read_as_the_same_matrices_elsewhere() {
    let plain = MODELOPT.made();
    let made = as_gpt_oss(&plain);
    let read = |made: &Made| {
        let checkpoint = open(made).unwrap();
        let layer = checkpoint.layer(0).unwrap();
        assert_eq!(layer.format, Format::Mxfp4);
        let mut copied = Copied::poisoned(&layer, 2);
        layer.read(1, copied.buffers()).unwrap();
        copied
    };
    let (mut copied, expected) = (read(&made), read(&plain));
    let bias = |matrix: &str| &made.tensors[&format!("model.layers.0.mlp.experts.{matrix}_bias")].data;
    assert!(copied.w2_bias == bias("down_proj")[2 * made.spec.hidden..]);
    assert_eq!(copied.w13_bias[..2], bias("gate_up_proj")[4 * made.spec.intermediate..][..2]);
    (copied.w13_bias, copied.w2_bias) = (Vec::new(), Vec::new());
    assert_eq!(copied, expected);

    let checkpoint = open(&made).unwrap();
    let text = checkpoint.inspect(None, |_| {}).to_string();
    assert!(text.contains("swiglu alpha 1.702 beta 1, clamp 7, biases"), "{text}");
    assert!(checkpoint.modules()[0].refusal.is_none() && checkpoint.modules()[0].format == "mxfp4");
}

#[test]
fn gpt_oss_needs_no_config_that_says_mxfp4_and_blocks_of_16_bytes() {
    let mut made = as_gpt_oss(&MODELOPT.made());
    made.config["quantization_config"] = serde_json::Value::Null;
    assert!(open(&made).unwrap().layer(0).is_ok(), "the names are its alone");
    let blocks = made.tensors.get_mut("model.layers.0.mlp.experts.gate_up_proj_blocks").unwrap();
    blocks.shape = [&blocks.shape[..2], &[blocks.shape[2] * 2, 8][..]].concat();
    let skipped = format!("{:?}", open(&made).unwrap().skipped());
    assert!(skipped.contains("extents (experts, rows, columns / 32, 16)"), "{skipped}");
}
