//! The weight rows of a tile, a group at a time.

use super::{CACHE_LINE, MAX_TILE_TOKENS, TILE_ROWS, Tile};
use crate::format::BLOCK_SIZE;

/// One weight row.
#[derive(Clone, Copy)]
pub struct Row<'a> {
    codes: &'a [u8],
    block_scales: &'a [u8],
}

/// Room for a last, partial group of up to 256 values.
#[derive(Default)]
pub struct Spare {
    codes: [[u8; 32]; 4],
    block_scales: [u8; 16],
}

/// The rows of a tile. Rows that are not there repeat the last one: computed, never read.
#[inline(always)]
pub fn rows_of<'a>(tile: &Tile<'a>) -> [Row<'a>; TILE_ROWS] {
    assert!(tile.rows >= 1 && tile.rows <= TILE_ROWS && tile.x.len() <= MAX_TILE_TOKENS);
    let (code_stride, scale_stride) = (tile.reduction / 2, tile.reduction / BLOCK_SIZE);
    assert!(tile.codes.len() >= tile.rows * code_stride && tile.block_scales.len() >= tile.rows * scale_stride);
    let mut rows = [Row { codes: &[], block_scales: &[] }; TILE_ROWS];
    for (index, row) in rows.iter_mut().enumerate() {
        let index = index.min(tile.rows - 1);
        row.codes = &tile.codes[index * code_stride..][..code_stride];
        row.block_scales = &tile.block_scales[index * scale_stride..][..scale_stride];
    }
    rows
}

impl Row<'_> {
    /// Pointers to the `GROUP / 2` code bytes and `GROUP / 16` scales of a group. A last, partial group is copied to
    /// `spare` first, so that nothing is read past the row.
    ///
    /// The row [`TILE_ROWS`] on lies behind this one: asking for it now takes memory's latency out of the way.
    #[inline(always)]
    pub fn group<const GROUP: usize>(&self, group: usize, spare: &mut Spare) -> (*const u8, *const u8) {
        let (code, scale) = (group * GROUP / 2, group * GROUP / BLOCK_SIZE);
        if code + GROUP / 2 <= self.codes.len() {
            for line in (0..GROUP / 2).step_by(CACHE_LINE) {
                prefetch(self.codes.as_ptr().wrapping_add(code + line + TILE_ROWS * self.codes.len()));
            }
            return (self.codes[code..].as_ptr(), self.block_scales[scale..].as_ptr());
        }
        *spare = Spare::default();
        spare.codes.as_flattened_mut()[..self.codes.len() - code].copy_from_slice(&self.codes[code..]);
        spare.block_scales[..self.block_scales.len() - scale].copy_from_slice(&self.block_scales[scale..]);
        (spare.codes.as_ptr().cast(), spare.block_scales.as_ptr())
    }

    /// Groups of a row.
    #[inline(always)]
    pub fn groups<const GROUP: usize>(&self) -> usize {
        self.codes.len().div_ceil(GROUP / 2)
    }
}

/// Ask for the cache line at `address`, which need not be valid.
#[inline(always)]
fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults, and every x86-64 CPU has it.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(address.cast())
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Most lanes of an accumulator.
pub const MAX_LANES: usize = 16;

/// Sum of the lanes, halving: a fixed order.
#[inline(always)]
pub fn sum_lanes(lanes: &[f32; MAX_LANES], count: usize) -> f32 {
    let mut lanes = *lanes;
    let mut half = count / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}
