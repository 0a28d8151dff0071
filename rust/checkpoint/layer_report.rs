// SPDX-License-Identifier: Apache-2.0
//! What a report says of one readable layer.

use super::text::as_printable;
use super::{BlockScales, Dims, Format, InputScale, Layer};
use crate::error::Result;
use serde::Serialize;

/// Rows that an RMS norm has scaled to 1 have an amax of 1 at the least, so a calibrated amax below it is suspect.
pub const LEAST_NORMALISED_AMAX: f32 = 1.0;

/// One readable layer.
#[derive(Debug, Serialize)]
pub struct LayerReport {
    /// Its index in the model.
    pub layer: u32,
    /// Its name in the files, up to `.experts`.
    #[serde(serialize_with = "as_printable")]
    pub stem: String,
    /// Naming and scale convention.
    pub format: Format,
    /// Sizes.
    #[serde(flatten)]
    pub dims: Dims,
    /// Dtypes of codes, block scales and global scales (MXFP4 has none).
    pub dtypes: &'static str,
    /// Bytes of codes and scales.
    pub bytes: u64,
    /// What its experts compute.
    pub activation: String,
    /// Have they biases?
    pub has_bias: bool,
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

impl LayerReport {
    /// Of a layer; `blocks` reads what only its block scales tell, or nothing.
    pub fn new(
        number: u32,
        layer: &Layer<'_>,
        blocks: impl Fn(&Layer<'_>) -> Result<Option<BlockScales>>,
    ) -> Result<Self> {
        let activation = layer.activation()?.to_string();
        let ratio = |[gate, up, _]: &[f32; 3]| (gate / up).max(up / gate);
        let is_mxfp4 = layer.format == Format::Mxfp4;
        let amax = layer.w13_input_scale.calibrated_amax();
        Ok(LayerReport {
            layer: number,
            stem: layer.stem().to_owned(),
            format: layer.format,
            dims: layer.dims,
            dtypes: if is_mxfp4 { "U8 + F8_E8M0" } else { "U8 + F8_E4M3 + F32" },
            bytes: if is_mxfp4 { layer.dims.bytes_mxfp4() } else { layer.dims.bytes() },
            activation,
            has_bias: layer.has_bias(),
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
