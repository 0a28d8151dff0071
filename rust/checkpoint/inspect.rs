//! What a person should know about a checkpoint before running it: a table, and warnings to act on.

use super::{BlockScales, Checkpoint, Config, Dims, Format, InputScale, Layer, Module, warnings};
use crate::error::Result;
use serde::Serialize;

/// Rows that an RMS norm has scaled to 1 have an amax of 1 at the least, so a calibrated amax below it is suspect.
pub(super) const LEAST_NORMALISED_AMAX: f32 = 1.0;

/// The whole report; `Display` is the table, `Serialize` the JSON.
#[derive(Debug, Serialize)]
pub struct Report<'a> {
    /// Open safetensors files.
    pub num_files: usize,
    /// Their bytes.
    pub file_bytes: u64,
    /// What the config says.
    pub config: &'a Config,
    /// Readable NVFP4 layers.
    pub layers: Vec<LayerReport>,
    /// NVFP4 layers that break a rule.
    pub refused: Vec<RefusedLayer>,
    /// What is no NVFP4 layer, or could not be taken apart.
    pub skipped: &'a [SkippedLayer],
    /// Every linear, and the experts of every layer.
    pub modules: &'a [Module],
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
    /// What its experts compute.
    pub activation: String,
    /// Experts that a token is sent to, if the config says.
    pub top_k: Option<u64>,
    /// Of GEMM1.
    pub w13_input_scale: InputScale,
    /// Of GEMM2.
    pub w2_input_scale: InputScale,
    /// Experts whose gate and up have different global scales.
    pub gate_up_different: usize,
    /// The largest ratio between those two; 1 where they are the same.
    pub gate_up_ratio: f32,
    /// Was GEMM1's input scale calibrated on an amax that normalised rows always exceed?
    pub saturation_risk: bool,
    /// What only reading every block scale tells.
    #[serde(flatten)]
    pub blocks: Option<BlockScales>,
    /// Of the config: what was read otherwise than it was written.
    #[serde(skip)]
    pub notes: Vec<String>,
}

/// An NVFP4 layer that breaks a rule.
#[derive(Debug, Serialize)]
pub struct RefusedLayer {
    /// Its index in the model.
    pub layer: u32,
    /// Its name in the files, up to `.experts`.
    pub stem: String,
    /// The refusal.
    pub error: String,
}

/// Experts that are no NVFP4 layer, or tensors that look like NVFP4 and are not understood.
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
    pub fn inspect(&self, only: Option<u32>, progress: impl FnMut(u32)) -> Report<'_> {
        self.report(only, progress, |layer| layer.scan_block_scales(0..layer.dims.num_experts).map(Some))
    }

    /// The same report out of headers and single scales: no block scale is read, so it takes no time.
    pub fn survey(&self) -> Report<'_> {
        self.report(None, |_| {}, |_| Ok(None))
    }

    fn report(
        &self,
        only: Option<u32>,
        mut progress: impl FnMut(u32),
        blocks: impl Fn(&Layer<'_>) -> Result<Option<BlockScales>>,
    ) -> Report<'_> {
        let (num_files, file_bytes) = self.files.size();
        let (mut layers, mut refused) = (Vec::new(), Vec::new());
        for (number, stem, layer) in self.every_layer(only) {
            progress(number);
            match layer.and_then(|layer| LayerReport::new(number, &layer, &blocks)) {
                Ok(described) => layers.push(described),
                Err(error) => {
                    refused.push(RefusedLayer { layer: number, stem: stem.to_owned(), error: error.to_string() })
                }
            }
        }
        if let Some(layer) = only.filter(|only| !self.layers.contains_key(only)) {
            refused.push(RefusedLayer { layer, stem: String::new(), error: self.no_such_layer(layer).to_string() });
        }
        let warnings = warnings::of_report(&self.files, &self.config, &self.modules, &layers);
        let (config, skipped, modules) = (&self.config, &self.skipped[..], &self.modules[..]);
        Report { num_files, file_bytes, config, layers, refused, skipped, modules, warnings }
    }
}

impl LayerReport {
    fn new(number: u32, layer: &Layer<'_>, blocks: impl Fn(&Layer<'_>) -> Result<Option<BlockScales>>) -> Result<Self> {
        let activation = layer.activation()?.to_string();
        let ratio = |[gate, up, _]: &[f32; 3]| (gate / up).max(up / gate);
        let amax = layer.w13_input_scale.calibrated_amax();
        Ok(LayerReport {
            layer: number,
            stem: layer.stem().to_owned(),
            format: layer.format,
            dims: layer.dims,
            dtypes: "U8 + F8_E4M3 + F32",
            bytes: layer.dims.bytes(),
            activation,
            top_k: layer.facts.top_k,
            w13_input_scale: layer.w13_input_scale.clone(),
            w2_input_scale: layer.w2_input_scale.clone(),
            gate_up_different: layer.global_scales().iter().filter(|[gate, up, _]| gate != up).count(),
            gate_up_ratio: layer.global_scales().iter().map(ratio).fold(1.0, f32::max),
            saturation_risk: amax > 0.0 && amax < LEAST_NORMALISED_AMAX,
            blocks: blocks(layer)?,
            notes: layer.facts.notes.clone(),
        })
    }
}

impl Report<'_> {
    /// Is there a layer, and none refused?
    pub fn is_accepted(&self) -> bool {
        !self.layers.is_empty() && self.refused.is_empty()
    }

    /// As JSON, indented.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_else(|e| format!("{{\"error\": {:?}}}", e.to_string()))
    }
}
