// SPDX-License-Identifier: Apache-2.0
//! The row-tile size of the GEMMs of compute capability 12.x: how many token rows one CTA multiplies with its weight rows.
//!
//! Nobody who wrote this has such a GPU: the rule is reasoned, not tuned. Memory is what decoding is short of there, and a tile
//! reads an expert's weights once. So a tile should hold all of an expert's rows.

use super::kernels::GEMM_ROWS;
use crate::config::{LayerConfig, ONE_ORDER};
use crate::cuda::kernels::params;
use crate::cuda::tiles::TileTable;
use crate::error::Result;

/// The size by the mean of an expert's rows, `tokens * top_k / num_experts`: below the first number take the second. Rows
/// scatter around the mean by its root: `mean + 2 * sqrt(mean)` is what the size holds.
const SIZE_BY_MEAN_ROWS: &[(f64, u32)] = &[(4.0, 8), (9.75, 16), (22.5, 32), (50.0, 64)];
/// Beyond.
const LARGEST: u32 = 128;
/// That all sizes add alike no such GPU has shown: one for all calls.
const ROWS_OF_ONE_ORDER: u32 = 32;

/// The table of a layer, by tokens.
pub fn layer_table(config: &LayerConfig) -> Result<TileTable> {
    match config.tile_rows {
        None => Ok(TileTable::by_mean(SIZE_BY_MEAN_ROWS, LARGEST, &GEMM_ROWS, config)),
        Some(ONE_ORDER) => Ok(TileTable::always(ROWS_OF_ONE_ORDER)),
        Some(rows) => TileTable::only(rows, &GEMM_ROWS),
    }
}

/// Threads of a CTA with tiles of so many rows, as `kernels/sm120/config.cuh` has it.
pub fn threads(rows: u32) -> u32 {
    if rows >= params::GEMM_SM120_WIDE_ROWS { params::GEMM_SM120_WIDE_THREADS } else { params::GEMM_SM120_THREADS }
}

/// The size of a linear's GEMM: the smallest that holds all rows, or smaller ones while the CTAs, of two weight tiles each, do
/// not fill the multiprocessors. Smaller tiles read the weights again, from L2.
pub fn linear_rows(num_tokens: usize, m_tiles: usize, num_sms: u32) -> u32 {
    let fits = GEMM_ROWS.into_iter().find(|size| *size as usize >= num_tokens).unwrap_or(LARGEST);
    let fills = |size: &u32| num_tokens.div_ceil(*size as usize) * m_tiles.div_ceil(2) >= num_sms as usize;
    let filling = GEMM_ROWS.into_iter().rev().find(fills).unwrap_or(GEMM_ROWS[0]);
    fits.min(filling)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::tests::layer_config;

    #[test]
    fn a_size_holds_an_experts_usual_most_rows() {
        for (limit, size) in SIZE_BY_MEAN_ROWS {
            assert!((limit + 2.0 * limit.sqrt() - f64::from(*size)).abs() < 0.5, "{limit} rows in {size}");
        }
        let rows = |tokens| layer_table(&layer_config()).unwrap().rows(tokens); // 6 of 384
        assert_eq!(
            [1, 8, 255, 256, 623, 624, 1439, 1440, 3199, 3200].map(rows),
            [8, 8, 8, 16, 16, 32, 32, 64, 64, 128]
        );
        let all = LayerConfig { top_k: 6, num_experts: 6, ..layer_config() };
        assert_eq!(layer_table(&all).unwrap().rows(8), 8, "8 tokens have at most 8 rows of an expert");
    }

    #[test]
    fn a_benchmark_may_ask_for_a_size_that_there_is() {
        let forced = |rows| layer_table(&LayerConfig { tile_rows: Some(rows), ..layer_config() });
        assert_eq!(forced(32).unwrap().rows(1), 32);
        assert_eq!([1, 100_000].map(|tokens| forced(ONE_ORDER).unwrap().rows(tokens)), [32, 32]);
        let text = forced(24).unwrap_err().to_string();
        assert!(text.contains("tile_rows is 24; it must be 0 (the library chooses) or one of [8, 16, 32"), "{text}");
    }

    #[test]
    fn a_linear_fills_the_multiprocessors() {
        assert_eq!(linear_rows(1, 32, 188), 8);
        assert_eq!(linear_rows(64, 32, 188), 8, "16 CTAs of 64 rows, 128 of 8");
        assert_eq!(linear_rows(64, 376, 188), 64, "188 CTAs");
        assert_eq!(linear_rows(4096, 256, 188), 128);
    }
}
