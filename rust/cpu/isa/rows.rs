// SPDX-License-Identifier: Apache-2.0
//! The weight rows of a tile, a group at a time.

use super::tile::{CACHE_LINE, MAX_TILE_TOKENS, TILE_ROWS, Tile};
use crate::format::BLOCK_SIZE;

/// The rows of a tile, in groups of `GROUP` values.
pub struct Rows<'a, const GROUP: usize> {
    rows: [Row<'a>; TILE_ROWS],
    /// Groups of a row; the last one may be partial.
    pub groups: usize,
    /// Groups that are not.
    whole_groups: usize,
    tails: [Tail; TILE_ROWS],
}

/// How far ahead weights are asked for. Measured: 4 rows of 2 KiB into L1 beat 8, 16, and L2.
const ROWS_AHEAD: usize = 4;

#[derive(Clone, Copy)]
struct Row<'a> {
    codes: &'a [u8],
    block_scales: &'a [u8],
}

/// A last, partial group of up to 256 values, completed with zeros, so that nothing is read past the row.
#[derive(Clone, Copy)]
struct Tail {
    codes: [u8; 128],
    block_scales: [u8; 16],
}

impl<'a, const GROUP: usize> Rows<'a, GROUP> {
    /// Rows that the tile lacks repeat its last one: computed, never read.
    #[inline(always)]
    pub fn new(tile: &Tile<'a>) -> Self {
        assert!(tile.rows >= 1 && tile.rows <= TILE_ROWS && tile.x.len() <= MAX_TILE_TOKENS);
        let (code_stride, scale_stride) = (tile.reduction / 2, tile.reduction / BLOCK_SIZE);
        let spanned = (tile.rows - 1) * tile.row_step + 1;
        assert!(tile.codes.len() >= spanned * code_stride && tile.block_scales.len() >= spanned * scale_stride);
        let whole_groups = tile.reduction / GROUP;
        let mut rows = Rows {
            rows: [Row { codes: &[], block_scales: &[] }; TILE_ROWS],
            groups: tile.reduction.div_ceil(GROUP),
            whole_groups,
            tails: [Tail { codes: [0; 128], block_scales: [0; 16] }; TILE_ROWS],
        };
        for index in 0..TILE_ROWS {
            let at = index.min(tile.rows - 1) * tile.row_step;
            let codes = &tile.codes[at * code_stride..][..code_stride];
            let block_scales = &tile.block_scales[at * scale_stride..][..scale_stride];
            if rows.groups > whole_groups {
                let tail = &mut rows.tails[index];
                let (codes, scales) =
                    (&codes[whole_groups * GROUP / 2..], &block_scales[whole_groups * GROUP / BLOCK_SIZE..]);
                tail.codes[..codes.len()].copy_from_slice(codes);
                tail.block_scales[..scales.len()].copy_from_slice(scales);
            }
            rows.rows[index] = Row { codes, block_scales };
        }
        rows
    }

    /// Pointers to the `GROUP / 2` code bytes and `GROUP / 16` scales of a group.
    ///
    /// Rows lie behind one another: asking for one further on takes memory's latency out of the way.
    #[inline(always)]
    pub fn group(&self, row: usize, group: usize) -> (*const u8, *const u8) {
        if group >= self.whole_groups {
            return (self.tails[row].codes.as_ptr(), self.tails[row].block_scales.as_ptr());
        }
        let row = &self.rows[row];
        let codes = row.codes.as_ptr().wrapping_add(group * GROUP / 2);
        for line in (0..GROUP / 2).step_by(CACHE_LINE) {
            prefetch(codes.wrapping_add(line + ROWS_AHEAD * row.codes.len()));
        }
        (codes, row.block_scales.as_ptr().wrapping_add(group * GROUP / BLOCK_SIZE))
    }
}

/// Ask for the cache line at `address`, which need not be valid.
#[inline(always)]
fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults, and every x86-64 CPU has it.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast())
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
