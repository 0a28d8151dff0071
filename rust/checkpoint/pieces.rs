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
use crate::memory::filled;

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
    rows: Rows,
}

/// How a matrix's rows lie in its tensor, from `start` on.
#[derive(Debug, Clone, Copy)]
enum Rows {
    /// One after the other.
    Together,
    /// Those of gate and up in turn.
    InTurn,
    /// Stored by columns, each of `width` bytes: row r has byte `first + r * step` of each.
    Across { width: u64, first: u64, step: u64 },
}

/// Bytes of rows that do not lie together, read at a time; at least two rows, or a column.
const BYTES_AT_A_TIME: u64 = 1 << 20;

impl Piece<'_> {
    /// Copy it into `out`, which has its length.
    pub fn read(&self, files: &Files, out: &mut [u8]) -> Result<()> {
        debug_assert_eq!(out.len() as u64, self.len);
        match self.rows {
            Rows::Together => files.read(self.tensor, self.start, out),
            Rows::InTurn => self.scan(files, |at, bytes| {
                out[at as usize..][..bytes.len()].copy_from_slice(bytes);
                Ok(())
            }),
            Rows::Across { width, first, step } => {
                let row_of = |row: usize| first as usize + row * step as usize;
                self.for_columns(files, width, |column, columns| {
                    for (row, out) in out.chunks_exact_mut(self.row_len as usize).enumerate() {
                        let bytes = columns[row_of(row)..].iter().step_by(width as usize);
                        out[column..].iter_mut().zip(bytes).for_each(|(out, byte)| *out = *byte);
                    }
                })
            }
        }
    }

    /// Show its bytes in order, in pieces of an even length or of whole rows; of a bounded one, unless it lies by columns.
    pub fn scan(&self, files: &Files, mut look: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        match self.rows {
            Rows::Together => files.scan(self.tensor, self.start, self.len, look),
            Rows::InTurn => self.scan_in_turn(files, look),
            Rows::Across { .. } => {
                let mut bytes = filled("bytes of a matrix", self.len as usize, 0)?;
                self.read(files, &mut bytes)?;
                look(0, &bytes)
            }
        }
    }

    fn scan_in_turn(&self, files: &Files, mut look: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        let (row, pair) = (self.row_len as usize, 2 * self.row_len as usize);
        let rows = (BYTES_AT_A_TIME / pair as u64).clamp(1, self.len / self.row_len) as usize;
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

    /// Show some whole columns at a time, and the number of the first.
    fn for_columns(&self, files: &Files, width: u64, mut look: impl FnMut(usize, &[u8])) -> Result<()> {
        let at_a_time = (BYTES_AT_A_TIME / width).clamp(1, self.row_len);
        let mut columns = filled("columns of a matrix", (at_a_time * width) as usize, 0)?;
        for first in (0..self.row_len).step_by(at_a_time as usize) {
            let columns = &mut columns[..(at_a_time.min(self.row_len - first) * width) as usize];
            files.read(self.tensor, self.start + first * width, columns)?;
            look(first as usize, columns);
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
        let by_columns = self.group.is_by_columns() && tensor != BIAS;
        // Two codes of a byte are neighbours in a row, which F4 cannot say of columns.
        let dtypes = if by_columns && dtypes.contains(&Dtype::U8) { &[Dtype::U8] } else { dtypes };
        let shape = |dtype: &Dtype| {
            let stack: &[u64] = if self.group.is_stacked() { &[dims.num_experts as u64] } else { &[] };
            let (rows, row) = ([rows * parts], extents_of_row(dtype));
            if by_columns { [stack, &row, &rows].concat() } else { [stack, &rows, &row].concat() }
        };
        let meaning = if by_columns { &format!("the transpose of {meaning}") } else { meaning };
        let tensor = self.files.expect(&name, dtypes, shape, meaning)?;
        let len = rows * row_len;
        let first = if self.group.is_stacked() { expert as u64 * parts } else { 0 };
        let interleaved = parts == 2 && self.group.is_interleaved();
        let (start, rows) = match (by_columns, interleaved) {
            (true, true) => (first * len, Rows::Across { width: rows * parts, first: part, step: 2 }),
            (true, false) => (first * len, Rows::Across { width: rows * parts, first: part * rows, step: 1 }),
            (false, true) => (first * len + part * row_len, Rows::InTurn),
            (false, false) => ((first + part) * len, Rows::Together),
        };
        let label = match (self.group.is_stacked(), parts) {
            (true, _) => format!("{name} of expert {expert}, {projection:?}"),
            (false, 2) => format!("{name}, {projection:?}"),
            (false, _) => name,
        };
        Ok(Piece { label, tensor, start, len, row_len, rows })
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
