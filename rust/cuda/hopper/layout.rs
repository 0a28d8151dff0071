// SPDX-License-Identifier: Apache-2.0
//! Sizes that `kernels/hopper/layout.cuh` and the host agree on.

/// Rows and columns of a weight tile.
pub const TILE: usize = 64;
/// Bytes of a weight tile: codes and block scales (`kernels/hopper/layout.cuh`).
pub const TILE_BYTES: usize = TILE * TILE / 2 + TILE * TILE / 16;

/// Bytes of a row of e4m3 as tensor cores read it: whole slabs of 64 columns, each transposed (`kernels/hopper/layout.cuh`).
pub fn fp8_row_bytes(cols: usize) -> usize {
    cols.next_multiple_of(TILE)
}
