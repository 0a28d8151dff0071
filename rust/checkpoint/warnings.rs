// SPDX-License-Identifier: Apache-2.0
//! What to act on, in sentences: each names a value, a rule and a remedy.

use super::files::Files;
use super::layer_report::LEAST_NORMALISED_AMAX;
use super::modules::NVFP4;
use super::text::{printable, shorten};
use super::{Config, Format, InputScale, LayerReport, Module};

/// All warnings of a report.
pub fn of_report(files: &Files, config: &Config, modules: &[Module], layers: &[LayerReport]) -> Vec<String> {
    let mut warnings = files.warnings();
    warnings.extend(of_linears(modules));
    warnings.extend(of_config(config, layers));
    warnings.extend(layers.iter().flat_map(of_layer));
    warnings
}

fn of_linears(modules: &[Module]) -> Option<String> {
    let nvfp4 = |module: &&Module| module.kind == "linear" && module.format == NVFP4;
    let names: Vec<_> = modules.iter().filter(nvfp4).map(|module| module.name.as_str()).collect();
    (!names.is_empty()).then(|| {
        format!(
            "{} linears outside the routed experts are NVFP4 ({}); they need an NVFP4 linear, and attention is more easily \
             hurt by wrong input scales. Serve them in mode bf16 if the output is poor.",
            names.len(),
            shorten(&names)
        )
    })
}

fn of_config(config: &Config, layers: &[LayerReport]) -> Vec<String> {
    let mut warnings: Vec<_> = config.unread.iter().cloned().collect();
    let mut notes: Vec<_> = layers.iter().flat_map(|layer| &layer.notes).collect();
    notes.sort();
    notes.dedup();
    warnings.extend(notes.into_iter().cloned());
    if config.model_type.as_deref() == Some("deepseek_v4") && config.swiglu_limit.is_none() {
        warnings.push(
            "swiglu_limit is missing in config.json; deepseek_v4 clamps gate and up, and is wrong without. Copy the model's \
             own config.json."
                .to_owned(),
        );
    }
    if config.model_type_of(&["llama4"]).is_some() {
        warnings.push(
            "model_type in config.json is llama4, which multiplies a token by its router weight before the expert; a layer \
             multiplies after it. Scale tokens yourself, and pass no topk_weights."
                .to_owned(),
        );
    }
    if layers.iter().any(|layer| layer.top_k.is_none()) {
        warnings.push(
            "num_experts_per_tok is missing in config.json; callers must know top_k. Add it, or pass top_k.".to_owned(),
        );
    }
    if config.quant_method.is_none() && config.quant_algo.is_none() {
        warnings.push(
            "quantization_config is missing in config.json, and there is no hf_quant_config.json; an engine takes the \
             weights for unquantised. Copy the config that was exported with them."
                .to_owned(),
        );
    }
    if layers.iter().any(|layer| layer.format == Format::Mxfp4) {
        warnings.push(
            "the experts are MXFP4, which has no input scales; mode nvfp4 needs them. Use mode bf16, mode fp8, dynamic scales, \
             or calibrate."
                .to_owned(),
        );
    }
    let says_inverse = config.quant_method.as_deref() == Some("compressed-tensors");
    let differs = |layer: &&LayerReport| {
        layer.format != Format::Mxfp4 && (layer.format == Format::CompressedTensors) != says_inverse
    };
    if let (Some(method), Some(layer)) = (&config.quant_method, layers.iter().find(differs)) {
        warnings.push(format!(
            "quant_method is {:?} in config.json; the tensors of {} are named as {} does, and the names decide. Check that \
             config and weights belong together.",
            printable(method),
            printable(&layer.stem),
            layer.format
        ));
    }
    warnings
}

fn of_layer(layer: &LayerReport) -> Vec<String> {
    let number = layer.layer;
    let mut warnings = Vec::new();
    if layer.format == Format::Mxfp4 {
        return warnings; // it has no scales but those that casting checks
    }
    for (gemm, scale) in [("w13", &layer.w13_input_scale), ("w2", &layer.w2_input_scale)] {
        warnings.extend(of_input_scale(number, gemm, scale));
    }
    if layer.gate_up_different > 0 {
        warnings.push(format!(
            "layer {number}: gate and up of {} of {} experts have different global scales, up to {:.3} times; kernels that \
             take one for both are wrong here. Nothing to do: this library keeps both.",
            layer.gate_up_different, layer.dims.num_experts, layer.gate_up_ratio
        ));
    }
    if layer.saturation_risk {
        warnings.push(format!(
            "layer {number}: the calibrated amax of GEMM1's input is {:.3}; normalised rows have at least {LEAST_NORMALISED_AMAX}. \
             In mode nvfp4 use dynamic scales, or calibrate.",
            layer.w13_input_scale.calibrated_amax()
        ));
    }
    if let Some(blocks) = layer.blocks.as_ref().filter(|blocks| !blocks.all_zero.is_empty()) {
        warnings.push(format!(
            "layer {number}: {} block-scale tensors hold zeros alone ({}); such experts give 0. If that is not meant, \
             download the files again.",
            blocks.all_zero.len(),
            shorten(&blocks.all_zero)
        ));
    }
    warnings
}

fn of_input_scale(number: u32, gemm: &str, scale: &InputScale) -> Vec<String> {
    let mut warnings = Vec::new();
    if !scale.left_out.is_empty() {
        warnings.push(format!(
            "layer {number}: {} {gemm} input scales were never measured ({}); they are left out of the maximum, {:.3e}. \
             Calibrate if outputs saturate.",
            scale.left_out.len(),
            shorten(&scale.left_out),
            scale.max
        ));
    }
    let missing = scale.missing.iter().map(|name| format!("{name} missing"));
    let faulty: Vec<_> = scale.unusable.iter().cloned().chain(missing).collect();
    if scale.num_usable == 0 {
        let why = if faulty.is_empty() { "none was measured".to_owned() } else { shorten(&faulty) };
        warnings.push(format!(
            "layer {number}: {gemm} has no usable input scale ({why}); mode nvfp4 with static scales will refuse it. Use mode \
             bf16, dynamic scales, or calibrate."
        ));
    } else if !faulty.is_empty() {
        warnings.push(format!(
            "layer {number}: {} of {} {gemm} input scales are unusable ({}); the maximum over the others, {:.3e}, stands for \
             all. Calibrate with more tokens if outputs saturate.",
            faulty.len(),
            faulty.len() + scale.num_usable + scale.left_out.len(),
            shorten(&faulty),
            scale.max
        ));
    }
    warnings
}
