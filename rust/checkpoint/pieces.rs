// SPDX-License-Identifier: Apache-2.0
//! Where an expert's matrix and its scales lie: in tensors of its own, or in a part of one that holds all experts.

use super::dims::{Dims, Projection};
use super::dtype::Dtype;
use super::files::Files;
use super::groups::Group;
use super::header::Tensor;
use super::namings::{BIAS, Tensors};
use super::text::fault;
use crate::error::Result;

/// One matrix's bytes within a tensor, whose dtype and shape are checked.
#[derive(Debug)]
pub struct Piece<'a> {
    /// What to call it in an error: the tensor, and the expert where it holds several.
    pub label: String,
    tensor: &'a Tensor,
    start: u64,
    /// Bytes.
    pub len: u64,
    /// Bytes of a row.
    pub row_len: u64,
    /// From one of its rows to the next: 2 where those of gate and up take turns, else 1.
    row_step: u64,
}

/// Bytes of interleaved rows that are read at a time, at least a row of each.
const INTERLEAVED_BYTES: u64 = 1 << 20;

impl Piece<'_> {
    /// Copy it into `out`, which has its length.
    pub fn read(&self, files: &Files, out: &mut [u8]) -> Result<()> {
        debug_assert_eq!(out.len() as u64, self.len);
        if self.row_step == 1 {
            return files.read(self.tensor, self.start, out);
        }
        self.scan(files, |at, bytes| {
            out[at as usize..][..bytes.len()].copy_from_slice(bytes);
            Ok(())
        })
    }

    /// Show its bytes in order, in pieces of a bounded and even length, or of whole rows.
    pub fn scan(&self, files: &Files, mut look: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        if self.row_step == 1 {
            return files.scan(self.tensor, self.start, self.len, look);
        }
        let (row, pair) = (self.row_len as usize, (self.row_len * self.row_step) as usize);
        let rows = (INTERLEAVED_BYTES / pair as u64).clamp(1, self.len / self.row_len) as usize;
        let mut both = vec![0; rows * pair];
        let mut own = Vec::with_capacity(rows * row);
        for first in (0..self.len / self.row_len).step_by(rows) {
            let rows = rows.min((self.len / self.row_len - first) as usize);
            // Of up's last row nothing follows: its neighbour's came before it.
            let bytes = &mut both[..(rows - 1) * pair + row];
            files.read(self.tensor, self.start + first * pair as u64, bytes)?;
            own.clear();
            bytes.chunks(pair).for_each(|pair| own.extend_from_slice(&pair[..row]));
            look(first * self.row_len, &own)?;
        }
        Ok(())
    }
}

/// Finds the pieces of a layer.
#[derive(Debug, Clone, Copy)]
pub struct Pieces<'a> {
    /// All tensors.
    pub files: &'a Files,
    /// Those of the layer.
    pub group: &'a Group,
}

impl<'a> Pieces<'a> {
    /// e2m1 codes of one matrix.
    pub fn codes(self, dims: Dims, expert: usize, projection: Projection, row: &Tensors) -> Result<Piece<'a>> {
        let [_, cols] = dims.matrix(projection);
        let extents = |dtype: &Dtype| row.extents_of_row(dtype, cols);
        let place = (expert, projection, row.codes);
        let meaning = format!("rows, {}", row.columns_in_words());
        self.piece(dims, place, row.code_dtypes(), extents, cols / 2, &meaning)
    }

    /// Block scales of one matrix: e4m3, or e8m0 in MXFP4.
    pub fn block_scale(self, dims: Dims, expert: usize, projection: Projection, row: &Tensors) -> Result<Piece<'a>> {
        let [_, cols] = dims.matrix(projection);
        let row_len = cols / row.block_size() as u64;
        let place = (expert, projection, row.block_scale);
        let meaning = format!("rows, columns / {}", row.block_size());
        self.piece(dims, place, row.block_scale_dtypes(), |_| vec![row_len], row_len, &meaning)
    }

    /// bf16 biases of one matrix.
    pub fn bias(self, dims: Dims, expert: usize, projection: Projection) -> Result<Piece<'a>> {
        self.piece(dims, (expert, projection, BIAS), &[Dtype::BF16], |_| Vec::new(), 2, "rows")
    }

    fn piece(
        self,
        dims: Dims,
        (expert, projection, tensor): (usize, Projection, &str),
        dtypes: &[Dtype],
        extents_of_row: impl Fn(&Dtype) -> Vec<u64>,
        row_len: u64,
        meaning: &str,
    ) -> Result<Piece<'a>> {
        let name = self.group.tensor(expert, projection, tensor);
        let (parts, part) = self.part(projection);
        let rows = dims.matrix(projection)[0];
        let shape = |dtype: &Dtype| {
            let stack: &[u64] = if self.group.is_stacked() { &[dims.num_experts as u64] } else { &[] };
            [stack, &[rows * parts], &extents_of_row(dtype)].concat()
        };
        let tensor = self.files.expect(&name, dtypes, shape, meaning)?;
        let len = rows * row_len;
        let first = if self.group.is_stacked() { expert as u64 * parts } else { 0 };
        let interleaved = parts == 2 && self.group.is_interleaved();
        let (start, row_step) = if interleaved { (first * len + part * row_len, 2) } else { ((first + part) * len, 1) };
        let label = match (self.group.is_stacked(), parts) {
            (true, _) => format!("{name} of expert {expert}, {projection:?}"),
            (false, 2) => format!("{name}, {projection:?}"),
            (false, _) => name,
        };
        Ok(Piece { label, tensor, start, len, row_len, row_step })
    }

    /// (matrices in one tensor of an expert, which of them it is)
    fn part(self, projection: Projection) -> (u64, u64) {
        match projection {
            Projection::Up if self.group.is_fused() => (2, 1),
            Projection::Gate if self.group.is_fused() => (2, 0),
            _ => (1, 0),
        }
    }

    /// The f32 scale of a matrix, with its name; `None` if there is no such tensor.
    ///
    /// A tensor that holds several matrices has one scale for all, one for each expert, or one for each matrix.
    pub fn scalar(
        self,
        dims: Dims,
        expert: usize,
        projection: Projection,
        tensor: &str,
    ) -> Result<(String, Option<f32>)> {
        let name = self.group.tensor(expert, projection, tensor);
        let (parts, part) = self.part(projection);
        let experts = if self.group.is_stacked() { dims.num_experts as u64 } else { 1 };
        let expert = if self.group.is_stacked() { expert as u64 } else { 0 };
        let Some(values) = self.files.floats(&name, experts * parts)? else { return Ok((name, None)) };
        let at = match values.len() as u64 {
            1 => 0,
            len if len == experts * parts => expert * parts + part,
            len if len == experts => expert,
            len => {
                let rule =
                    format!("it must have 1, {experts} or {} (one for all, an expert or a matrix)", experts * parts);
                return Err(fault(name, format_args!("{len} scales"), rule, "Export the checkpoint again."));
            }
        };
        let label = if self.group.is_stacked() { format!("{name}[{at}]") } else { name };
        Ok((label, Some(values[at as usize])))
    }
}

/// Exporters leave some experts as they were. A layer is run in one format, so such a layer is refused for what it is.
pub fn refuse_unquantised(pieces: Pieces<'_>, expert: usize, projection: Projection, row: &Tensors) -> Result<()> {
    let name = pieces.group.tensor(expert, projection, "weight");
    let is_unquantised = |dtype: &Dtype| dtype.is_unquantised();
    match pieces.files.find(&name)? {
        Some(tensor) if row.codes != "weight" || is_unquantised(&tensor.dtype) => Err(fault(
            name,
            format_args!("{} {:?}", tensor.dtype, tensor.shape),
            format_args!(
                "other experts of this layer are {}, and this library runs a layer in one format",
                if row.is_mxfp4() { "MXFP4" } else { "NVFP4" }
            ),
            "Run the layer with the model's own kernels, or export it with every expert quantised.",
        )),
        _ => Ok(()),
    }
}
