//! The CUDA backend: decides, plans and launches what `kernels/` computes, through the driver API.
//!
//! After [`Layer::prepare`](layer::CudaLayer::prepare) a forward only launches kernels on the caller's stream: it
//! allocates nothing, waits for nothing, and reads no device data, so it may be captured in a graph. Launches are sized
//! by the worst case of the plan, and cut short on the device by what routing found.
//!
//! Two families of kernels, [`Kernels`](crate::config::Kernels): Hopper's, and the portable ones, which read Blackwell's
//! layouts on any GPU.

mod device;
mod driver;
#[doc(hidden)]
pub mod facts;
mod forward;
mod hopper;
mod kernels;
mod layer;
mod linear;
mod parts;
mod plan;
mod portable;
mod prepare;
mod storage;
mod tiles;

pub use device::{status_read, status_reset};
pub use layer::CudaLayer;
pub use linear::CudaLinear;

/// A stream of the caller: `CUstream` or `cudaStream_t`.
pub type Stream = cudarc::driver::sys::CUstream;

/// Threads of a block of the row-wise kernels.
const THREADS: u32 = kernels::params::BLOCK_THREADS;
/// Blocks a multiprocessor for kernels that stride over rows.
const BLOCKS_PER_SM: u32 = 8;
