// SPDX-License-Identifier: Apache-2.0
//! One MoE layer, its names, shapes, dtypes and f32 scales checked.

use super::config::Facts;
use super::dims::{BufferLens, Dims, LayerBuffers, Projection};
use super::files::Files;
use super::groups::Group;
use super::input_scale::InputScale;
use super::mxfp4;
use super::namings::{Format, Tensors};
use super::pieces::{Piece, Pieces, refuse_unquantised};
use super::scales::{BlockScales, check_block_scales, weight_global_scale};
use super::sizes::read_dims;
use super::text::{fault, printable};
use crate::activation::Activation;
use crate::error::{Error, Result};
use crate::memory::vec_for;
use crate::threads;
use std::ops::Range;

/// Codes and block scales of an expert's w13 or w2, to be written.
type Output<'a> = (&'a mut [u8], &'a mut [u8]);

/// A layer that [`Layer::read`] can copy out.
#[derive(Debug)]
pub struct Layer<'a> {
    pieces: Pieces<'a>,
    tensors: &'static Tensors,
    /// Naming and scale convention.
    pub format: Format,
    /// Its sizes.
    pub dims: Dims,
    /// What config.json says about it.
    pub facts: Facts,
    /// Of GEMM1: gate and up read the same rows.
    pub w13_input_scale: InputScale,
    /// Of GEMM2.
    pub w2_input_scale: InputScale,
    /// `[E]`, each of gate, up, down; all decode. Empty in MXFP4.
    global_scales: Vec<[f32; 3]>,
}

impl<'a> Layer<'a> {
    /// Check all that can be checked without reading codes and block scales.
    pub(super) fn new(files: &'a Files, mut facts: Facts, group: &'a Group, tensors: &'static Tensors) -> Result<Self> {
        let format = tensors.format;
        if let Some(reason) = group.beyond_format() {
            let remedy = "Export the checkpoint without it (of ModelOpt's recipes NVFP4_DEFAULT_CFG)";
            return Err(Error::Unsupported(format!(
                "{reason}. {remedy}, or run the layer with the exporter's own kernels."
            )));
        }
        if let Some(name) = group.unknown_tensor(tensors) {
            return Err(fault(
                name,
                "present",
                format_args!("experts in format {format} have no such tensor, and ignoring it could change the result"),
                "Export the checkpoint in plain NVFP4.",
            ));
        }
        let pieces = Pieces { files, group };
        let dims = read_dims(pieces, &mut facts, tensors)?;
        let mut layer = Layer {
            pieces,
            tensors,
            format,
            dims,
            facts,
            w13_input_scale: InputScale::default(),
            w2_input_scale: InputScale::default(),
            global_scales: Vec::new(),
        };
        for expert in 0..dims.num_experts {
            layer.add_expert(expert)?;
        }
        layer.w13_input_scale.settle();
        layer.w2_input_scale.settle();
        Ok(layer)
    }

    fn add_expert(&mut self, expert: usize) -> Result<()> {
        let Tensors { global_scale, input_scale, inverse, .. } = self.tensors;
        let mut global_scales = [0.0; 3];
        for &projection in self.projections() {
            self.codes(expert, projection)?;
            self.block_scale(expert, projection)?;
            if self.pieces.group.has_bias(projection) {
                self.pieces.bias(self.dims, expert, projection)?;
            }
            if self.tensors.is_mxfp4() {
                continue;
            }
            let (name, stored) = self.pieces.scalar(self.dims, expert, projection, global_scale)?;
            let stored = stored.ok_or_else(|| missing(self.pieces.files, &name))?;
            global_scales[projection as usize] = weight_global_scale(&name, stored, *inverse)?;
            let (name, stored) = self.pieces.scalar(self.dims, expert, projection, input_scale)?;
            let merged =
                if projection == Projection::Down { &mut self.w2_input_scale } else { &mut self.w13_input_scale };
            merged.add(name, stored, *inverse);
        }
        if !self.dims.gated {
            global_scales[0] = global_scales[1];
        }
        if !self.tensors.is_mxfp4() {
            self.global_scales.push(global_scales);
        }
        Ok(())
    }

    fn codes(&self, expert: usize, projection: Projection) -> Result<Piece<'a>> {
        refuse_unquantised(self.pieces, expert, projection, self.tensors)?;
        self.pieces.codes(self.dims, expert, projection, self.tensors)
    }

    fn block_scale(&self, expert: usize, projection: Projection) -> Result<Piece<'a>> {
        self.pieces.block_scale(self.dims, expert, projection, self.tensors)
    }

    /// What the experts compute between their GEMMs; an error if this library does not have it.
    pub fn activation(&self) -> Result<Activation> {
        self.facts.activation.clone().map_err(Error::Unsupported)
    }

    /// Have its experts biases?
    pub fn has_bias(&self) -> bool {
        self.projections().iter().any(|projection| self.pieces.group.has_bias(*projection))
    }

    fn projections(&self) -> &'static [Projection] {
        Projection::of_expert(self.dims.gated)
    }

    /// Elements of each buffer that takes `num_experts` experts.
    pub fn buffer_lens(&self, num_experts: usize) -> BufferLens {
        let lens = self.dims.buffer_lens(num_experts);
        if self.has_bias() { lens } else { BufferLens { w13_bias: 0, w2_bias: 0, ..lens } }
    }

    /// `layers.3.ffn`, or whatever it is called in the files.
    pub fn stem(&self) -> &str {
        &self.pieces.group.stem
    }

    /// `[E]`, each of gate, up, down; all decode. Without a gate, up's stands in its place. Empty in MXFP4, where casting
    /// makes them.
    pub fn global_scales(&self) -> &[[f32; 3]] {
        &self.global_scales
    }

    /// Read and check every block scale of some experts.
    pub fn scan_block_scales(&self, experts: Range<usize>) -> Result<BlockScales> {
        let scan = |expert: usize| {
            self.projections().iter().copied().try_fold(BlockScales::default(), |all, projection| {
                let piece = self.block_scale(expert, projection)?;
                let scanned = match self.tensors.is_mxfp4() {
                    true => mxfp4::scan(self.pieces.files, &self.codes(expert, projection)?, &piece)?,
                    false => BlockScales::scan(self.pieces.files, &piece)?,
                };
                Ok(all.merge(scanned))
            })
        };
        let mut numbers = vec_for("experts", experts.len())?;
        numbers.extend(experts);
        let scanned = threads::run(|| threads::try_map(numbers, scan))??;
        Ok(scanned.into_iter().fold(BlockScales::default(), BlockScales::merge))
    }

    /// The experts `first_expert .. first_expert + num_experts`, if all are there.
    pub fn check_range(&self, first_expert: usize, num_experts: usize) -> Result<Range<usize>> {
        match first_expert.checked_add(num_experts) {
            Some(end) if end <= self.dims.num_experts => Ok(first_expert..end),
            _ => Err(Error::argument(
                "first_expert + num_experts",
                format_args!("{first_expert} + {num_experts}"),
                format_args!("{} has {} experts", printable(&self.pieces.group.stem), self.dims.num_experts),
                "Ask for experts that are there.",
            )),
        }
    }

    /// Copy the experts from `first_expert` on, as many as `buffers` take.
    ///
    /// Their scales are checked before anything is copied, so a refusal leaves the buffers as they were; only an
    /// I/O error half-way, or a file that is changed meanwhile, does not. Memory beyond the buffers, for each thread: a megabyte, or a matrix of
    /// MXFP4, or the block scales of one that is stored by columns.
    pub fn read(&self, first_expert: usize, buffers: LayerBuffers<'_>) -> Result<()> {
        let num_experts = buffers.w2_global_scale.len();
        let experts = self.check_range(first_expert, num_experts)?;
        let (given, needed) = (buffers.lens(), self.buffer_lens(num_experts));
        if given != needed {
            return Err(Error::argument(
                "buffers",
                format_args!("{given:?}"),
                format_args!("{num_experts} experts need {needed:?}"),
                "Size them by Layer::buffer_lens.",
            ));
        }
        self.scan_block_scales(experts.clone())?;

        let LayerBuffers {
            w13,
            w13_block_scale,
            w13_global_scale,
            w2,
            w2_block_scale,
            w2_global_scale,
            w13_bias,
            w2_bias,
        } = buffers;
        self.read_biases(experts.clone(), w13_bias, w2_bias)?;
        let (codes_len, scales_len) = (self.dims.codes_len(), self.dims.block_scales_len());
        let in_w13 = self.projections().len() - 1;
        let w13_scales = w13_block_scale.chunks_exact_mut(in_w13 * scales_len);
        let w13 = w13.chunks_exact_mut(in_w13 * codes_len).zip(w13_scales);
        let w2 = w2.chunks_exact_mut(codes_len).zip(w2_block_scale.chunks_exact_mut(scales_len));
        let mut outputs = vec_for("experts", num_experts)?;
        outputs.extend(w13.zip(w2).enumerate());
        let copy = |(i, (w13, w2)): (usize, (Output<'_>, Output<'_>))| self.read_expert(first_expert + i, w13, w2);
        let global_scales = threads::run(|| threads::try_map(outputs, copy))??;
        self.pieces.files.check_unchanged()?;
        for (i, [gate, up, down]) in global_scales.into_iter().enumerate() {
            w13_global_scale[in_w13 * i..][..in_w13].copy_from_slice(&[gate, up][2 - in_w13..]);
            w2_global_scale[i] = down;
        }
        Ok(())
    }

    /// Codes and block scales of one expert; returns its global scales, of gate, up, down.
    fn read_expert(&self, expert: usize, w13: Output<'_>, w2: Output<'_>) -> Result<[f32; 3]> {
        let files = self.pieces.files;
        let mut global_scales = self.global_scales.get(expert).copied().unwrap_or_default();
        let w13_codes = w13.0.chunks_exact_mut(self.dims.codes_len());
        let w13 = w13_codes.zip(w13.1.chunks_exact_mut(self.dims.block_scales_len()));
        for (&projection, (codes, block_scale)) in self.projections().iter().zip(w13.chain([w2])) {
            self.codes(expert, projection)?.read(files, codes)?;
            let piece = self.block_scale(expert, projection)?;
            if self.tensors.is_mxfp4() {
                global_scales[projection as usize] = mxfp4::read(files, codes, &piece, block_scale)?;
                continue;
            }
            piece.read(files, block_scale)?;
            check_block_scales(&piece, 0, block_scale)?; // the file may have changed since they were scanned
        }
        Ok(global_scales)
    }

    /// Biases of some experts; a matrix that has none gets zeros. Does nothing where no matrix has one.
    fn read_biases(&self, experts: Range<usize>, w13: &mut [u8], w2: &mut [u8]) -> Result<()> {
        if !self.has_bias() {
            return Ok(());
        }
        let rows = |projection| 2 * self.dims.matrix(projection)[0] as usize;
        let in_w13 = self.projections().len() - 1;
        let w13 = w13.chunks_exact_mut(in_w13 * rows(Projection::Up));
        for (expert, (w13, w2)) in experts.zip(w13.zip(w2.chunks_exact_mut(rows(Projection::Down)))) {
            let outputs = w13.chunks_exact_mut(rows(Projection::Up)).chain([w2]);
            for (&projection, out) in self.projections().iter().zip(outputs) {
                match self.pieces.group.has_bias(projection) {
                    true => self.pieces.bias(self.dims, expert, projection)?.read(self.pieces.files, out)?,
                    false => out.fill(0),
                }
            }
        }
        Ok(())
    }
}

fn missing(files: &Files, name: &str) -> Error {
    match files.get(name) {
        Err(error) => error,
        Ok(_) => Error::Internal(format!("{name} is found and not found; this is a bug. Please report it.")),
    }
}
