// SPDX-License-Identifier: Apache-2.0
//! One CUDA device of this process: its context, kernels, memory, and the workspaces of calls that bring none.

use super::driver::{self, Context, DeviceAddress, Entered, OwnStream, Relaxed};
use super::hang::Watch;
use super::kernels::{Functions, Kernel, ROUTE_SHARED_BYTES, Row, Start, params};
use super::launch::{BLOCKS_PER_SM, Launch};
use super::memory::{Buffer, Memory};
use super::shared_workspaces::{Scratch, SharedWorkspaces};
use crate::call::{Stream, Workspace};
use crate::error::Result;
use crate::workspace::check_workspace;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// From this compute capability on, a kernel's start may overlap the end of the one before it.
const OVERLAPPING_FROM: (i32, i32) = (9, 0);

/// A device with kernels loaded.
#[derive(Debug)]
pub struct Device {
    ordinal: i32,
    context: Context,
    /// Compute capability.
    pub capability: (i32, i32),
    /// Multiprocessors.
    pub num_sms: u32,
    /// Shared memory that a block may ask for.
    most_shared_bytes: u32,
    /// Clusters of two blocks that run at once, of kernels whose blocks all have to.
    pub pairs_at_once: u32,
    functions: Functions,
    /// `params::DeviceStatus` in device memory.
    status: DeviceAddress,
    /// Of blocks that wait for each other: one `u32`, 0 between launches but for its highest bit.
    arrivals: DeviceAddress,
    watch: Watch,
    /// Of copies that a caller gives no stream for.
    aside: OwnStream,
    memory: Arc<Memory>,
    shared_workspaces: Mutex<SharedWorkspaces>,
    /// What the self-test found; none where it has not run. Locked while it runs.
    pub verdict: Mutex<Option<Verdict>>,
    /// May families use the tiles that they say need a proof?
    pub has_proved_finer_tiles: AtomicBool,
}

/// What the self-test says of a device's own kernels.
#[derive(Debug, Clone)]
pub enum Verdict {
    /// They compute what the portable ones do.
    Right,
    /// They do not, and how.
    Wrong(String),
}

impl Device {
    /// Open it, and load these kernels.
    pub fn open(
        ordinal: i32,
        properties: driver::Properties,
        tables: impl Iterator<Item = &'static [Row]>,
    ) -> Result<Device> {
        let context = Context::retain(ordinal)?;
        let _entered = context.enter()?;
        let _relaxed = Relaxed::capture()?;
        let during = format!("Opening CUDA device {ordinal}");
        let driver::Properties { capability, num_sms, most_shared_bytes } = properties;
        let tables: Vec<_> = tables.collect();
        let functions = Functions::load(&tables, most_shared_bytes)?;
        let pairs_at_once = functions.pairs_at_once(&tables, &during)?.unwrap_or_default();
        let device = Device {
            ordinal,
            context,
            capability,
            num_sms,
            most_shared_bytes,
            pairs_at_once,
            functions,
            status: driver::allocate(size_of::<params::DeviceStatus>(), &during)?,
            arrivals: driver::allocate(size_of::<u32>(), &during)?,
            watch: Watch::new(ordinal, tables)?,
            aside: OwnStream::new(&during)?,
            memory: Memory::new(ordinal, context),
            shared_workspaces: Mutex::default(),
            verdict: Mutex::default(),
            has_proved_finer_tiles: AtomicBool::default(),
        };
        device.clear_status(device.aside.handle())?;
        // SAFETY: the device's own word.
        unsafe { device.write(device.arrivals(), &[0u32], device.aside.handle()) }?;
        Ok(device)
    }

    /// Make its context current until the result is dropped.
    pub fn enter(&self) -> Result<Entered> {
        self.context.enter()
    }

    /// Enqueue a kernel. The device must be entered.
    ///
    /// # Safety
    /// The pointers in `params` must be what the kernel's parameters say, until the stream has passed it.
    pub unsafe fn launch<P>(&self, launch: Launch, stream: Stream, params: &P) -> Result<()> {
        let Launch { kernel, grid, threads, shared_bytes, cluster } = launch;
        let start = kernel.row().start;
        let overlapping = start == Start::Overlapping && self.capability >= OVERLAPPING_FROM;
        let attributes = driver::Attributes { overlapping, together: start == Start::Together, cluster };
        let during = format_args!(
            "Launching {} with {grid:?} blocks of {threads} threads and {shared_bytes} bytes of shared memory on CUDA \
             device {}; an earlier kernel may be the cause",
            kernel.row().name,
            self.ordinal
        );
        let shape = (grid, threads, shared_bytes);
        // SAFETY: the caller vouches for the pointers in `params`.
        unsafe { self.functions.get(kernel).launch(shape, attributes, stream, params, during) }
    }

    /// A launch whose blocks stride over up to `rows` rows.
    pub fn by_rows(&self, kernel: Kernel, rows: usize) -> Launch {
        kernel.over([(rows as u32).min(self.num_sms * BLOCKS_PER_SM), 1, 1])
    }

    /// Device memory that lives as long as its owner.
    pub fn allocate(&self, bytes: usize) -> Result<Buffer> {
        self.memory.allocate(bytes)
    }

    /// The caller's workspace, checked, or the stream's shared one; at least `size` bytes. The shared one is this call's until
    /// the result is dropped.
    pub fn workspace(&self, own: Workspace, size: u64, stream: Stream) -> Result<Scratch<'_>> {
        if own.pointer.is_null() {
            let mut shared = self.shared_workspaces.lock();
            let base = shared.of_stream(&self.memory, stream, size)?;
            return Ok(Scratch { base, _turn: Some(shared) });
        }
        check_workspace(own, size)?;
        Ok(Scratch { base: own.pointer, _turn: None })
    }

    /// Shared memory in which a block may count experts: as much as routing ever asks for, or as this GPU has.
    pub fn routing_bytes(&self) -> u32 {
        ROUTE_SHARED_BYTES.min(self.most_shared_bytes)
    }

    /// The same of a block of a cluster; 0 where routing has no cluster. The kernel is for 9.0 and on; it was run on 9.0, and 12.x
    /// has less shared memory to keep slots in.
    pub fn cluster_routing_bytes(&self) -> u32 {
        if matches!(self.capability.0, 9 | 10) { self.routing_bytes() } else { 0 }
    }

    /// Where kernels count.
    pub fn status(&self) -> *mut params::DeviceStatus {
        self.status as *mut params::DeviceStatus
    }

    /// Where the blocks of a launch that runs alone count each other.
    pub fn arrivals(&self) -> *mut u32 {
        self.arrivals as *mut u32
    }

    /// A stream of no caller's.
    pub fn aside(&self) -> Stream {
        self.aside.handle()
    }

    /// How long a kernel waits for a barrier at most; a field of the parameters of kernels that wait so.
    pub fn wait_bound(&self, kernel: Kernel) -> params::WaitBound {
        self.watch.bound(kernel)
    }

    /// Zero the counters.
    pub fn clear_status(&self, stream: Stream) -> Result<()> {
        let clear = params::DeviceStatus { first_bad: u64::MAX, ..Default::default() };
        // SAFETY: the device's own block.
        unsafe { self.write(self.status(), &[clear], stream) }
    }

    /// Copy a value to the host after all work of the stream; waits. `T` is plain data.
    ///
    /// # Safety
    /// `source` must hold a `T` on this device; any bytes must be a valid `T`.
    pub unsafe fn read<T: Copy + Default>(&self, source: *const T, stream: Stream) -> Result<T> {
        let mut value = [T::default()];
        // SAFETY: one `T` on both sides.
        unsafe { self.read_all(source, &mut value, stream) }?;
        Ok(value[0])
    }

    /// As [`Device::read`], as many values as there is room for.
    ///
    /// # Safety
    /// The same, of as many `T`.
    pub unsafe fn read_all<T: Copy>(&self, source: *const T, values: &mut [T], stream: Stream) -> Result<()> {
        let during = format!("Reading {} bytes of CUDA device {}", size_of_val(values), self.ordinal);
        // SAFETY: the caller vouches for the source.
        unsafe { driver::read(source, values, stream, during) }
    }

    /// Copy values to the device, in the order of the stream; waits. `T` is plain data.
    ///
    /// # Safety
    /// `target` must be memory for as many `T` on this device.
    pub unsafe fn write<T: Copy>(&self, target: *mut T, values: &[T], stream: Stream) -> Result<()> {
        let during = format!("Writing {} bytes of CUDA device {}", size_of_val(values), self.ordinal);
        // SAFETY: the caller vouches for the target.
        unsafe { driver::write(target, values, stream, during) }
    }

    /// Copy values to the device beside all streams of the caller's and beside any capture; waits. Enters the device.
    ///
    /// # Safety
    /// As [`Device::write`]; whoever reads the target meanwhile reads each value as it was or as it will be.
    pub unsafe fn write_aside<T: Copy>(&self, target: *mut T, values: &[T]) -> Result<()> {
        let _entered = self.enter()?;
        let _relaxed = Relaxed::capture()?;
        // SAFETY: the caller vouches for the target.
        unsafe { self.write(target, values, self.aside.handle()) }
    }

    /// Copy `len` values from device memory to device memory, in the order of the stream.
    ///
    /// # Safety
    /// Both sides must hold `len` values on this device.
    pub unsafe fn copy<T>(&self, target: *mut T, source: *const T, len: usize, stream: Stream) -> Result<()> {
        let bytes = len * size_of::<T>();
        let during = format!("Copying {bytes} bytes on CUDA device {}", self.ordinal);
        // SAFETY: the caller vouches for both sides.
        unsafe { driver::copy(target.cast(), source.cast(), bytes, stream, during) }
    }

    /// Zero `len` values, in the order of the stream.
    ///
    /// # Safety
    /// `target` must be memory for as many `T` on this device; zeros must be a valid `T`.
    pub unsafe fn clear<T>(&self, target: *mut T, len: usize, stream: Stream) -> Result<()> {
        let bytes = len * size_of::<T>();
        let during = format!("Clearing {bytes} bytes on CUDA device {}", self.ordinal);
        // SAFETY: the caller vouches for the target.
        unsafe { driver::fill(target.cast(), 0, bytes, stream, during) }
    }

    /// Fill bytes with 0xFF, of which no format makes a number, in the order of the stream.
    ///
    /// # Safety
    /// `target` must be memory for as many bytes on this device.
    pub unsafe fn poison(&self, target: *mut u8, bytes: usize, stream: Stream) -> Result<()> {
        let during = format!("Filling {bytes} bytes on CUDA device {}", self.ordinal);
        // SAFETY: the caller vouches for the target.
        unsafe { driver::fill(target, 0xff, bytes, stream, during) }
    }

    /// Wait for all work of the context.
    pub fn synchronize(&self) -> Result<()> {
        driver::synchronize_context(format_args!("Waiting for CUDA device {}", self.ordinal))
    }
}
