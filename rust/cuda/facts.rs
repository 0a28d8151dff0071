// SPDX-License-Identifier: Apache-2.0
//! What Rust states and the C++ of `kernels/` states too. `tests/oracle` compares the two; nobody else needs it.

pub use super::hopper::{FP8_ROWS, GEMM_ROWS, fp8_row_bytes, rounds, threads_of_cta, tiles_of_cta};
pub use super::kernels::ROUTE_SHARED_BYTES;
pub use super::kernels::params::{FP8_LARGEST_EXPONENT, GEMM_SM120_SHARED_BYTES, ROUTE_CLUSTER_BLOCKS};
pub use super::plan::LayerPlan;
pub use super::self_test::forced as self_test;
pub use super::sm100::{LAYER_ROWS, LINEAR_ROWS};
pub use super::sm120::{GEMM_ROWS as SM120_GEMM_ROWS, threads as sm120_threads};
pub use super::storage::{ExpertSlice, TILE};

use super::families;
use super::family::Family;
use super::hopper::Hopper;
use super::sm100::Sm100;
use super::sm120::Sm120;
use crate::config::{LayerConfig, Mode, WeightForm};
use crate::error::Result;
use crate::shape::MoeShape;

/// How Hopper lays out the experts of a layer.
pub fn hopper_slice(form: WeightForm, hidden: usize, inter: usize) -> ExpertSlice {
    let shape = MoeShape { experts: 1, hidden, inter, projections: 2 };
    ExpertSlice::new(shape, false, |walk, rows, cols| Hopper.matrix(walk, form, rows, cols))
}

/// How compute capability 10.x lays out the experts of a layer.
pub fn sm100_slice(hidden: usize, inter: usize) -> ExpertSlice {
    let shape = MoeShape { experts: 1, hidden, inter, projections: 2 };
    ExpertSlice::new(shape, false, |walk, rows, cols| Sm100.matrix(walk, WeightForm::Exact, rows, cols))
}

/// What Hopper's products of bf16 lack.
pub fn hopper_missing_factor() -> f32 {
    Hopper.missing_factor(Mode::Bf16)
}

/// The same of compute capability 12.x.
pub fn sm120_missing_factor() -> f32 {
    Sm120.missing_factor(Mode::Bf16)
}

/// Every family's plan of a call.
pub fn plans(config: &LayerConfig, num_tokens: usize) -> Result<Vec<LayerPlan>> {
    let plan = |family: &dyn Family| {
        let tile_rows = family.tile_table(config)?.rows(num_tokens);
        Ok(LayerPlan::new(&family.plan_rules(config), config, tile_rows, num_tokens))
    };
    families::ALL.into_iter().map(plan).collect()
}
