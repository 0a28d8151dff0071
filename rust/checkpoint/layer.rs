// SPDX-License-Identifier: Apache-2.0
//! One MoE layer, its names, shapes, dtypes and f32 scales checked.

use super::activation::Activation;
use super::config::Facts;
use super::dims::{Dims, LayerBuffers, Projection};
use super::files::Files;
use super::groups::Group;
use super::input_scale::InputScale;
use super::mxfp4;
use super::namings::{Format, Tensors};
use super::pieces::{Piece, Pieces, refuse_unquantised};
use super::scales::{BlockScales, weight_global_scale};
use super::sizes::read_dims;
use super::text::{fault, printable};
use crate::error::{Error, Result};
use crate::threads;
use rayon::prelude::*;
use std::ops::Range;

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
        if let Some(name) = group.unknown_tensor(tensors) {
            return Err(fault(
                name,
                "present",
                format_args!("experts in format {format} have no such tensor, and ignoring it could change the result"),
                "Export the checkpoint in plain NVFP4 (no AWQ, no bias, no zero points).",
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
        for projection in Projection::ALL {
            self.codes(expert, projection)?;
            self.block_scale(expert, projection)?;
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

    /// `layers.3.ffn`, or whatever it is called in the files.
    pub fn stem(&self) -> &str {
        &self.pieces.group.stem
    }

    /// `[E]`, each of gate, up, down; all decode. Empty in MXFP4, where casting makes them.
    pub fn global_scales(&self) -> &[[f32; 3]] {
        &self.global_scales
    }

    /// Read and check every block scale of some experts.
    pub fn scan_block_scales(&self, experts: Range<usize>) -> Result<BlockScales> {
        let scan = |expert| {
            Projection::ALL.into_iter().try_fold(BlockScales::default(), |all, projection| {
                let piece = self.block_scale(expert, projection)?;
                let scanned = match self.tensors.is_mxfp4() {
                    true => mxfp4::scan(self.pieces.files, &self.codes(expert, projection)?, &piece)?,
                    false => BlockScales::scan(self.pieces.files, &piece)?,
                };
                Ok(all.merge(scanned))
            })
        };
        let all = || experts.into_par_iter().map(scan).try_reduce(BlockScales::default, |a, b| Ok(a.merge(b)));
        threads::run(all)?
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
    /// I/O error half-way does not. Memory beyond the buffers: a megabyte for each thread.
    pub fn read(&self, first_expert: usize, buffers: LayerBuffers<'_>) -> Result<()> {
        let num_experts = buffers.w2_global_scale.len();
        let experts = self.check_range(first_expert, num_experts)?;
        let (given, needed) = (buffers.lens(), self.dims.buffer_lens(num_experts));
        if given != needed {
            return Err(Error::argument(
                "buffers",
                format_args!("{given:?}"),
                format_args!("{num_experts} experts need {needed:?}"),
                "Size them by Dims::buffer_lens.",
            ));
        }
        self.scan_block_scales(experts.clone())?;

        let LayerBuffers { w13, w13_block_scale, w13_global_scale, w2, w2_block_scale, w2_global_scale } = buffers;
        let (codes_len, scales_len) = (self.dims.codes_len(), self.dims.block_scales_len());
        let w13 = w13.par_chunks_exact_mut(2 * codes_len).zip(w13_block_scale.par_chunks_exact_mut(2 * scales_len));
        let w2 = w2.par_chunks_exact_mut(codes_len).zip(w2_block_scale.par_chunks_exact_mut(scales_len));
        let cast_scales = mxfp4::GlobalScales::new(num_experts);
        let copies = w13.zip(w2).enumerate().map(|(i, ((w13, w13_block_scale), (w2, w2_block_scale)))| {
            let (gate, up) = w13.split_at_mut(codes_len);
            let (gate_scale, up_scale) = w13_block_scale.split_at_mut(scales_len);
            let outputs = [(gate, gate_scale), (up, up_scale), (w2, w2_block_scale)];
            for (projection, (codes, block_scale)) in Projection::ALL.into_iter().zip(outputs) {
                self.codes(first_expert + i, projection)?.read(self.pieces.files, codes)?;
                let piece = self.block_scale(first_expert + i, projection)?;
                match self.tensors.is_mxfp4() {
                    true => cast_scales.set(i, projection, mxfp4::read(self.pieces.files, codes, &piece, block_scale)?),
                    false => piece.read(self.pieces.files, block_scale)?,
                }
            }
            Ok(())
        });
        threads::run(|| copies.collect::<Result<()>>())??;
        let global_scales = if self.tensors.is_mxfp4() { &cast_scales.all() } else { &self.global_scales[experts] };
        for (i, [gate, up, down]) in global_scales.iter().enumerate() {
            w13_global_scale[2 * i] = *gate;
            w13_global_scale[2 * i + 1] = *up;
            w2_global_scale[i] = *down;
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
