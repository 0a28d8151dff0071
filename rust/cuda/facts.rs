//! What Rust states and the C++ of `kernels/` states too. `tests/oracle` compares the two; nobody else needs it.

pub use super::kernels::params::{FP8_LARGEST_EXPONENT, GEMM_SM90_FOUR_TILES_THREADS, GEMM_SM90_THREADS};
pub use super::plan::{LayerPlan, fp8_row_bytes};
pub use super::prepare::missing_factor;
pub use super::storage::{ExpertSlice, TILE};
pub use super::tiles::{GEMM_ROWS, rounds, tiles_of_cta};
