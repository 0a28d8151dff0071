// SPDX-License-Identifier: Apache-2.0
//! What a family of kernels is: how prepared weights and rows lie, and which GEMMs read them.
//!
//! A family is a folder here (`hopper/`, `portable/`), a folder under `kernels/`, and one row in `families.rs`. All else in
//! `cuda/` is shared, and asks. A method that launches gets one call of a layer or a linear; each family has parameter
//! structs of its own, so that its kernels stay readable.

use super::device::Device;
use super::forward::LayerCall;
use super::kernels::Row;
use super::linear_call::LinearCall;
use super::plan::{Form, PlanRules};
use super::prepare::{CountedScales, Source};
use super::storage::Matrix;
use super::tiles::TileTable;
use crate::call::{LayerWeights, Stream};
use crate::config::{LayerConfig, Mode, WeightForm};
use crate::error::{Error, Result};
use crate::workspace::Walk;
use std::fmt::Debug;
use std::sync::Arc;

/// A family of kernels.
pub trait Family: Debug + Sync {
    /// Made for the GPUs that it runs on? Else for any.
    fn is_own(&self) -> bool;

    /// Does it run on a GPU of this compute capability?
    fn runs_on(&self, capability: (i32, i32)) -> bool;

    /// Its table of kernels.
    fn kernels(&self) -> &'static [Row];

    /// Do tiles of so many rows start where no vendor's kernel starts any? The instruction set defines them; such a size is
    /// used on a chip once the self-test has seen it compute right there.
    fn needs_proof(&self, _: u32) -> bool {
        false
    }

    /// [`Family::tile_table`] without the sizes that need a proof, where it has such sizes.
    fn tile_table_without_proof(&self, config: &LayerConfig) -> Result<TileTable> {
        self.tile_table(config)
    }

    /// Refuse a layer's mode that it has no kernels for.
    fn check_mode(&self, ordinal: i32, mode: Mode) -> Result<()>;

    /// Where the next weight matrix of a slice lies: rows of the checkpoint's tensor, gate and up together, by columns.
    fn matrix(&self, walk: &mut Walk, form: WeightForm, rows: usize, cols: usize) -> Matrix;

    /// What the output factors must hold beside the global scales, because its GEMMs' products lack it.
    fn missing_factor(&self, mode: Mode) -> f32;

    /// How a layer's calls are laid out, in the mode of `config`.
    fn plan_rules(&self, config: &LayerConfig) -> PlanRules;

    /// What quantising a linear's input leaves; `None` where the GEMM reads the caller's x.
    fn linear_x(&self, mode: Mode) -> Option<Form>;

    /// Rows of a layer's tiles, by the tokens of a call.
    fn tile_table(&self, config: &LayerConfig) -> Result<TileTable>;

    /// Rows of a linear's tiles that a benchmark asks for; refuse what it has no kernels for.
    fn check_tile_rows(&self, rows: u32) -> Result<()>;

    /// Rows of a weight matrix of so many columns that its prepare can launch over, at most.
    fn most_rows(&self, cols: usize) -> usize;

    /// Refuse a matrix that no launch could prepare.
    fn check_rows(&self, name: &str, rows: usize, cols: usize) -> Result<()> {
        let most = self.most_rows(cols);
        if rows <= most {
            return Ok(());
        }
        let rule = format!("with {cols} columns it must be at most {most}, which one launch can prepare");
        Err(Error::argument(name, rows, rule, "Split the linear."))
    }

    /// Count what mode fp8 asks of the block scales, where preparing needs to know.
    ///
    /// # Safety
    /// The block scales are device memory as the header states. The device is entered.
    unsafe fn count_scales(
        &self,
        device: &Arc<Device>,
        config: &LayerConfig,
        weights: &LayerWeights,
        stream: Stream,
    ) -> Result<Option<CountedScales>>;

    /// Enqueue the repacking of one matrix of all experts.
    ///
    /// # Safety
    /// The pointers of `source` and the storage are device memory of the sizes that `matrix` has.
    unsafe fn prepare_matrix(
        &self,
        device: &Device,
        matrix: &Matrix,
        source: &Source,
        storage: *mut u8,
        stream: Stream,
    ) -> Result<()>;

    /// Enqueue a whole call in launches of its own, where it is one that there are such kernels for. False: nothing was done.
    ///
    /// # Safety
    /// The pointers of the call are device memory as the header states.
    unsafe fn whole_call(&self, _: &LayerCall) -> Result<bool> {
        Ok(false)
    }

    /// From x to h, GEMM2's input, for a chunk: quantisers, GEMM1, the activation.
    ///
    /// # Safety
    /// The pointers of the call are device memory as the header states.
    unsafe fn gemm1(&self, call: &LayerCall, chunk: usize) -> Result<()>;

    /// From h to y, for a chunk.
    ///
    /// # Safety
    /// As [`Family::gemm1`], after it.
    unsafe fn gemm2(&self, call: &LayerCall, chunk: usize) -> Result<()>;

    /// A linear's GEMM, bias included.
    ///
    /// # Safety
    /// The pointers of the call are device memory as the header states.
    unsafe fn linear(&self, call: &LinearCall) -> Result<()>;
}
