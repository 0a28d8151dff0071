// SPDX-License-Identifier: Apache-2.0
//! Checkpoints: NVFP4 and MXFP4 experts out of safetensors files.
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
//! NVIDIA's DeepSeek-V4 checkpoints have `quant_method: "fp8"` with `moe_quant_algo: "NVFP4"`: routed experts in ModelOpt's
//! tensors, everything else in FP8. Layers that are not FP4 are [skipped](Checkpoint::skipped) with the reason; the others
//! can be read.
//!
//! MXFP4 has the same codes, one e8m0 scale (F8_E8M0, or U8 under a config that says mxfp4) for 32 of them, and no other:
//! `weight` (I8, U8 or F4) and `scale` in DeepSeek-V4 as its authors publish it, `weight_packed` and `weight_scale` by
//! compressed-tensors, `weight` and `weight_scale` by ModelOpt, `blocks` and `scales` by gpt-oss, whose codes have an extent for
//! the 16 bytes of a block. It leaves as NVFP4 of the same values: [`cast_mxfp4`](crate::format::cast_mxfp4), which refuses scales that are too far apart.
//!
//! # Names
//!
//! `[PREFIX.]layers.N.[BLOCK.]experts.E.PROJECTION.TENSOR` under any prefix and block, and the other forms of the one
//! table of namings, `namings.rs`: another exporter is another row there. Where a tensor holds all experts, it is read if
//! its shape leaves no doubt about what lies where; ModelOpt stores such matrices by columns (Llama 4, gpt-oss). What looks like NVFP4 and is not understood is
//! [skipped](Checkpoint::skipped) under its own name.
//!
//! # What the config decides
//!
//! The experts' activation, of which tensors tell only whether there is a gate: what this library lacks is refused by the
//! name of its key ([`Activation`]).
//! Sizes are the tensors'; the config is held against them. It may keep its facts in an object for each tower, under
//! several names, and in a list for each layer.
//!
//! # Faults
//!
//! A fault outside what is asked for stops nothing: a layer that is whole is read beside files that are damaged or missing,
//! and the [report](Checkpoint::inspect) warns of those.
//!
//! # What is refused
//!
//! By tensor name and with both numbers: a missing tensor; a wrong dtype or shape; a tensor that the format does
//! not know; a block scale that is NaN or negative; a weight's global scale that is missing, zero, NaN, infinite or
//! negative; a tensor past the end of its file; a file that is longer than its header says. Gate and up may have different global
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

mod activation;
mod config;
mod dims;
mod dtype;
mod files;
mod groups;
mod header;
mod index;
mod input_scale;
mod inspect;
mod layer;
mod layer_report;
mod modules;
mod mxfp4;
mod names;
mod namings;
mod pieces;
mod scales;
mod sections;
mod sizes;
mod source;
mod table;
mod text;
mod warnings;

pub use crate::activation::Activation;
pub use config::{Config, Facts, Said};
pub use dims::{BufferLens, Dims, LayerBuffers};
pub use input_scale::InputScale;
pub use inspect::{RefusedLayer, Report};
pub use layer::Layer;
pub use layer_report::LayerReport;
pub use modules::{Module, SkippedLayer};
pub use namings::{Format, in_words as namings_in_words};
pub use scales::BlockScales;

use crate::error::{Error, Result};
use files::Files;
use groups::Group;
use namings::Tensors;
use source::Directory;
use std::collections::BTreeMap;
use std::path::Path;
use text::{fault, printable};

/// An open checkpoint: headers and config are read, no weights yet.
#[derive(Debug)]
pub struct Checkpoint {
    /// What its config says.
    pub config: Config,
    files: Files,
    /// Indices into `groups` by layer; more than one where two models, or two towers of one, share the directory.
    layers: BTreeMap<u32, Vec<(usize, &'static Tensors)>>,
    skipped: Vec<SkippedLayer>,
    modules: Vec<Module>,
    groups: Vec<Group>,
}

impl Checkpoint {
    /// Open a directory of safetensors files, sharded or not, with its `config.json`.
    pub fn open(directory: &Path) -> Result<Self> {
        Self::open_prefix(directory, "")
    }

    /// The same for tensors whose names begin with `prefix`: one tower (`thinker.`) of several.
    pub fn open_prefix(directory: &Path, prefix: &str) -> Result<Self> {
        Self::from_directory(Directory::Disk(directory.to_owned()), prefix)
    }

    /// The same out of memory: file contents by name.
    pub fn from_memory(files: BTreeMap<String, Vec<u8>>) -> Result<Self> {
        Self::from_directory(Directory::Memory(files), "")
    }

    fn from_directory(directory: Directory, prefix: &str) -> Result<Self> {
        let files = Files::open(&directory)?;
        let config = Config::open(&directory)?;
        files.ask_for_tables()?;
        let (mut groups, others) = groups::find_groups(&files, prefix);
        let (mut modules, unknown) = modules::of_others(&others);
        let mut layers = BTreeMap::<u32, Vec<_>>::new();
        let mut skipped = Vec::new();
        for (at, group) in groups.iter_mut().enumerate() {
            let layer = group.layer();
            let row = group.settle(&config);
            let facts = || config.facts(&group.stem, layer.clone().unwrap_or_default(), group.is_gated());
            let refusal = row.is_ok().then(facts).and_then(|facts| facts.activation.err());
            modules.push(modules::of_group(group, &config, refusal));
            let reason = match (row, &layer) {
                (Ok(row), Ok(layer)) => {
                    layers.entry(*layer).or_default().push((at, row));
                    continue;
                }
                (Ok(_), Err(reason)) => reason.clone(),
                (Err(reason), _) => reason,
            };
            skipped.push(SkippedLayer { stem: group.stem.clone(), layer: layer.ok(), reason });
        }
        skipped.extend(unknown);
        Ok(Checkpoint { config, files, layers, skipped, modules, groups })
    }

    /// Indices of the MoE layers, in order.
    pub fn layers(&self) -> impl Iterator<Item = u32> {
        self.layers.keys().copied()
    }

    /// Groups of experts that are no layer to read, and why.
    pub fn skipped(&self) -> &[SkippedLayer] {
        &self.skipped
    }

    /// Every linear, and the experts of every layer, with their quantisation.
    pub fn modules(&self) -> &[Module] {
        &self.modules
    }

    /// A layer by its index in the model, checked but for its block scales.
    pub fn layer(&self, layer: u32) -> Result<Layer<'_>> {
        match self.layers.get(&layer).map(Vec::as_slice) {
            Some(&[(group, row)]) => self.layer_of(layer, group, row),
            Some(groups) => {
                let stems: Vec<_> = groups.iter().map(|(group, _)| self.groups[*group].stem.as_str()).collect();
                let tower = stems[0].split('.').next().unwrap_or_default();
                Err(fault(
                    format_args!("layer {layer}"),
                    stems.join(" and "),
                    "one number names one layer",
                    format_args!("Keep one model in the directory, or open one tower by its prefix, such as {tower}."),
                ))
            }
            None => Err(self.no_such_layer(layer)),
        }
    }

    /// Is there memory for a report?
    pub fn check_memory(&self) -> Result<()> {
        self.files.ask_for_tables()
    }

    fn layer_of(&self, layer: u32, group: usize, row: &'static Tensors) -> Result<Layer<'_>> {
        self.files.ask_for_tables()?;
        let group = &self.groups[group];
        Layer::new(&self.files, self.config.facts(&group.stem, layer, group.is_gated()), group, row)
    }

    /// Each layer of each tower: its index, and the layer or why it is refused.
    fn every_layer(&self, only: Option<u32>) -> impl Iterator<Item = (u32, &str, Result<Layer<'_>>)> {
        let wanted = self.layers.iter().filter(move |(layer, _)| only.is_none_or(|only| only == **layer));
        wanted.flat_map(move |(layer, groups)| {
            let one = |(group, row): &(usize, &'static Tensors)| {
                (*layer, self.groups[*group].stem.as_str(), self.layer_of(*layer, *group, row))
            };
            groups.iter().map(one).collect::<Vec<_>>()
        })
    }

    fn no_such_layer(&self, layer: u32) -> Error {
        if let Some(SkippedLayer { stem, reason, .. }) = self.skipped.iter().find(|s| s.layer == Some(layer)) {
            let (stem, remedy) = (printable(stem), "Run it with the model's own kernels.");
            return Error::Unsupported(format!(
                "layer {layer} ({stem}) is no NVFP4 or MXFP4 MoE layer that can be read; {reason}. {remedy}"
            ));
        }
        let rule = match (self.layers.first_key_value(), self.layers.last_key_value()) {
            (Some((first, _)), Some((last, _))) => {
                format!("the checkpoint has {} FP4 MoE layers, {first} to {last}", self.layers.len())
            }
            _ => "the checkpoint has no FP4 MoE layer".to_owned(),
        };
        Error::argument("layer", layer, rule, "`nvfp4-moe inspect` lists them.")
    }
}
