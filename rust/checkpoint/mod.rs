//! Checkpoints: NVFP4 experts out of safetensors files.
//!
//! # Formats
//!
//! A matrix `[rows, cols]` is four tensors. Two conventions are in use, and they differ in what matters most:
//!
//! | | ModelOpt (NVIDIA) | compressed-tensors `nvfp4-pack-quantized` |
//! |---|---|---|
//! | e2m1x2 codes, U8 `[rows, cols/2]` | `weight` | `weight_packed` |
//! | block scales, F8_E4M3 `[rows, cols/16]` | `weight_scale` | `weight_scale` |
//! | scale of the weight, F32 `[]` or `[1]` | `weight_scale_2`, decodes | `weight_global_scale`, its INVERSE |
//! | scale of the activations, F32 `[]` or `[1]` | `input_scale`, decodes | `input_global_scale`, its INVERSE |
//!
//! Everything that leaves this module decodes: `value = e2m1 * block_scale * global_scale`. An inverse is turned
//! round once, here, by one f32 division. The tensors' names decide the convention, not the config, because names
//! cannot contradict the data they name.
//!
//! DeepSeek-V4 checkpoints have `quant_method: "fp8"` with `moe_quant_algo: "NVFP4"`: routed experts in ModelOpt's
//! tensors, everything else in FP8. Their multi-token-prediction experts stay MXFP4. Layers that are not NVFP4 are
//! [skipped](Checkpoint::skipped) with the reason; the others can be read.
//!
//! # Names
//!
//! `[PREFIX.]layers.N.BLOCK.experts.E.PROJECTION.TENSOR`, under any prefix and block. Projections are called
//! `w1`, `w3`, `w2` (DeepSeek, Mixtral) or `gate_proj`, `up_proj`, `down_proj` (Hugging Face): gate, up, down.
//!
//! # What is refused
//!
//! By tensor name and with both numbers: a missing tensor; a wrong dtype or shape; a tensor that the format does
//! not know; a block scale that is NaN or negative; a weight's global scale that is missing, zero, NaN, infinite or
//! negative; files that are shorter, or longer, than their header says. Gate and up may have different global
//! scales. An input scale that is missing, zero or NaN is no refusal, because mode bf16 does not read it: see
//! [`InputScale`].
//!
//! # Lossless casts
//!
//! ModelOpt can cast MXFP4 (blocks of 32, scales powers of two) to NVFP4 and keep the codes. Then every block scale
//! is a power of two, and equal for the two blocks of 16 that were one: `lossless_cast`.
//!
//! ```no_run
//! # fn main() -> nvfp4_moe::error::Result<()> {
//! use nvfp4_moe::checkpoint::Checkpoint;
//! let checkpoint = Checkpoint::open("DeepSeek-V4-Flash-NVFP4".as_ref())?;
//! let layer = checkpoint.layer(3)?;
//! println!("{} experts of {}", layer.dims.num_experts, layer.stem());
//! # Ok(())
//! # }
//! ```

mod config;
mod files;
mod header;
mod inspect;
mod layer;
mod names;
mod scales;
mod source;
mod table;

pub use config::Config;
pub use inspect::{LayerReport, RefusedLayer, Report, SkippedLayer};
pub use layer::{BufferLens, Dims, Layer, LayerBuffers};
pub use names::Format;
pub use scales::{BlockScales, InputScale};

use crate::error::{Error, Result};
use files::Files;
use names::Group;
use source::Directory;
use std::collections::BTreeMap;
use std::path::Path;

/// An open checkpoint: headers and config are read, no weights yet.
#[derive(Debug)]
pub struct Checkpoint {
    /// What its config says.
    pub config: Config,
    files: Files,
    /// Indices into `groups` by layer; more than one where two models share the directory.
    layers: BTreeMap<u32, Vec<(usize, Format)>>,
    skipped: Vec<SkippedLayer>,
    groups: Vec<Group>,
}

impl Checkpoint {
    /// Open a directory of safetensors files, sharded or not, with its `config.json`.
    pub fn open(directory: &Path) -> Result<Self> {
        Self::from_directory(Directory::Disk(directory.to_owned()))
    }

    /// The same out of memory: file contents by name.
    pub fn from_memory(files: BTreeMap<String, Vec<u8>>) -> Result<Self> {
        Self::from_directory(Directory::Memory(files))
    }

    fn from_directory(directory: Directory) -> Result<Self> {
        let files = Files::open(&directory)?;
        let config = Config::open(&directory)?;
        let groups = names::find_groups(&files);
        let mut layers = BTreeMap::<u32, Vec<_>>::new();
        let mut skipped = Vec::new();
        for (at, group) in groups.iter().enumerate() {
            let layer = group.layer();
            let reason = match (layer, group.format(&config)) {
                (Some(layer), Ok(format)) => {
                    layers.entry(layer).or_default().push((at, format));
                    continue;
                }
                (_, Err(reason)) => reason,
                (None, Ok(_)) => "its name is not layers.N, so it is none of the model's main layers".to_owned(),
            };
            skipped.push(SkippedLayer { stem: group.stem.clone(), layer, reason });
        }
        Ok(Checkpoint { config, files, layers, skipped, groups })
    }

    /// Indices of the NVFP4 MoE layers, in order.
    pub fn layers(&self) -> impl Iterator<Item = u32> {
        self.layers.keys().copied()
    }

    /// Groups of experts that are no NVFP4 layer, and why.
    pub fn skipped(&self) -> &[SkippedLayer] {
        &self.skipped
    }

    /// A layer by its index in the model, checked but for its block scales.
    pub fn layer(&self, layer: u32) -> Result<Layer<'_>> {
        match self.layers.get(&layer).map(Vec::as_slice) {
            Some([(group, format)]) => Layer::new(&self.files, &self.config, &self.groups[*group], *format),
            Some(groups) => {
                let stems: Vec<_> = groups.iter().map(|(group, _)| self.groups[*group].stem.as_str()).collect();
                Err(Error::checkpoint(
                    format_args!("layer {layer}"),
                    stems.join(" and "),
                    "one layer may have one name",
                    "Keep one model in the directory.",
                ))
            }
            None => Err(self.no_such_layer(layer)),
        }
    }

    fn no_such_layer(&self, layer: u32) -> Error {
        if let Some(SkippedLayer { stem, reason, .. }) = self.skipped.iter().find(|s| s.layer == Some(layer)) {
            let remedy = "Run it with the model's own kernels.";
            return Error::Unsupported(format!("layer {layer} ({stem}) is no NVFP4 MoE layer; {reason}. {remedy}"));
        }
        let rule = match (self.layers.first_key_value(), self.layers.last_key_value()) {
            (Some((first, _)), Some((last, _))) => {
                format!("the checkpoint has {} NVFP4 MoE layers, {first} to {last}", self.layers.len())
            }
            _ => "the checkpoint has no NVFP4 MoE layer".to_owned(),
        };
        Error::argument("layer", layer, rule, "`nvfp4-moe inspect` lists them.")
    }
}
