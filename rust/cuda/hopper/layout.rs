// SPDX-License-Identifier: Apache-2.0
//! Sizes that `kernels/hopper/layout.cuh` and the host agree on.

use crate::cuda::storage::TILE;
use crate::format::MX_BLOCK_SIZE;

/// Bytes of a tile whose block scales are equal in pairs: codes, and one scale for each pair.
pub const PAIRED_TILE_BYTES: usize = TILE * TILE / 2 + TILE * TILE / MX_BLOCK_SIZE;

/// Bytes of a row of e4m3 as tensor cores read it: two slabs of 64 columns at a time, whose order is their own.
pub fn fp8_row_bytes(cols: usize) -> usize {
    cols.next_multiple_of(2 * TILE)
}
