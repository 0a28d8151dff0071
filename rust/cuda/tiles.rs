//! The row-tile size of a GEMM: how many token rows one CTA multiplies with its weight rows.

use super::device::Shape;
use super::kernels::{Kernel, params};
use crate::config::Kernels;
use crate::error::{Error, Result};

/// What becomes of the result of a GEMM of Hopper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GemmKind {
    /// Clamped SwiGLU of gate and up, to bf16.
    Gemm1,
    /// The same, of e4m3 rows and weights prepared for mode fp8.
    Gemm1Fp8,
    /// f32 for combine.
    Gemm2,
    /// The same, of e4m3 rows.
    Gemm2Fp8,
    /// bf16 with bias.
    Linear,
}

impl GemmKind {
    /// Every kind.
    pub const ALL: [GemmKind; 5] = {
        use GemmKind::*;
        [Gemm1, Gemm1Fp8, Gemm2, Gemm2Fp8, Linear]
    };

    /// The stem of its kernels' names.
    pub fn name(self) -> &'static str {
        match self {
            GemmKind::Gemm1 => "gemm1",
            GemmKind::Gemm1Fp8 => "gemm1_fp8",
            GemmKind::Gemm2 => "gemm2",
            GemmKind::Gemm2Fp8 => "gemm2_fp8",
            GemmKind::Linear => "linear",
        }
    }
}

/// Row-tile sizes that Hopper's GEMMs are compiled for (`GEMM_SM90_ROW_TILES` of kernels/hopper/params.h).
pub const GEMM_ROWS: [u32; 11] = [8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 144];

/// What a tile costs beside its rows, in rows: mostly dequantising weights, which takes issue slots, and the more of them
/// while tensor cores read and write registers (measured: 200 clocks and 2.3 a row for 2 x 64 x 64 weights).
fn tile_overhead(kernel: u32) -> f64 {
    match kernel {
        params::GEMM_SM90_FOUR_TILES_ROWS..=112 => 64.0, // stages of three slabs or four: slabs_of_stage in hopper/config.cuh
        _ => 80.0,
    }
}

/// The kernel of a GEMM with this row-tile size, and its launch for up to `tiles` tiles. A CTA takes all of a
/// multiprocessor's shared memory.
pub fn gemm_launch(kind: GemmKind, tile_rows: u32, tiles: usize, num_sms: u32) -> (Kernel, Shape) {
    let weight_tiles = tiles_of_cta(tile_rows, kind == GemmKind::Linear);
    let threads = if weight_tiles == 4 { params::GEMM_SM90_FOUR_TILES_THREADS } else { params::GEMM_SM90_THREADS };
    let most = tiles * weight_tiles.min(2); // halves, in the last round
    let blocks = most.clamp(1, num_sms as usize) as u32;
    (Kernel::GemmSm90(kind, tile_rows), Shape::new([blocks, 1, 1], threads, params::GEMM_SM90_SHARED_BYTES))
}

/// Rows, and features, of a tile of the portable GEMMs.
pub const PORTABLE_ROWS: u32 = params::GEMM_PORTABLE_TILE;

/// What the branches of the widest kernel cost, which choose a tile's columns, in rows.
const WIDEST_OVERHEAD: f64 = 4.0;

/// What the widest kernel multiplies for a tile of so many rows.
fn widest_columns(rows: f64) -> u32 {
    let coarse = (params::GEMM_SM90_FEWEST_COLUMNS..params::GEMM_SM90_COARSE_COLUMNS)
        .step_by(params::GEMM_SM90_COARSE_STEP as usize);
    let fine = (params::GEMM_SM90_COARSE_COLUMNS..params::GEMM_SM90_WIDEST_ROWS)
        .step_by(params::GEMM_SM90_COLUMN_STEP as usize);
    coarse.chain(fine).find(|columns| f64::from(*columns) >= rows).unwrap_or(params::GEMM_SM90_WIDEST_ROWS)
}

/// What an expert's rows cost in tiles of a kernel, in rows: they are spread evenly over as few tiles as hold them, and the
/// widest kernel multiplies as many columns as a tile has, in steps.
fn expert_cost(rows: f64, kernel: u32) -> f64 {
    let tiles = (rows / f64::from(kernel)).ceil();
    let columns = match kernel {
        params::GEMM_SM90_WIDEST_ROWS => f64::from(widest_columns(rows / tiles)) + WIDEST_OVERHEAD,
        _ => f64::from(kernel),
    };
    tiles * (columns + tile_overhead(kernel))
}

/// The tile in which an expert's rows under uniform routing cost least.
///
/// They are binomial, near enough to normal; a token has at most one row of each expert.
pub fn tile_rows(num_tokens: usize, top_k: usize, num_experts: usize) -> u32 {
    let share = top_k as f64 / num_experts as f64;
    let mean = num_tokens as f64 * share;
    let deviation = (mean * (1.0 - share)).sqrt();
    let cost = |kernel: u32| -> f64 {
        let likely = (-32..=32).map(|eighth| f64::from(eighth) / 8.0).map(|z: f64| {
            let rows = (mean + z * deviation).round().clamp(1.0, num_tokens.max(1) as f64);
            (-z * z / 2.0).exp() * expert_cost(rows, kernel)
        });
        likely.sum()
    };
    GEMM_ROWS.into_iter().min_by(|a, b| cost(*a).total_cmp(&cost(*b))).unwrap_or(GEMM_ROWS[0])
}

/// What a CTA's tile costs beside its rows, in rows, where one matrix has to fill all multiprocessors: mostly dequantising.
const LINEAR_OVERHEAD: usize = 48;

/// Weight tiles of a CTA. A linear is one matrix: fewer tiles, so that more CTAs share it.
pub fn tiles_of_cta(rows: u32, is_linear: bool) -> usize {
    let four = match is_linear {
        true => params::GEMM_SM90_LINEAR_FOUR_TILES_ROWS,
        false => params::GEMM_SM90_FOUR_TILES_ROWS,
    };
    match rows {
        rows if rows >= four => 4,
        params::GEMM_SM90_TWO_TILES_ROWS.. => 2,
        _ => 1,
    }
}

/// Rounds that tiles of so many weight tiles take. The last is done in halves where there is room for twice its tiles
/// (`for_each_tile` in common/tiles.cuh), in 67 to 70 % of the time (measured).
pub fn rounds(tiles: usize, weight_tiles: usize, num_sms: u32) -> f64 {
    let in_last = tiles % num_sms as usize;
    let halved = weight_tiles > 1 && in_last > 0 && 2 * in_last <= num_sms as usize;
    tiles.div_ceil(num_sms as usize) as f64 - if halved { 0.3 } else { 0.0 }
}

/// The tile of a linear: the one whose rounds over all multiprocessors, each as long as its tile, take least. Few weight rows
/// are spread by more and smaller row tiles, which read the weights again from L2.
pub fn linear_tile_rows(num_tokens: usize, m_tiles: usize, num_sms: u32) -> u32 {
    let cost = |rows: u32| {
        let weight_tiles = tiles_of_cta(rows, true);
        let tiles = num_tokens.div_ceil(rows as usize) * m_tiles.div_ceil(weight_tiles);
        rounds(tiles, weight_tiles, num_sms) * (weight_tiles * (rows as usize + LINEAR_OVERHEAD)) as f64
    };
    GEMM_ROWS.into_iter().min_by(|a, b| cost(*a).total_cmp(&cost(*b))).unwrap_or(GEMM_ROWS[0])
}

/// The row-tile size that the environment asks all Hopper GEMMs to use, so that a benchmark can sweep it.
pub fn forced_rows(kernels: Kernels) -> Result<Option<u32>> {
    const NAME: &str = "NVFP4_MOE_TILE_ROWS";
    let (Kernels::Hopper, Ok(value)) = (kernels, std::env::var(NAME)) else { return Ok(None) };
    match GEMM_ROWS.into_iter().find(|rows| rows.to_string() == value) {
        Some(rows) => Ok(Some(rows)),
        None => {
            let rule = format!("it must be one of {GEMM_ROWS:?}");
            Err(Error::argument(NAME, value, rule, "Unset it: the library chooses."))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_grow_with_rows_per_expert() {
        assert_eq!(tile_rows(1, 6, 256), 8, "one token has at most one row of each expert");
        assert_eq!(tile_rows(8, 6, 6), 8, "8 tokens have at most 8");
        assert_eq!(tile_rows(512, 6, 256), 24, "12 rows, up to 19 in nearly all experts");
        assert_eq!(tile_rows(1024, 6, 384), 24, "16 rows, up to 24");
        assert_eq!(tile_rows(1024, 6, 256), 48, "24 rows, up to 34");
        assert_eq!(tile_rows(2048, 6, 384), 48, "32 rows, up to 44");
        assert_eq!(tile_rows(8192, 6, 384), 144, "128 rows, up to 150");
        assert_eq!(tile_rows(4096, 6, 384), 80, "64 rows, up to 88");
        assert_eq!([40.0, 48.5, 81.0, 112.0, 113.0, 144.0].map(widest_columns), [48, 80, 112, 112, 128, 144]);
        assert_eq!(tile_rows(4096, 6, 256), 112, "96 rows, up to 116");
        assert_eq!(tile_rows(8192, 6, 256), 112, "192 rows are two tiles of 96, up to 232 of 112");
    }

    #[test]
    fn a_linear_fills_the_multiprocessors() {
        // 2048 weight rows are 32 tiles: 64 tokens in tiles of 16 make 128 CTAs, in one tile of 64 only 8.
        assert_eq!(linear_tile_rows(64, 32, 132), 16);
        assert_eq!(linear_tile_rows(512, 32, 132), 64, "16 blocks of two weight tiles, 8 row tiles");
        assert_eq!(linear_tile_rows(1, 32, 132), 8);
        assert_eq!(linear_tile_rows(64, 112, 132), 64, "56 CTAs, which become 112 of half as many weights");
        assert_eq!(linear_tile_rows(256, 32, 132), 64, "64 CTAs, which become 128");
        assert_eq!(linear_tile_rows(4096, 256, 132), 128, "2048 CTAs in 16 rounds, the last all but full");
    }
}
