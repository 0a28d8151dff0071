// SPDX-License-Identifier: Apache-2.0
//! Sizes that `kernels/hopper/layout.cuh` and the host agree on.

use crate::cuda::storage::TILE;

/// Bytes of a row of e4m3 as tensor cores read it: whole slabs of 64 columns, each transposed (`kernels/hopper/layout.cuh`).
pub fn fp8_row_bytes(cols: usize) -> usize {
    cols.next_multiple_of(TILE)
}
