//! What a person should know about a checkpoint before running it: a table, and warnings to act on.

use super::{Checkpoint, Config, Dims, Format, InputScale, Layer};
use crate::error::Result;
use serde::Serialize;

/// Rows that an RMS norm has scaled to 1 have an amax of 1 at the least, so a calibrated amax below it is suspect.
const LEAST_NORMALISED_AMAX: f32 = 1.0;

/// Names that one warning lists before it says "and N more".
const NAMES_SHOWN: usize = 3;

/// The whole report; `Display` is the table, `Serialize` the JSON.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Open safetensors files.
    pub num_files: usize,
    /// Their bytes.
    pub file_bytes: u64,
    /// What the config says.
    pub config: Config,
    /// Readable NVFP4 layers.
    pub layers: Vec<LayerReport>,
    /// NVFP4 layers that break a rule.
    pub refused: Vec<RefusedLayer>,
    /// Experts that are no NVFP4 layer.
    pub skipped: Vec<SkippedLayer>,
    /// Each names a value, a rule and a remedy.
    pub warnings: Vec<String>,
}

/// One readable layer.
#[derive(Debug, Serialize)]
pub struct LayerReport {
    /// Its index in the model.
    pub layer: u32,
    /// Its name in the files, up to `.experts`.
    pub stem: String,
    /// Naming and scale convention.
    pub format: Format,
    /// Sizes.
    #[serde(flatten)]
    pub dims: Dims,
    /// Dtypes of codes, block scales and global scales.
    pub dtypes: &'static str,
    /// Bytes of codes and scales.
    pub bytes: u64,
    /// Of GEMM1.
    pub w13_input_scale: InputScale,
    /// Of GEMM2.
    pub w2_input_scale: InputScale,
    /// Experts whose gate and up have different global scales.
    pub gate_up_different: usize,
    /// The largest ratio between those two; 1 where they are the same.
    pub gate_up_ratio: f32,
    /// Is every block scale a power of two, and equal for neighbouring blocks?
    pub lossless_cast: bool,
    /// Block scales at 448, of `num_blocks`.
    pub blocks_at_max: u64,
    /// All block scales.
    pub num_blocks: u64,
    /// Was GEMM1's input scale calibrated on an amax that normalised rows always exceed?
    pub saturation_risk: bool,
    /// Block-scale tensors that hold zeros alone.
    pub all_zero: Vec<String>,
}

/// An NVFP4 layer that breaks a rule.
#[derive(Debug, Serialize)]
pub struct RefusedLayer {
    /// Its index in the model.
    pub layer: u32,
    /// The refusal.
    pub error: String,
}

/// Experts that are no NVFP4 layer.
#[derive(Debug, Clone, Serialize)]
pub struct SkippedLayer {
    /// Their name in the files, up to `.experts`.
    pub stem: String,
    /// Their layer's index, if the name has one.
    pub layer: Option<u32>,
    /// Why.
    pub reason: String,
}

impl Checkpoint {
    /// Read and check every scale of all layers, or of one; `progress` hears each layer before it is read.
    pub fn inspect(&self, only: Option<u32>, mut progress: impl FnMut(u32)) -> Report {
        let (num_files, file_bytes) = self.files.size();
        let mut report = Report {
            num_files,
            file_bytes,
            config: self.config.clone(),
            layers: Vec::new(),
            refused: Vec::new(),
            skipped: self.skipped.clone(),
            warnings: Vec::new(),
        };
        let layers: Vec<_> = only.map_or_else(|| self.layers().collect(), |layer| vec![layer]);
        for layer in layers {
            progress(layer);
            match self.layer(layer).and_then(|view| LayerReport::new(layer, &view)) {
                Ok(described) => report.layers.push(described),
                Err(error) => report.refused.push(RefusedLayer { layer, error: error.to_string() }),
            }
        }
        self.warn_of_files(&mut report.warnings);
        self.warn_of_config(&report.layers, &mut report.warnings);
        for layer in &report.layers {
            warn_of_layer(layer, &mut report.warnings);
        }
        report
    }

    fn warn_of_files(&self, warnings: &mut Vec<String>) {
        for (file, tensors) in self.files.absent_files() {
            warnings.push(format!("{file} is missing; the index places {tensors} tensors in it. Download it."));
        }
        let others = self.files.names().map(|(name, _)| name).filter(|name| super::names::is_other_nvfp4(name));
        let others: Vec<_> = others.filter_map(|name| Some(name.rsplit_once('.')?.0)).collect();
        if !others.is_empty() {
            warnings.push(format!(
                "{} linears outside the routed experts are NVFP4 ({}); they need an NVFP4 linear, and attention is more \
                 easily hurt by wrong input scales. Serve them in mode bf16 if the output is poor.",
                others.len(),
                shorten(&others)
            ));
        }
    }

    fn warn_of_config(&self, layers: &[LayerReport], warnings: &mut Vec<String>) {
        let config = &self.config;
        if config.model_type.as_deref() == Some("deepseek_v4") && config.swiglu_limit.is_none() {
            warnings.push(
                "swiglu_limit is missing in config.json; deepseek_v4 clamps gate and up, and is wrong without. Copy \
                 the model's own config.json."
                    .to_owned(),
            );
        }
        if config.top_k.is_none() {
            warnings.push("num_experts_per_tok is missing in config.json; callers must know top_k. Add it.".to_owned());
        }
        if config.quant_method.is_none() && config.quant_algo.is_none() {
            warnings.push(
                "quantization_config is missing in config.json, and there is no hf_quant_config.json; an engine takes \
                 the weights for unquantised. Copy the config that was exported with them."
                    .to_owned(),
            );
        }
        let says_inverse = config.quant_method.as_deref() == Some("compressed-tensors");
        let differs = |layer: &&LayerReport| (layer.format == Format::CompressedTensors) != says_inverse;
        if let (Some(method), Some(layer)) = (&config.quant_method, layers.iter().find(differs)) {
            warnings.push(format!(
                "quant_method is {method:?} in config.json; the tensors of {} are named as {} does, and the names decide. \
                 Check that config and weights belong together.",
                layer.stem, layer.format
            ));
        }
    }
}

fn warn_of_layer(layer: &LayerReport, warnings: &mut Vec<String>) {
    let number = layer.layer;
    for (gemm, scale) in [("w13", &layer.w13_input_scale), ("w2", &layer.w2_input_scale)] {
        let faulty: Vec<_> = scale.missing.iter().map(|name| format!("{name} missing")).collect();
        let faulty = [scale.unusable.clone(), faulty].concat();
        if scale.num_usable == 0 {
            warnings.push(format!(
                "layer {number}: {gemm} has no usable input scale ({}); mode nvfp4 with static scales will refuse it. Use \
                 mode bf16, dynamic scales, or calibrate.",
                shorten(&faulty)
            ));
        } else if !faulty.is_empty() {
            warnings.push(format!(
                "layer {number}: {} of {} {gemm} input scales are unusable ({}); the maximum over the others, {:.3e}, \
                 stands for all. Calibrate with more tokens if outputs saturate.",
                faulty.len(),
                faulty.len() + scale.num_usable,
                shorten(&faulty),
                scale.max
            ));
        }
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
    if !layer.all_zero.is_empty() {
        warnings.push(format!(
            "layer {number}: {} block-scale tensors hold zeros alone ({}); such experts give 0. If that is not meant, \
             download the files again.",
            layer.all_zero.len(),
            shorten(&layer.all_zero)
        ));
    }
}

/// The first few names.
fn shorten(names: &[impl AsRef<str>]) -> String {
    let mut text = names.iter().take(NAMES_SHOWN).map(AsRef::as_ref).collect::<Vec<_>>().join(", ");
    if names.len() > NAMES_SHOWN {
        text += &format!(" and {} more", names.len() - NAMES_SHOWN);
    }
    text
}

impl LayerReport {
    fn new(number: u32, layer: &Layer<'_>) -> Result<Self> {
        let blocks = layer.scan_block_scales(0..layer.dims.num_experts)?;
        let ratio = |[gate, up, _]: &[f32; 3]| (gate / up).max(up / gate);
        let amax = layer.w13_input_scale.calibrated_amax();
        Ok(LayerReport {
            layer: number,
            stem: layer.stem().to_owned(),
            format: layer.format,
            dims: layer.dims,
            dtypes: "U8 + F8_E4M3 + F32",
            bytes: layer.dims.bytes(),
            w13_input_scale: layer.w13_input_scale.clone(),
            w2_input_scale: layer.w2_input_scale.clone(),
            gate_up_different: layer.global_scales().iter().filter(|[gate, up, _]| gate != up).count(),
            gate_up_ratio: layer.global_scales().iter().map(ratio).fold(1.0, f32::max),
            lossless_cast: blocks.lossless_cast,
            blocks_at_max: blocks.num_at_max,
            num_blocks: blocks.num_blocks,
            saturation_risk: amax > 0.0 && amax < LEAST_NORMALISED_AMAX,
            all_zero: blocks.all_zero,
        })
    }
}

impl Report {
    /// Is there a layer, and none refused?
    pub fn is_accepted(&self) -> bool {
        !self.layers.is_empty() && self.refused.is_empty()
    }

    /// As JSON, indented.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_else(|e| format!("{{\"error\": {:?}}}", e.to_string()))
    }
}
