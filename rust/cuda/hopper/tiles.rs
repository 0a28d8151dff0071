// SPDX-License-Identifier: Apache-2.0
//! The row-tile size of Hopper's GEMMs: how many token rows one CTA multiplies with its weight rows.

use super::kernels::{FP8_ROWS, GEMM_ROWS, ROUNDED_ROWS};
use crate::config::{LayerConfig, Mode, ONE_ORDER, WeightForm};
use crate::cuda::kernels::params;
use crate::cuda::storage::TILE;
use crate::cuda::tiles::TileTable;
use crate::error::Result;

/// The size by the mean of an expert's rows, `tokens * top_k / num_experts`: below the first number take the second.
///
/// From the model in this file's tests, which was fitted to sweeps of every size on an H100 and an H200
/// (`tests/bench/gpu_tiles.py`; docs/measurements.md). An expert's rows scatter around the mean, so a size must hold the usual
/// most of them, and two even tiles cost less than one that is full and one that is not. Of the sizes that cost up to 1 % more than
/// the best under uniform routing, the one is taken that costs least where routing is skewed. The last column is a workload of each row.
const SIZE_BY_MEAN_ROWS: &[(f64, u32)] = &[
    (5.2, 8),     // decoding: Flash up to 221 tokens, Pro up to 332
    (10.2, 16),   // Flash, 256 tokens: 6 rows, up to 11; Pro, 512: 8 rows, up to 14
    (15.8, 24),   // Flash, 512 tokens: 12 rows, up to 19
    (25.8, 32),   // Flash, 1024 tokens: 24 rows, up to 34; Pro, 1024: 16 rows, up to 24
    (41.37, 48),  // Pro, 2048: 32 rows, up to 44
    (57.1, 64),   // Flash, 2048 tokens: 48 rows, up to 62
    (70.2, 80),   // Pro, 4096 tokens: 64 rows, up to 80
    (85.2, 96),   // Kimi-K2, 4096 tokens: 85 rows, just below
    (99.5, 112),  // Flash, 4096 tokens: 96 rows, up to 116
    (153.0, 144), // Pro, 8192 tokens: 128 rows, up to 150
    (181.0, 96),  // Kimi-K2, 8192 tokens: 171 rows are two tiles of 86
    (215.5, 112), // Flash, 8192 tokens: 192 rows are two tiles of 96
    (290.7, 144), // Qwen3-235B, 4096 tokens: 256 rows are two tiles of 128
    (334.4, 112), // three tiles of 100 to 112
];

/// Beyond the table: so many tiles that it matters little how full the last is, but where routing leaves an expert few rows.
const SIZE_OF_MANY_ROWS: u32 = 144;

/// The same of e4m3 rows, found by the bare GEMMs on an H200. Tensor cores are twice as fast there, and so dequantising
/// weights is more of a tile's time: an expert's rows are better in one tile of 208 than in two, and the widest bf16 kernel
/// pays more for its branches.
const FP8_SIZE_BY_MEAN_ROWS: &[(f64, u32)] = &[
    (5.6, 8),     // decoding: Flash up to 238 tokens, Pro up to 358
    (11.85, 16),  // Pro, 512 tokens: 8 rows, up to 14
    (18.65, 24),  // Flash, 512 tokens: 12 rows, up to 19; Pro, 1024: 16 rows, up to 24
    (27.4, 32),   // Flash, 1024 tokens: 24 rows, up to 34
    (41.4, 48),   // Pro, 2048 tokens: 32 rows, up to 44
    (56.2, 64),   // Flash, 2048 tokens: 48 rows, up to 62
    (70.3, 80),   // Pro, 4096 tokens: 64 rows, up to 80
    (85.2, 96),   // Kimi-K2, 4096 tokens: 85 rows, just below
    (102.6, 112), // Flash, 4096 tokens: 96 rows, up to 116
    (139.0, 144), // Pro, 8192 tokens: 128 rows, up to 150
    (203.3, 208), // Flash, 8192 tokens: 192 rows, up to 220; Kimi-K2, 8192: 171 rows
    (219.4, 112), // two tiles
    (286.7, 144), // Qwen3-235B, 4096 tokens: 256 rows are two tiles of 128
    (306.4, 112), // three tiles
];

/// Beyond that table.
const FP8_SIZE_OF_MANY_ROWS: u32 = 208;

/// Multiprocessors of the GPUs that sizes were swept on.
const SMS: f64 = 132.0;

/// From so many rounds of GEMM1 on a call takes tiles of 16 rows at least, whatever an expert's rows. Their CTAs have four
/// weight tiles and do not split K, which is faster, but leave more multiprocessors idle in the last round (H200, 9 to 256
/// tokens of Pro EP8, Flash EP8 and Flash EP1, 8 and 16 rows forced: docs/measurements.md).
fn rounds_for_four_tiles(mode: Mode) -> f64 {
    match mode {
        Mode::Bf16 => 9.0,
        Mode::Nvfp4 => 3.5,
        Mode::Fp8 => 13.0,
    }
}

/// Rounds over all multiprocessors in which CTAs of four weight tiles do GEMM1, if no expert has more rows than a tile:
/// under uniform routing so many experts have a row.
fn rounds_of_four_tiles(num_tokens: usize, config: &LayerConfig) -> f64 {
    let without_a_row = (1.0 - config.top_k as f64 / config.num_experts as f64).powi(num_tokens as i32);
    let experts = config.num_local_experts as f64 * (1.0 - without_a_row);
    let weight_rows = config.activation.projections() * config.intermediate_size;
    experts * weight_rows.div_ceil(4 * TILE) as f64 / SMS
}

/// The least tokens whose rounds are enough for four weight tiles a CTA; none if the layer is too small.
fn tokens_for_four_tiles(config: &LayerConfig) -> Option<usize> {
    let is_enough = |tokens: usize| rounds_of_four_tiles(tokens, config) >= rounds_for_four_tiles(config.mode);
    let (mut too_few, mut enough) = (0, 1 << 16); // which leaves no expert without a row
    if !is_enough(enough) {
        return None;
    }
    while enough - too_few > 1 {
        let middle = (too_few + enough) / 2;
        if is_enough(middle) { enough = middle } else { too_few = middle }
    }
    Some(enough)
}

/// The sizes that the kernels of a layer are compiled for.
fn sizes_of(config: &LayerConfig) -> &'static [u32] {
    match (config.mode, config.weight_form()) {
        (Mode::Fp8, WeightForm::Fp8) => &ROUNDED_ROWS,
        (Mode::Fp8, _) => &FP8_ROWS,
        (Mode::Bf16 | Mode::Nvfp4, _) => &GEMM_ROWS,
    }
}

/// The sizes by the mean of an expert's rows, and the one beyond.
fn sizes_by_mean(mode: Mode) -> (&'static [(f64, u32)], u32) {
    match mode {
        Mode::Fp8 => (FP8_SIZE_BY_MEAN_ROWS, FP8_SIZE_OF_MANY_ROWS),
        Mode::Bf16 | Mode::Nvfp4 => (SIZE_BY_MEAN_ROWS, SIZE_OF_MANY_ROWS),
    }
}

/// Those whose sums have one order: warpgroups share weight tiles, and not the reduction.
fn sizes_of_one_order(sizes: &[u32]) -> &[u32] {
    let first = sizes.partition_point(|rows| *rows < params::GEMM_SM90_FOUR_TILES_ROWS);
    &sizes[first..]
}

/// The table of a layer, by tokens.
pub fn layer_table(config: &LayerConfig) -> Result<TileTable> {
    let sizes = match config.tile_rows {
        None => sizes_of(config),
        Some(ONE_ORDER) => sizes_of_one_order(sizes_of(config)),
        Some(rows) => return TileTable::only(rows, sizes_of(config)),
    };
    let (by_mean, beyond) = sizes_by_mean(config.mode);
    let table = TileTable::by_mean(by_mean, beyond, sizes, config);
    Ok(match tokens_for_four_tiles(config) {
        Some(tokens) => table.at_least(params::GEMM_SM90_FOUR_TILES_ROWS, tokens.max(sizes[0] as usize + 1)),
        None => table,
    })
}

/// Weight tiles of a CTA, as `tiles_of_cta` of `kernels/hopper/config.cuh`. A linear is one matrix: fewer tiles, so that more
/// CTAs share it.
pub fn tiles_of_cta(rows: u32, column_bytes: usize, is_linear: bool) -> usize {
    let four = match is_linear {
        true => params::GEMM_SM90_LINEAR_FOUR_TILES_ROWS,
        false => params::GEMM_SM90_FOUR_TILES_ROWS,
    };
    match rows {
        params::GEMM_SM90_FP8_WIDE_ROWS.. if column_bytes == 1 => 2,
        rows if rows >= four => 4,
        params::GEMM_SM90_TWO_TILES_ROWS.. => 2,
        _ => 1,
    }
}

/// Threads of a CTA, as `kFitsLaunch` there: fewer where a warpgroup has two weight tiles, or the most rows.
pub fn threads_of_cta(rows: u32, column_bytes: usize, is_linear: bool) -> u32 {
    let four_groups = column_bytes == 2 && rows <= params::GEMM_SM90_FOUR_GROUPS_ROWS;
    match tiles_of_cta(rows, column_bytes, is_linear) {
        4 if !four_groups => params::GEMM_SM90_FEW_THREADS,
        _ if rows >= params::GEMM_SM90_FP8_WIDE_ROWS => params::GEMM_SM90_FEW_THREADS,
        _ => params::GEMM_SM90_THREADS,
    }
}

/// What a CTA's tile costs beside its rows, in rows, where one matrix has to fill all multiprocessors: mostly dequantising.
const LINEAR_OVERHEAD: usize = 48;

/// Rounds that tiles of so many weight tiles take. The last is done in halves where there is room for twice its tiles
/// (`for_each_tile` in kernels/common/tiles.cuh), in 67 to 70 % of the time (measured).
pub fn rounds(tiles: usize, weight_tiles: usize, num_sms: u32) -> f64 {
    let in_last = tiles % num_sms as usize;
    let halved = weight_tiles > 1 && in_last > 0 && 2 * in_last <= num_sms as usize;
    tiles.div_ceil(num_sms as usize) as f64 - if halved { 0.3 } else { 0.0 }
}

/// The size of a linear's GEMM: the one whose rounds over all multiprocessors, each as long as its tile, take least. Few
/// weight rows are spread by more and smaller row tiles, which read the weights again from L2. Integers and eleven sizes: a
/// table would say no more.
pub fn linear_rows(num_tokens: usize, m_tiles: usize, num_sms: u32) -> u32 {
    let cost = |rows: u32| {
        let weight_tiles = tiles_of_cta(rows, 2, true);
        let tiles = num_tokens.div_ceil(rows as usize) * m_tiles.div_ceil(weight_tiles);
        rounds(tiles, weight_tiles, num_sms) * (weight_tiles * (rows as usize + LINEAR_OVERHEAD)) as f64
    };
    GEMM_ROWS.into_iter().min_by(|a, b| cost(*a).total_cmp(&cost(*b))).unwrap_or(GEMM_ROWS[0])
}

#[cfg(test)]
mod tests;
