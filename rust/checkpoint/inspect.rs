// SPDX-License-Identifier: Apache-2.0
//! What a person should know about a checkpoint before running it: a table, and warnings to act on.

use super::layer_report::LayerReport;
use super::modules::SkippedLayer;
use super::text::as_printable;
use super::{BlockScales, Checkpoint, Config, Layer, Module, warnings};
use crate::error::{Error, Result};
use crate::memory::Text;
use serde::Serialize;
use std::io::Write;

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
    /// Why a layer that may be whole was not described: nothing to tell of the files.
    #[serde(skip)]
    out_of_memory: Option<Error>,
}

/// An NVFP4 layer that breaks a rule.
#[derive(Debug, Serialize)]
pub struct RefusedLayer {
    /// Its index in the model.
    pub layer: u32,
    /// Its name in the files, up to `.experts`.
    #[serde(serialize_with = "as_printable")]
    pub stem: String,
    /// The refusal.
    pub error: String,
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
        let (mut layers, mut refused, mut out_of_memory) = (Vec::new(), Vec::new(), None);
        for (number, stem, layer) in self.every_layer(only) {
            progress(number);
            match layer.and_then(|layer| LayerReport::new(number, &layer, &blocks)) {
                Ok(described) => layers.push(described),
                Err(error @ Error::OutOfMemory { .. }) => out_of_memory = Some(error),
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
        Report { num_files, file_bytes, config, layers, refused, skipped, modules, warnings, out_of_memory }
    }
}

impl Report<'_> {
    /// Is there a layer, and none refused?
    pub fn is_accepted(&self) -> bool {
        !self.layers.is_empty() && self.refused.is_empty()
    }

    /// As JSON, indented.
    pub fn to_json(&self) -> Result<String> {
        self.check_memory()?;
        let mut text = Text::default();
        let written = serde_json::to_writer_pretty(&mut text, self).map_err(std::io::Error::from);
        text.finish("bytes of the report", written)
    }

    fn check_memory(&self) -> Result<()> {
        self.out_of_memory.clone().map_or(Ok(()), Err)
    }

    /// As a table.
    pub fn to_table(&self) -> Result<String> {
        self.check_memory()?;
        let mut text = Text::default();
        let written = write!(text, "{self}");
        text.finish("bytes of the report", written)
    }
}
