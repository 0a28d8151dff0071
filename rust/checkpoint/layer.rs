//! One MoE layer, its names, shapes, dtypes and f32 scales checked.

use super::config::Config;
use super::files::Files;
use super::header::{Dtype, Tensor};
use super::names::{Format, Group, Projection, Suffixes};
use super::scales::{BlockScales, InputScale, weight_global_scale};
use crate::error::{Error, Result};
use crate::format::BLOCK_SIZE;
use crate::threads;
use rayon::prelude::*;
use serde::Serialize;
use std::ops::Range;

/// A layer that [`Layer::read`] can copy out.
#[derive(Debug)]
pub struct Layer<'a> {
    files: &'a Files,
    group: &'a Group,
    /// Naming and scale convention.
    pub format: Format,
    /// Its sizes.
    pub dims: Dims,
    /// Of GEMM1: gate and up read the same rows.
    pub w13_input_scale: InputScale,
    /// Of GEMM2.
    pub w2_input_scale: InputScale,
    /// `[E]`, each of gate, up, down; all decode.
    global_scales: Vec<[f32; 3]>,
}

/// Sizes of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Dims {
    /// E
    pub num_experts: usize,
    /// H, a multiple of 16
    pub hidden_size: usize,
    /// I, a multiple of 16
    pub intermediate_size: usize,
}

impl Dims {
    /// Packed bytes of one of gate, up and down.
    fn codes_len(self) -> usize {
        self.hidden_size * self.intermediate_size / 2
    }

    /// Block scales of one of gate, up and down.
    fn block_scales_len(self) -> usize {
        self.hidden_size * self.intermediate_size / BLOCK_SIZE
    }

    /// Elements of each buffer that takes `num_experts` experts, which must be no more than there are.
    pub fn buffer_lens(self, num_experts: usize) -> BufferLens {
        let (codes, block_scales) = (num_experts * self.codes_len(), num_experts * self.block_scales_len());
        BufferLens {
            w13: 2 * codes,
            w13_block_scale: 2 * block_scales,
            w13_global_scale: 2 * num_experts,
            w2: codes,
            w2_block_scale: block_scales,
            w2_global_scale: num_experts,
        }
    }

    /// Bytes of the whole layer's codes and scales.
    pub fn bytes(self) -> u64 {
        3 * self.num_experts as u64 * (self.codes_len() + self.block_scales_len() + size_of::<f32>()) as u64
    }

    /// `[rows, cols]` of a projection.
    fn matrix(self, projection: Projection) -> [u64; 2] {
        let (hidden, intermediate) = (self.hidden_size as u64, self.intermediate_size as u64);
        match projection {
            Projection::Gate | Projection::Up => [intermediate, hidden],
            Projection::Down => [hidden, intermediate],
        }
    }
}

/// Elements of each of [`LayerBuffers`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct BufferLens {
    pub w13: usize,
    pub w13_block_scale: usize,
    pub w13_global_scale: usize,
    pub w2: usize,
    pub w2_block_scale: usize,
    pub w2_global_scale: usize,
}

/// Where [`Layer::read`] puts a range of n experts; shapes as `nvfp4_moe_layer_weights` has them, gate rows first.
#[derive(Debug)]
pub struct LayerBuffers<'a> {
    /// e2m1x2 `[n, 2I, H/2]`
    pub w13: &'a mut [u8],
    /// e4m3 `[n, 2I, H/16]`
    pub w13_block_scale: &'a mut [u8],
    /// `[n, 2]`: gate, up; decodes
    pub w13_global_scale: &'a mut [f32],
    /// e2m1x2 `[n, H, I/2]`
    pub w2: &'a mut [u8],
    /// e4m3 `[n, H, I/16]`
    pub w2_block_scale: &'a mut [u8],
    /// `[n]`; decodes
    pub w2_global_scale: &'a mut [f32],
}

impl LayerBuffers<'_> {
    fn lens(&self) -> BufferLens {
        BufferLens {
            w13: self.w13.len(),
            w13_block_scale: self.w13_block_scale.len(),
            w13_global_scale: self.w13_global_scale.len(),
            w2: self.w2.len(),
            w2_block_scale: self.w2_block_scale.len(),
            w2_global_scale: self.w2_global_scale.len(),
        }
    }
}

impl<'a> Layer<'a> {
    /// Check all that can be checked without reading codes and block scales.
    pub(super) fn new(files: &'a Files, config: &Config, group: &'a Group, format: Format) -> Result<Self> {
        if let Some(name) = group.unknown_tensor(format) {
            return Err(Error::checkpoint(
                name,
                "present",
                format_args!("experts in format {format} have no such tensor, and ignoring it could change the result"),
                "Export the checkpoint in plain NVFP4 (no AWQ, no bias, no zero points).",
            ));
        }
        let dims = read_dims(files, config, group, format)?;
        let mut layer = Layer {
            files,
            group,
            format,
            dims,
            w13_input_scale: InputScale::default(),
            w2_input_scale: InputScale::default(),
            global_scales: Vec::new(),
        };
        for expert in 0..dims.num_experts {
            layer.add_expert(expert)?;
        }
        Ok(layer)
    }

    fn add_expert(&mut self, expert: usize) -> Result<()> {
        let Suffixes { global_scale, input_scale, inverse, .. } = self.format.suffixes();
        let mut global_scales = [0.0; 3];
        for projection in Projection::ALL {
            self.codes(expert, projection)?;
            self.block_scale(expert, projection)?;
            let name = self.group.tensor(expert, projection, global_scale);
            global_scales[projection as usize] = weight_global_scale(self.files, &name, inverse)?;
            let merged =
                if projection == Projection::Down { &mut self.w2_input_scale } else { &mut self.w13_input_scale };
            merged.add(self.files, self.group.tensor(expert, projection, input_scale), inverse)?;
        }
        self.global_scales.push(global_scales);
        Ok(())
    }

    fn codes(&self, expert: usize, projection: Projection) -> Result<&'a Tensor> {
        let name = self.group.tensor(expert, projection, self.format.suffixes().codes);
        let [rows, cols] = self.dims.matrix(projection);
        self.files.expect(&name, Dtype::U8, &[rows, cols / 2], "rows, columns / 2")
    }

    fn block_scale(&self, expert: usize, projection: Projection) -> Result<(String, &'a Tensor)> {
        let name = self.group.tensor(expert, projection, self.format.suffixes().block_scale);
        let [rows, cols] = self.dims.matrix(projection);
        let shape = [rows, cols / BLOCK_SIZE as u64];
        let tensor = self.files.expect(&name, Dtype::F8_E4M3, &shape, "rows, columns / 16")?;
        Ok((name, tensor))
    }

    /// `layers.3.ffn`, or whatever it is called in the files.
    pub fn stem(&self) -> &str {
        &self.group.stem
    }

    /// `[E]`, each of gate, up, down; all decode.
    pub fn global_scales(&self) -> &[[f32; 3]] {
        &self.global_scales
    }

    /// Read and check every block scale of some experts.
    pub fn scan_block_scales(&self, experts: Range<usize>) -> Result<BlockScales> {
        let scan = |expert| {
            Projection::ALL.into_iter().try_fold(BlockScales::default(), |all, projection| {
                let (name, tensor) = self.block_scale(expert, projection)?;
                Ok(all.merge(BlockScales::scan(self.files, &name, tensor)?))
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
                format_args!("{} has {} experts", self.group.stem, self.dims.num_experts),
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
        let copies = w13.zip(w2).enumerate().map(|(i, ((w13, w13_block_scale), (w2, w2_block_scale)))| {
            let (gate, up) = w13.split_at_mut(codes_len);
            let (gate_scale, up_scale) = w13_block_scale.split_at_mut(scales_len);
            let outputs = [(gate, gate_scale), (up, up_scale), (w2, w2_block_scale)];
            for (projection, (codes, block_scale)) in Projection::ALL.into_iter().zip(outputs) {
                self.files.read(self.codes(first_expert + i, projection)?, codes)?;
                self.files.read(self.block_scale(first_expert + i, projection)?.1, block_scale)?;
            }
            Ok(())
        });
        threads::run(|| copies.collect::<Result<()>>())??;
        for (i, [gate, up, down]) in self.global_scales[experts].iter().enumerate() {
            w13_global_scale[2 * i] = *gate;
            w13_global_scale[2 * i + 1] = *up;
            w2_global_scale[i] = *down;
        }
        Ok(())
    }
}

/// Sizes from expert 0's gate, held against the config where it says; every other tensor is held against them.
fn read_dims(files: &Files, config: &Config, group: &Group, format: Format) -> Result<Dims> {
    let name = group.tensor(0, Projection::Gate, format.suffixes().codes);
    let shape = &files.get(&name)?.shape;
    let &[rows, packed_cols] = &**shape else {
        return Err(Error::checkpoint(
            &name,
            format_args!("of shape {shape:?}"),
            "it must have 2 extents (intermediate_size, hidden_size / 2)",
            "Export the checkpoint again.",
        ));
    };
    let hidden_size = packed_cols.saturating_mul(2);
    let block = BLOCK_SIZE as u64;
    let sizes =
        [("hidden_size", hidden_size, config.hidden_size), ("intermediate_size", rows, config.moe_intermediate_size)];
    for (what, size, configured) in sizes {
        if size == 0 || !size.is_multiple_of(block) || size > i32::MAX as u64 {
            return Err(Error::checkpoint(
                &name,
                format_args!("{shape:?}, so {what} is {size}"),
                format_args!("it must be a positive multiple of {block}"),
                "Pad the model's weights, then export it again.",
            ));
        }
        if let Some(configured) = configured.filter(|configured| *configured != size) {
            return Err(Error::checkpoint(
                &name,
                format_args!("{shape:?}, so {what} is {size}"),
                format_args!("config.json says {configured}"),
                "Use the config.json that came with these weights.",
            ));
        }
    }
    if let Some(configured) = config.num_experts.filter(|configured| *configured < group.num_experts) {
        return Err(Error::checkpoint(
            format_args!("{}.experts", group.stem),
            format_args!("{} experts", group.num_experts),
            format_args!("config.json says {configured}"),
            "Use the config.json that came with these weights.",
        ));
    }
    // Too few experts show as missing tensors, by name.
    let num_experts = config.num_experts.unwrap_or(group.num_experts) as usize;
    Ok(Dims { num_experts, hidden_size: hidden_size as usize, intermediate_size: rows as usize })
}
