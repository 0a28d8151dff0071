// SPDX-License-Identifier: Apache-2.0
//! The table of namings: how exporters call things. Another exporter is another row here, and nothing else.
//!
//! A routed expert's tensor is called `STEM.FORM.TENSOR`, for example
//! `model.layers.3.mlp` `.experts.17.gate_proj` `.weight_scale`. Three tables say what may stand there: [`FORMS`] how
//! number and projection follow each other, [`PROJECTIONS`] what gate, up and down are called, [`FORMATS`] what the four
//! tensors of a matrix are called and which way their scales go.

use super::config::Config;
use super::dtype::Dtype;
use crate::format::{BLOCK_SIZE, MX_BLOCK_SIZE};
use serde::Serialize;
use std::fmt;

/// Naming and scale convention of a layer's tensors; the number is that of the C ABI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// NVIDIA ModelOpt; both second-level scales decode.
    Modelopt = 1,
    /// compressed-tensors `nvfp4-pack-quantized`; both second-level scales ENCODE.
    CompressedTensors = 2,
    /// ModelOpt's tensors in a model whose config says FP8, with NVFP4 for the experts alone.
    DeepseekV4Mixed = 3,
    /// MXFP4 under any naming: one e8m0 scale for 32 codes, and no scale beside.
    Mxfp4 = 4,
}

/// A row of [`FORMATS`]: the tensors of one matrix.
#[derive(Debug)]
pub struct Tensors {
    /// Which format it is.
    pub format: Format,
    /// As people call it.
    pub name: &'static str,
    /// Which configs it goes with, where the tensors alone do not tell.
    pub of_config: fn(&Config) -> bool,
    /// e2m1 codes.
    pub codes: &'static str,
    /// e4m3 block scales, e8m0 in MXFP4.
    pub block_scale: &'static str,
    /// f32 scale of the weight; empty in MXFP4, which has none.
    pub global_scale: &'static str,
    /// f32 scale of the activations; empty in MXFP4.
    pub input_scale: &'static str,
    /// Are both f32 scales the inverse of what decodes?
    pub inverse: bool,
    /// Have codes an extent for the bytes of a block: `[rows, columns / 32, 16]`? The bytes lie as they do elsewhere.
    pub in_blocks: bool,
}

/// Bytes of a block of MXFP4 codes.
const MX_BLOCK_BYTES: u64 = (MX_BLOCK_SIZE / 2) as u64;

/// What a matrix adds to its products, in every format: bf16, one for each row.
pub const BIAS: &str = "bias";

/// Formats; the first whose tensors and config fit counts.
pub const FORMATS: [Tensors; 3] = [
    Tensors {
        format: Format::CompressedTensors,
        name: "compressed-tensors",
        of_config: |_| true,
        codes: "weight_packed",
        block_scale: "weight_scale",
        global_scale: "weight_global_scale",
        input_scale: "input_global_scale",
        inverse: true,
        in_blocks: false,
    },
    Tensors {
        format: Format::DeepseekV4Mixed,
        name: "deepseek-v4-mixed",
        of_config: Config::is_fp8_with_nvfp4_experts,
        codes: "weight",
        block_scale: "weight_scale",
        global_scale: "weight_scale_2",
        input_scale: "input_scale",
        inverse: false,
        in_blocks: false,
    },
    Tensors {
        format: Format::Modelopt,
        name: "modelopt",
        of_config: |_| true,
        codes: "weight",
        block_scale: "weight_scale",
        global_scale: "weight_scale_2",
        input_scale: "input_scale",
        inverse: false,
        in_blocks: false,
    },
];

/// Namings of MXFP4, for experts that have none of NVFP4's tensors.
pub const MXFP4_FORMATS: [Tensors; 4] = [
    mxfp4("weight", "scale"),               // DeepSeek-V4 as its authors publish it
    mxfp4("weight_packed", "weight_scale"), // compressed-tensors mxfp4-pack-quantized
    mxfp4("weight", "weight_scale"),        // ModelOpt
    Tensors { in_blocks: true, ..mxfp4("blocks", "scales") }, // gpt-oss
];

const fn mxfp4(codes: &'static str, block_scale: &'static str) -> Tensors {
    Tensors {
        format: Format::Mxfp4,
        name: "MXFP4",
        of_config: |_| true,
        codes,
        block_scale,
        global_scale: "",
        input_scale: "",
        inverse: false,
        in_blocks: false,
    }
}

/// What gate, up and down are called. Where gate and up have one name, their rows lie in one matrix, gate's first.
pub const PROJECTIONS: [[&str; 3]; 3] = [
    ["w1", "w3", "w2"],                            // DeepSeek, Mixtral, MiniMax
    ["gate_proj", "up_proj", "down_proj"],         // Hugging Face
    ["gate_up_proj", "gate_up_proj", "down_proj"], // Llama 4, Qwen3-VL, Hunyuan
];

/// What up and down are called where there is no gate.
pub const WITHOUT_GATE: [[&str; 2]; 2] = [["up_proj", "down_proj"], ["w1", "w2"]]; // Nemotron-H

/// How an expert's number E and its projection P follow each other; without E a tensor holds all experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Form {
    /// `experts.E.P`
    ExpertFirst,
    /// `experts.P.E`
    ProjectionFirst,
    /// `experts.P`
    Stacked,
    /// `moe.P`
    StackedInBlock,
}

/// Forms, with their spelling.
pub const FORMS: [(Form, &str); 4] = [
    (Form::ExpertFirst, "experts.E.P"),     // most
    (Form::ProjectionFirst, "experts.P.E"), // ModelOpt's Qwen3-VL
    (Form::Stacked, "experts.P"),           // Llama 4, Qwen3.5
    (Form::StackedInBlock, "moe.P"),        // Step
];

/// How a matrix outside the experts is quantised, by the tensors beside it; the first that are all there count.
pub const OTHER_QUANTISATIONS: [(&str, &[&str]); 5] = [
    ("fp8 or mxfp4", &["weight", "scale"]),
    ("fp8 or mxfp4", &["weight", "weight_scale_inv"]),
    ("other quantisation", &["weight", "weight_scale"]),
    ("other quantisation", &["weight_packed", "weight_scale"]),
    (UNQUANTISED, &["weight"]),
];

/// Ends of the names of tensors that change what a matrix computes in a way that this library has no kernel for, and how.
const BEYOND_FORMAT: [(&str, &str); 3] = [
    ("pre_quant_scale", "AWQ multiplies the activations' columns by it before they are quantised"),
    ("svdquant_lora_a", "SVDQuant adds a product of low rank to the matrix"),
    ("zero_point", "codes have an offset"),
];

/// What such a tensor means.
pub fn beyond_format(tensor: &str) -> Option<&'static str> {
    BEYOND_FORMAT.iter().find(|(end, _)| tensor.ends_with(end)).map(|(_, meaning)| *meaning)
}

/// A matrix without scales.
pub const UNQUANTISED: &str = "unquantised";

/// Models that interleave the rows of gate and up where both lie in one matrix, gate's first, by the start of `model_type`.
pub const INTERLEAVING_MODELS: [&str; 2] = ["gpt_oss", "inkling"];

impl Format {
    /// Its row.
    pub fn tensors(self) -> &'static Tensors {
        // Every format has a row; the test below goes through all.
        FORMATS.iter().chain(&MXFP4_FORMATS).find(|row| row.format == self).unwrap_or(&FORMATS[2])
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.tensors().name)
    }
}

impl Tensors {
    /// May experts have a tensor of that name?
    pub fn knows(&self, tensor: &str) -> bool {
        let ours = [self.codes, self.block_scale, self.global_scale, self.input_scale, BIAS];
        !tensor.is_empty() && ours.contains(&tensor)
    }

    /// Is it MXFP4?
    pub fn is_mxfp4(&self) -> bool {
        self.format == Format::Mxfp4
    }

    /// Codes that share a block scale.
    pub fn block_size(&self) -> usize {
        if self.is_mxfp4() { MX_BLOCK_SIZE } else { BLOCK_SIZE }
    }

    /// Types that codes may have: MXFP4's exporters write them as signed bytes, too.
    pub fn code_dtypes(&self) -> &'static [Dtype] {
        const DTYPES: &[Dtype] = &[Dtype::U8, Dtype::F4, Dtype::I8];
        match (self.is_mxfp4(), self.in_blocks) {
            (_, true) => &DTYPES[..1],
            (true, false) => DTYPES,
            (false, false) => &DTYPES[..2],
        }
    }

    /// Codes in an element of that type, if codes may have it.
    pub fn codes_an_element(&self, dtype: &Dtype) -> Option<u64> {
        self.code_dtypes().contains(dtype).then(|| if *dtype == Dtype::F4 { 1 } else { 2 })
    }

    /// Extents of a row of `cols` codes of that type, if codes may have it and it can be so long.
    pub fn extents_of_row(&self, dtype: &Dtype, cols: u64) -> Vec<u64> {
        match self.in_blocks {
            true => vec![cols / MX_BLOCK_SIZE as u64, MX_BLOCK_BYTES],
            false => vec![cols / self.codes_an_element(dtype).unwrap_or(1)],
        }
    }

    /// `[rows, columns]` of one expert's codes, out of their tensor's extents; none if those are of another kind. A matrix
    /// that is stored by columns has its rows last, and still two neighbours of a row in a byte.
    pub fn matrix(&self, dtype: &Dtype, shape: &[u64], by_columns: bool) -> Option<[u64; 2]> {
        let codes = self.codes_an_element(dtype)?;
        match *shape {
            [pairs, rows] if by_columns => (codes == 2).then(|| [rows, pairs.saturating_mul(codes)]),
            [rows, blocks, MX_BLOCK_BYTES] if self.in_blocks => {
                Some([rows, blocks.saturating_mul(MX_BLOCK_SIZE as u64)])
            }
            [rows, elements] if !self.in_blocks => Some([rows, elements.saturating_mul(codes)]),
            _ => None,
        }
    }

    /// The extents of codes after those of experts and rows, in words.
    pub fn columns_in_words(&self) -> &'static str {
        if self.in_blocks { "columns / 32, 16" } else { "columns / 2" }
    }

    /// Types that block scales may have: writers that do not know e8m0 write bytes.
    pub fn block_scale_dtypes(&self) -> &'static [Dtype] {
        if self.is_mxfp4() { &[Dtype::F8_E8M0, Dtype::U8] } else { &[Dtype::F8_E4M3] }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(FORMS.iter().find(|(form, _)| form == self).map_or("", |(_, spelling)| spelling))
    }
}

impl Form {
    /// Does one tensor hold all experts?
    pub fn is_stacked(self) -> bool {
        matches!(self, Form::Stacked | Form::StackedInBlock)
    }
}

/// Every name of a projection, once.
pub fn all_projections() -> impl Iterator<Item = &'static str> {
    let names = PROJECTIONS.iter().flatten().copied();
    names
        .enumerate()
        .filter(|(at, name)| PROJECTIONS.iter().flatten().position(|n| n == name) == Some(*at))
        .map(|(_, n)| n)
}

/// What the reader looks for, in words.
pub fn in_words() -> String {
    let forms: Vec<_> = FORMS.iter().map(|(_, spelling)| *spelling).collect();
    let projections: Vec<_> = all_projections().collect();
    format!("[PREFIX.]layers.N.[BLOCK.]({}).TENSOR with P one of {}", forms.join("|"), projections.join(", "))
}

/// What no row of the tables fits.
const UNKNOWN: &str = "unknown quantisation";

/// By the tensors beside a weight, if it is not NVFP4.
pub fn quantisation(has: impl Fn(&str) -> bool) -> Option<&'static str> {
    OTHER_QUANTISATIONS.iter().find(|(_, needed)| needed.iter().all(|tensor| has(tensor))).map(|(format, _)| *format)
}

/// The same, where there must be an answer.
pub fn quantisation_or_unknown(has: impl Fn(&str) -> bool) -> &'static str {
    quantisation(has).unwrap_or(UNKNOWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_and_form_has_its_row() {
        for format in [Format::Modelopt, Format::CompressedTensors, Format::DeepseekV4Mixed, Format::Mxfp4] {
            assert_eq!(format.tensors().format, format);
        }
        assert_eq!(Form::ProjectionFirst.to_string(), "experts.P.E");
        assert!(in_words().contains("experts.E.P|experts.P.E"));
        assert_eq!(all_projections().count(), 7);
    }
}
