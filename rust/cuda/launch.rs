// SPDX-License-Identifier: Apache-2.0
//! How a kernel is launched: blocks, threads, shared memory.

use super::kernels::Kernel;

/// Blocks a multiprocessor for kernels that stride over rows or tiles.
pub const BLOCKS_PER_SM: u32 = 8;
/// The same for chunks that are empty under most routings.
pub const LATER_BLOCKS_PER_SM: u32 = 5;

/// A kernel, and the shape of its launch.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct Launch {
    pub kernel: Kernel,
    pub grid: [u32; 3],
    pub threads: u32,
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
    /// Blocks of a cluster; 1: none.
    pub cluster: u32,
}

impl Kernel {
    /// Over so many blocks, with the threads that the table of kernels states and without dynamic shared memory.
    pub fn over(self, grid: [u32; 3]) -> Launch {
        Launch { kernel: self, grid, threads: self.row().threads, shared_bytes: 0, cluster: 1 }
    }
}

impl Launch {
    /// With so much dynamic shared memory a block.
    pub fn sharing(self, shared_bytes: u32) -> Self {
        Launch { shared_bytes, ..self }
    }

    /// With so many blocks a cluster.
    pub fn in_clusters(self, cluster: u32) -> Self {
        Launch { cluster, ..self }
    }

    /// With so many threads a block, where the table leaves them open.
    pub fn with_threads(self, threads: u32) -> Self {
        Launch { threads, ..self }
    }
}
