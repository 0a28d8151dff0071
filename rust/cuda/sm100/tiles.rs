// SPDX-License-Identifier: Apache-2.0
//! Token rows of a tile, at most. A tile multiplies as many as it has, so that the size decides only how often weights are
//! read again, and how much of a multiprocessor is left to read ahead. All are multiples of 64: an expert's tiles start at
//! multiples of 64 of its rows, which is how the tensor core's scales have been used before (`kernels/sm100/config.cuh`).

use crate::config::{LayerConfig, Mode, ONE_ORDER};
use crate::cuda::tiles::{TileTable, check_rows};
use crate::error::Result;

/// Of a layer's tiles, and of a linear's in mode bf16: with a gate there are twice as many sums.
pub const LAYER_ROWS: [u32; 2] = [64, 128];
/// Of a linear's in mode nvfp4.
pub const LINEAR_ROWS: [u32; 3] = [64, 128, 256];

/// By tokens: 64 rows while an expert has no more in the mean, then 128.
pub fn layer_table(config: &LayerConfig) -> Result<TileTable> {
    let [few, many] = LAYER_ROWS;
    match config.tile_rows {
        None => {
            let most_tokens = few as usize * config.num_experts / config.top_k;
            Ok(TileTable::new(vec![(most_tokens, few)], many))
        }
        Some(ONE_ORDER) => Ok(TileTable::always(few)), // that both sizes add alike no such GPU has shown
        Some(rows) => TileTable::only(rows, &LAYER_ROWS),
    }
}

/// Refuse what a linear has no kernel for, in the mode that takes most sizes; [`linear_rows`] keeps to the mode's own.
pub fn check_linear_rows(rows: u32) -> Result<()> {
    check_rows(rows, &LINEAR_ROWS)
}

/// The largest size that no more than doubles a linear's tokens, and gives every multiprocessor a tile.
pub fn linear_rows(asked: Option<u32>, mode: Mode, num_tokens: usize, m_tiles: usize, num_sms: u32) -> u32 {
    let sizes: &[u32] = if mode == Mode::Nvfp4 { &LINEAR_ROWS } else { &LAYER_ROWS };
    let [smallest, largest] = [sizes[0], sizes[sizes.len() - 1]];
    if let Some(rows) = asked {
        return rows.min(largest);
    }
    let serves = |rows: &&u32| {
        let row_tiles = num_tokens.div_ceil(**rows as usize);
        num_tokens > **rows as usize / 2 && row_tiles * m_tiles >= num_sms as usize
    };
    sizes.iter().rev().find(serves).copied().unwrap_or(smallest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::tests::layer_config;

    #[test]
    fn a_layers_tiles_hold_the_mean_of_an_experts_rows() {
        let config = LayerConfig { top_k: 8, num_experts: 256, ..layer_config() };
        let table = layer_table(&config).unwrap();
        assert_eq!([1, 2048, 2049, 100_000].map(|tokens| table.rows(tokens)), [64, 64, 128, 128]);
        let forced = |rows| layer_table(&LayerConfig { tile_rows: Some(rows), ..layer_config() });
        assert_eq!(forced(128).unwrap().rows(1), 128);
        assert_eq!([1, 100_000].map(|tokens| forced(ONE_ORDER).unwrap().rows(tokens)), [64, 64]);
        let text = forced(256).unwrap_err().to_string();
        assert!(text.contains("tile_rows is 256; it must be 0 (the library chooses) or one of [64, 128]"), "{text}");
    }

    #[test]
    fn a_linear_fills_the_multiprocessors() {
        let rows = |tokens, m_tiles| linear_rows(None, Mode::Nvfp4, tokens, m_tiles, 148);
        assert_eq!([rows(1, 300), rows(64, 300), rows(100, 300), rows(4096, 300)], [64, 64, 128, 256]);
        assert_eq!(rows(4096, 8), 128, "16 row tiles of 256 by 8 are not enough");
        assert_eq!(rows(512, 8), 64);
        assert_eq!(linear_rows(None, Mode::Bf16, 4096, 300, 148), 128, "sums and weights share tensor memory");
        assert_eq!(linear_rows(Some(256), Mode::Bf16, 1, 1, 148), 128);
    }
}
