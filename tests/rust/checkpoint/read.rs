// SPDX-License-Identifier: Apache-2.0
//! Every format and naming, bit for bit.

use crate::made::{DOWN, GATE, Made, Spec, Tensor, UP, write};
use nvfp4_moe::checkpoint::{Checkpoint, Format, Layer, LayerBuffers};
use nvfp4_moe::config::Mode;
use nvfp4_moe::error::Result;
use nvfp4_moe::host::{HostLayer, LayerTensors, bf16};
use safetensors::tensor::Dtype;

/// A layer's buffers, filled with what no test writes.
#[derive(Debug, PartialEq)]
pub struct Copied {
    pub w13: Vec<u8>,
    pub w13_block_scale: Vec<u8>,
    pub w13_global_scale: Vec<f32>,
    pub w2: Vec<u8>,
    pub w2_block_scale: Vec<u8>,
    pub w2_global_scale: Vec<f32>,
    pub w13_bias: Vec<u8>,
    pub w2_bias: Vec<u8>,
}

impl Copied {
    pub fn poisoned(layer: &Layer<'_>, num_experts: usize) -> Self {
        let lens = layer.buffer_lens(num_experts);
        Copied {
            w13: vec![0xff; lens.w13],
            w13_block_scale: vec![0xff; lens.w13_block_scale],
            w13_global_scale: vec![-1.0; lens.w13_global_scale],
            w2: vec![0xff; lens.w2],
            w2_block_scale: vec![0xff; lens.w2_block_scale],
            w2_global_scale: vec![-1.0; lens.w2_global_scale],
            w13_bias: vec![0xff; lens.w13_bias],
            w2_bias: vec![0xff; lens.w2_bias],
        }
    }

    pub fn buffers(&mut self) -> LayerBuffers<'_> {
        LayerBuffers {
            w13: &mut self.w13,
            w13_block_scale: &mut self.w13_block_scale,
            w13_global_scale: &mut self.w13_global_scale,
            w2: &mut self.w2,
            w2_block_scale: &mut self.w2_block_scale,
            w2_global_scale: &mut self.w2_global_scale,
            w13_bias: &mut self.w13_bias,
            w2_bias: &mut self.w2_bias,
        }
    }

    /// What `made` holds for some experts.
    pub fn expected(made: &Made, layer: usize, experts: std::ops::Range<usize>) -> Self {
        let bytes = |projections: &[usize], tensor: &str| -> Vec<u8> {
            let of_expert = |e| projections.iter().flat_map(move |p| made.data(layer, e, *p, tensor).to_vec());
            experts.clone().flat_map(of_expert).collect()
        };
        let scales = |projections: &[usize]| -> Vec<f32> {
            let of_expert =
                |e| projections.iter().map(move |p| made.spec.stored(made.value(layer, e, *p, "weight_scale_2")));
            experts.clone().flat_map(of_expert).collect()
        };
        Copied {
            w13: bytes(&[GATE, UP], "weight"),
            w13_block_scale: bytes(&[GATE, UP], "weight_scale"),
            w13_global_scale: scales(&[GATE, UP]),
            w2: bytes(&[DOWN], "weight"),
            w2_block_scale: bytes(&[DOWN], "weight_scale"),
            w2_global_scale: scales(&[DOWN]),
            w13_bias: Vec::new(),
            w2_bias: Vec::new(),
        }
    }
}

pub fn open(made: &Made) -> Result<Checkpoint> {
    Checkpoint::from_memory(made.files())
}

pub fn assert_reads_back(checkpoint: &Checkpoint, made: &Made, layer: usize) {
    let view = checkpoint.layer(layer as u32).unwrap();
    let experts = made.spec.experts;
    for range in [0..experts, 0..1, 1..experts, experts - 1..experts, 1..1] {
        let mut copied = Copied::poisoned(&view, range.len());
        view.read(range.start, copied.buffers()).unwrap();
        assert_eq!(copied, Copied::expected(made, layer, range));
    }
}

fn all_specs() -> impl Iterator<Item = Spec> {
    [(true, false), (true, true), (false, false), (false, true)].into_iter().map(
        |(deepseek_names, compressed_tensors)| Spec {
            deepseek_names,
            compressed_tensors,
            layers: 2,
            ..Spec::default()
        },
    )
}

#[test]
fn every_format_under_both_namings_is_copied_bit_for_bit() {
    for spec in all_specs() {
        let made = spec.made();
        let checkpoint = open(&made).unwrap();
        assert_eq!(checkpoint.layers().collect::<Vec<_>>(), [0, 1]);
        let expected = if spec.compressed_tensors { Format::CompressedTensors } else { Format::Modelopt };
        assert_eq!(checkpoint.layer(1).unwrap().format, expected);
        for layer in 0..2 {
            assert_reads_back(&checkpoint, &made, layer);
        }
    }
}

#[test]
fn files_on_disk_read_like_files_in_memory_sharded_or_not() {
    for spec in all_specs() {
        let made = spec.made();
        let mut unindexed = made.sharded();
        unindexed.remove("model.safetensors.index.json");
        for files in [made.files(), made.sharded(), unindexed] {
            let directory = tempfile::tempdir().unwrap();
            write(directory.path(), &files);
            let checkpoint = Checkpoint::open(directory.path()).unwrap();
            for layer in 0..2 {
                assert_reads_back(&checkpoint, &made, layer);
            }
        }
    }
}

#[test]
fn model_safetensors_stands_alone_where_there_is_no_index() {
    let made = Spec::default().made();
    let mut files = made.files();
    files.insert("unquantized.safetensors".to_owned(), made.file(|_| true));
    assert_reads_back(&Checkpoint::from_memory(files).unwrap(), &made, 0);
}

#[test]
fn deepseek_v4_is_modelopts_tensors_under_an_fp8_config() {
    let mut made = Spec::default().made();
    made.config["quantization_config"] = serde_json::json!({"quant_method": "fp8", "moe_quant_algo": "NVFP4"});
    made.config["swiglu_limit"] = 10.0.into();
    made.config["routed_scaling_factor"] = 1.5.into();
    let checkpoint = open(&made).unwrap();
    assert_eq!(checkpoint.layer(0).unwrap().format, Format::DeepseekV4Mixed);
    assert_eq!((checkpoint.config.swiglu_limit, checkpoint.config.routed_scaling_factor), (Some(10.0), Some(1.5)));
    assert_reads_back(&checkpoint, &made, 0);
}

#[test]
fn gate_and_up_keep_their_own_global_scales_and_shape_1_is_a_scalar() {
    for spec in all_specs() {
        let mut made = spec.made();
        *made.tensor(1, UP, "weight_scale_2") = Tensor { shape: vec![1], ..Tensor::scalar(spec.stored(0.3)) };
        let checkpoint = open(&made).unwrap();
        assert_reads_back(&checkpoint, &made, 0);
        let [gate, up, _] = checkpoint.layer(0).unwrap().global_scales()[1];
        assert!((gate - 0.002).abs() < 1e-8 && (up - 0.3).abs() < 1e-6, "{gate} {up}");
    }
}

#[test]
fn input_scales_are_the_maximum_over_all_experts_in_decode_direction() {
    for spec in all_specs() {
        let made = spec.made();
        let checkpoint = open(&made).unwrap();
        let layer = checkpoint.layer(0).unwrap();
        let stored = |projection| spec.stored(made.value(0, spec.experts - 1, projection, "input_scale"));
        assert_eq!((layer.w13_input_scale.max, layer.w2_input_scale.max), (stored(UP), stored(DOWN)));
        assert_eq!((layer.w13_input_scale.num_usable, layer.w2_input_scale.num_usable), (6, 3));
    }
}

#[test]
fn experts_without_an_input_scale_take_the_maximum_of_the_others() {
    for compressed_tensors in [false, true] {
        let spec = Spec { compressed_tensors, ..Spec::default() };
        for bad in [0.0, f32::NAN, f32::INFINITY, -1.0] {
            let mut made = spec.made();
            *made.tensor(2, UP, "input_scale") = Tensor::scalar(bad);
            let gone = spec.name(0, 2, GATE, "input_scale");
            made.tensors.remove(&gone);
            let checkpoint = open(&made).unwrap();
            let scale = checkpoint.layer(0).unwrap().w13_input_scale.clone();
            assert_eq!(scale.max, spec.stored(made.value(0, 1, UP, "input_scale")));
            assert_eq!((scale.num_usable, scale.missing), (4, vec![gone]));
            assert_eq!(scale.unusable, [format!("{} = {bad}", spec.name(0, 2, UP, "input_scale"))]);
        }
    }
}

#[test]
fn without_any_usable_input_scale_it_is_absent() {
    let mut made = Spec::default().made();
    made.tensors.retain(|name, _| !name.ends_with("w2.input_scale"));
    for (name, tensor) in &mut made.tensors {
        if name.ends_with("input_scale") {
            *tensor = Tensor::scalar(f32::NAN);
        }
    }
    let checkpoint = open(&made).unwrap();
    let layer = checkpoint.layer(0).unwrap();
    assert_eq!((layer.w13_input_scale.max, layer.w2_input_scale.max), (0.0, 0.0));
    assert_eq!((layer.w13_input_scale.unusable.len(), layer.w2_input_scale.missing.len()), (6, 3));
}

#[test]
fn lossless_casts_are_told_from_all_others() {
    let lossless = |made: &Made| {
        let checkpoint = open(made).unwrap();
        let layer = checkpoint.layer(0).unwrap();
        layer.scan_block_scales(0..made.spec.experts).unwrap().lossless_cast
    };
    let spec = Spec { lossless_cast: true, ..Spec::default() };
    assert!(lossless(&spec.made()));
    assert!(!lossless(&Spec::default().made()));
    let mut no_power = spec.made();
    no_power.tensor(2, DOWN, "weight_scale").data[..2].fill(0x39);
    assert!(!lossless(&no_power));
    let mut unequal = spec.made();
    unequal.tensor(1, UP, "weight_scale").data[6] ^= 0x08;
    assert!(!lossless(&unequal));
    let mut zero = spec.made();
    zero.tensor(1, UP, "weight_scale").data[..2].fill(0);
    assert!(!lossless(&zero));
    // 80 / 16 = 5 blocks in a row cannot have been blocks of 32.
    let mut odd = Spec { hidden: 80, ..spec }.made();
    odd.tensors.values_mut().filter(|t| t.dtype == Dtype::F8_E4M3).for_each(|t| t.data.fill(0x38));
    assert!(!lossless(&odd));
}

#[test]
fn layers_that_are_not_nvfp4_are_skipped_with_the_reason() {
    let mut made = Spec { layers: 2, ..Spec::default() }.made();
    for expert in 0..3 {
        for projection in ["w1", "w2", "w3"] {
            let mut put = |stem: &str, suffix: &str, dtype, shape: [usize; 2]| {
                let data = vec![0x70; shape[0] * shape[1]];
                let name = format!("{stem}.experts.{expert}.{projection}.{suffix}");
                made.tensors.insert(name, Tensor { dtype, shape: shape.into(), data })
            };
            for stem in ["mtp.0.ffn", "layers.2.ffn"] {
                put(stem, "weight", Dtype::F8_E4M3, [32, 64]);
                put(stem, "scale", Dtype::F8_E8M0, [1, 1]);
            }
        }
    }
    let checkpoint = open(&made).unwrap();
    assert_eq!(checkpoint.layers().collect::<Vec<_>>(), [0, 1]);
    let stems: Vec<_> = checkpoint.skipped().iter().map(|s| (s.stem.as_str(), s.layer)).collect();
    assert_eq!(stems, [("layers.2.ffn", Some(2)), ("mtp.0.ffn", None)]);
    for skipped in checkpoint.skipped() {
        assert!(skipped.reason.contains("scale F8_E8M0, weight F8_E4M3, as FP8 does"), "{}", skipped.reason);
    }
    assert_reads_back(&checkpoint, &made, 1);
    let error = checkpoint.layer(2).unwrap_err().to_string();
    assert!(error.contains("layer 2 (layers.2.ffn) is no NVFP4 or MXFP4 MoE layer that can be read"), "{error}");
    let error = checkpoint.layer(7).unwrap_err().to_string();
    assert!(error.starts_with("layer is 7; the checkpoint has 2 FP4 MoE layers, 0 to 1."), "{error}");
}

#[test]
fn a_host_layer_has_the_checkpoints_weights_and_activation() {
    let made = Spec::default().made();
    let checkpoint = open(&made).unwrap();
    let view = checkpoint.layer(0).unwrap();
    let layer = HostLayer::from_checkpoint(&view, Mode::Bf16, 2).unwrap();
    let said = view.activation().unwrap();
    assert_eq!((layer.config().hidden_size, layer.config().num_experts, layer.config().top_k), (64, 3, 2));
    assert_eq!(layer.config().activation.limit, if said.limit == 0.0 { f32::INFINITY } else { said.limit });

    let tensors = LayerTensors::read(&view, layer.config().shape(), 0).unwrap();
    let wanted = Copied::expected(&made, 0, 0..3);
    assert_eq!((&tensors.w13, &tensors.w2), (&wanted.w13, &wanted.w2));
    assert_eq!((&tensors.w13_block_scale, &tensors.w2_block_scale), (&wanted.w13_block_scale, &wanted.w2_block_scale));
    assert_eq!(
        (&tensors.w13_global_scale, &tensors.w2_global_scale),
        (&wanted.w13_global_scale, &wanted.w2_global_scale)
    );
    let own = HostLayer::new(layer.config().clone(), tensors).unwrap();
    let (x, mut outs) = ([bf16::ONE; 64], [[bf16::NAN; 64]; 2]);
    for (layer, out) in [layer, own].iter().zip(&mut outs) {
        layer.forward(&x, &[0, 2], None, out).unwrap();
    }
    assert_eq!(outs[0].map(bf16::to_bits), outs[1].map(bf16::to_bits));
    assert!(outs[0].iter().any(|value| value.to_f32() != 0.0));
}
