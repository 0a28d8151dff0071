// SPDX-License-Identifier: Apache-2.0
//! The CUDA driver, and the only folder that names cudarc: contexts, modules, memory, launches. A refusal names the call,
//! its code and what it was for.

mod refusal;
mod streams;

use crate::call::Stream;
use crate::error::Result;
use cudarc::driver::result;
use cudarc::driver::sys;
use refusal::check;
pub use refusal::explain_refusals;
use std::ffi::{CString, c_void};
use std::fmt::Display;
use streams::synchronize_stream;
pub use streams::{is_capturing, synchronize_context, wait_for_event};

/// An address of device memory.
pub type DeviceAddress = sys::CUdeviceptr;

/// Can the driver's library be loaded? Every other call of cudarc panics where there is none.
pub fn is_present() -> bool {
    // SAFETY: only looks for the library.
    unsafe { sys::is_culib_present() }
}

/// A device's primary context: the one that torch and the runtime API share. Held for the life of the process.
#[derive(Debug, Clone, Copy)]
pub struct Context(sys::CUcontext);

// SAFETY: a context belongs to the process, not to a thread.
unsafe impl Send for Context {}
// SAFETY: the driver locks what changes.
unsafe impl Sync for Context {}

/// What a device says of itself.
#[derive(Debug, Clone, Copy)]
pub struct Properties {
    /// Compute capability.
    pub capability: (i32, i32),
    /// Multiprocessors.
    pub num_sms: u32,
    /// Shared memory that a block may ask for.
    pub most_shared_bytes: u32,
}

/// Ask a device what it is; opens nothing.
pub fn properties(ordinal: i32) -> Result<Properties> {
    let during = format!("Opening CUDA device {ordinal}");
    check("cuInit", result::init(), &during)?;
    let device = check("cuDeviceGet", result::device::get(ordinal), &during)?;
    let attribute = |attribute| {
        // SAFETY: a device that cuDeviceGet returned.
        check("cuDeviceGetAttribute", unsafe { result::device::get_attribute(device, attribute) }, &during)
    };
    use sys::CUdevice_attribute as Attribute;
    let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let num_sms = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32;
    let most_shared_bytes = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as u32;
    Ok(Properties { capability: (major, minor), num_sms, most_shared_bytes })
}

impl Context {
    /// The device's primary context. Never released.
    pub fn retain(ordinal: i32) -> Result<Self> {
        let during = format!("Opening CUDA device {ordinal}");
        let device = check("cuDeviceGet", result::device::get(ordinal), &during)?;
        // SAFETY: a device that cuDeviceGet returned.
        check("cuDevicePrimaryCtxRetain", unsafe { result::primary_ctx::retain(device) }, &during).map(Context)
    }

    /// Make it current until the result is dropped. torch's default stream is NULL, so the context decides the device.
    pub fn enter(self) -> Result<Entered> {
        let during = "Making the device's context current";
        let before = check("cuCtxGetCurrent", result::ctx::get_current(), during)?;
        let changed = before != Some(self.0);
        if changed {
            // SAFETY: a primary context that is held for the life of the process.
            check("cuCtxSetCurrent", unsafe { result::ctx::set_current(self.0) }, during)?;
        }
        Ok(Entered { before, changed })
    }
}

/// A context made current; the one before is current again when this is dropped.
#[derive(Debug)]
pub struct Entered {
    before: Option<sys::CUcontext>,
    changed: bool,
}

impl Drop for Entered {
    fn drop(&mut self) {
        if self.changed {
            // SAFETY: the context that was current before, or none. A failure here has nobody to tell.
            let _ = unsafe { result::ctx::set_current(self.before.unwrap_or(std::ptr::null_mut())) };
        }
    }
}

/// While it lives, this thread may make the calls that a capture forbids lest they are meant to be part of it: to allocate,
/// to free, to wait. None of ours is, and a capture that runs meanwhile, of this thread or of another, goes on.
#[derive(Debug)]
pub struct Relaxed {
    before: sys::CUstreamCaptureMode,
}

impl Relaxed {
    /// From here on.
    pub fn capture() -> Result<Self> {
        let mut mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: exchanges the thread's mode with a local.
        let outcome = unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) }.result();
        check("cuThreadExchangeStreamCaptureMode", outcome, "Letting a capture go on beside this call")?;
        Ok(Relaxed { before: mode })
    }
}

impl Drop for Relaxed {
    fn drop(&mut self) {
        // SAFETY: exchanges the thread's mode with our copy. A failure here has nobody to tell.
        let _ = unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut self.before) }.result();
    }
}

/// A stream of our own, of which no stream of a caller's knows. Lives as long as the process.
#[derive(Debug, Clone, Copy)]
pub struct OwnStream(sys::CUstream);

// SAFETY: a stream belongs to the context, not to a thread.
unsafe impl Send for OwnStream {}
// SAFETY: the driver locks it.
unsafe impl Sync for OwnStream {}

impl OwnStream {
    /// In the current context; nothing on the default stream waits for it.
    pub fn new(during: impl Display) -> Result<Self> {
        check("cuStreamCreate", result::stream::create(result::stream::StreamKind::NonBlocking), during).map(OwnStream)
    }

    /// Its handle.
    pub fn handle(self) -> Stream {
        self.0.cast()
    }
}

/// A number that no other stream of this process has, be it alive or dead: handles are used again.
pub fn stream_id(stream: Stream) -> Result<u64> {
    let mut id = 0;
    // SAFETY: the caller's stream, and a local to write to.
    let outcome = unsafe { sys::cuStreamGetId(stream.cast(), &mut id) }.result();
    check("cuStreamGetId", outcome, "Asking which stream it is")?;
    Ok(id)
}

/// A loaded module. Never unloaded: its functions live as long as the process.
#[derive(Debug, Clone, Copy)]
pub struct Module(sys::CUmodule);

impl Module {
    /// Load a whole fat binary into the current context.
    pub fn load(name: &str, image: &'static [u8]) -> Result<Self> {
        // SAFETY: the image is a whole fat binary, which `build.rs` made.
        let loaded = unsafe { result::module::load_data(image.as_ptr().cast()) };
        check("cuModuleLoadData", loaded, format_args!("Loading kernels/{name}")).map(Module)
    }

    /// A kernel, loaded now so that no launch has to, and allowed this much dynamic shared memory, or as much as a block of this
    /// GPU has beside what the kernel has anyway.
    pub fn function(self, name: &str, shared_bytes: u32, most_shared_bytes: u32) -> Result<Function> {
        use sys::CUfunction_attribute as Attribute;
        let during = format!("Loading kernel {name}");
        let c_name = CString::new(name).unwrap_or_default();
        // SAFETY: a loaded module of the current context.
        let function = check("cuModuleGetFunction", unsafe { result::module::get_function(self.0, c_name) }, &during)?;
        // SAFETY: a function of it; loading it now keeps lazy loading out of a first launch, which may be captured.
        check("cuFuncLoad", unsafe { sys::cuFuncLoad(function) }.result(), &during)?;
        if shared_bytes > 0 {
            let mut fixed = 0;
            let fixed_bytes = Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
            // SAFETY: the same function; a local to write to.
            let asked = unsafe { sys::cuFuncGetAttribute(&mut fixed, fixed_bytes, function) }.result();
            check("cuFuncGetAttribute", asked, &during)?;
            let room = (most_shared_bytes as i32 - fixed).min(shared_bytes as i32);
            let dynamic_bytes = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the same function.
            let set = unsafe { result::function::set_function_attribute(function, dynamic_bytes, room) };
            check("cuFuncSetAttribute", set, &during)?;
        }
        Ok(Function(function))
    }
}

/// How a kernel starts.
#[derive(Debug, Clone, Copy)]
pub struct Attributes {
    /// Its start may overlap the end of the kernel before it, for which it waits by itself (`kernels/common/overlap.cuh`).
    pub overlapping: bool,
    /// All of its blocks run at once.
    pub together: bool,
    /// Blocks of a cluster; 1: none.
    pub cluster: u32,
}

/// A kernel of the current context.
#[derive(Debug, Clone, Copy)]
pub struct Function(sys::CUfunction);

// SAFETY: function handles belong to the context, not to a thread.
unsafe impl Send for Function {}
// SAFETY: they are never changed after loading.
unsafe impl Sync for Function {}

/// Blocks, threads, shared memory.
type Shape = ([u32; 3], u32, u32);

fn cluster_attribute(blocks: u32) -> sys::CUlaunchAttribute {
    sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue {
            clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: blocks, y: 1, z: 1 },
        },
    }
}

/// It points to the attributes.
fn launch_config(shape: Shape, stream: Stream, attributes: &mut [sys::CUlaunchAttribute]) -> sys::CUlaunchConfig {
    let (grid, threads, shared_bytes) = shape;
    sys::CUlaunchConfig {
        gridDimX: grid[0],
        gridDimY: grid[1],
        gridDimZ: grid[2],
        blockDimX: threads,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: shared_bytes,
        hStream: stream.cast(),
        attrs: attributes.as_mut_ptr(),
        numAttrs: attributes.len() as u32,
    }
}

impl Function {
    /// Clusters of two blocks that run at once on an idle device: where a chip's parts have odd numbers of multiprocessors, fewer
    /// than half of all.
    pub fn pairs_at_once(self, threads: u32, shared_bytes: u32, during: impl Display) -> Result<u32> {
        let mut pairs = 0;
        let mut attributes = [cluster_attribute(2)];
        let config = launch_config(([2, 1, 1], threads, shared_bytes), std::ptr::null_mut(), &mut attributes);
        // SAFETY: a loaded kernel of the current context; a local to write to.
        let outcome = unsafe { sys::cuOccupancyMaxActiveClusters(&mut pairs, self.0, &config) }.result();
        check("cuOccupancyMaxActiveClusters", outcome, during)?;
        Ok(pairs as u32)
    }

    /// Enqueue: blocks, threads, shared memory; the context is current.
    ///
    /// # Safety
    /// The kernel takes one struct by value, `P`, whose pointers must be what its fields say until the stream has passed.
    pub unsafe fn launch<P>(
        self,
        shape: Shape,
        attributes: Attributes,
        stream: Stream,
        params: &P,
        during: impl Display,
    ) -> Result<()> {
        let Attributes { overlapping, together, cluster } = attributes;
        let overlaps = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let clusters = cluster_attribute(cluster);
        let cooperates = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_COOPERATIVE,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { cooperative: 1 },
        };
        // Those that are asked for come first.
        let mut attributes = [(overlapping, overlaps), (together, cooperates), (cluster > 1, clusters)];
        attributes.sort_by_key(|(asked, _)| !asked);
        let asked = attributes.iter().filter(|(asked, _)| *asked).count();
        let mut attributes = attributes.map(|(_, attribute)| attribute);
        let mut arguments = [std::ptr::from_ref(params).cast_mut().cast::<c_void>()];
        let config = launch_config(shape, stream, &mut attributes[..asked]);
        // SAFETY: the arguments are one `P`; its pointers are the caller's promise.
        let outcome =
            unsafe { sys::cuLaunchKernelEx(&config, self.0, arguments.as_mut_ptr(), std::ptr::null_mut()) }.result();
        check("cuLaunchKernelEx", outcome, during)
    }
}

/// Device memory of the current context.
pub fn allocate(bytes: usize, during: impl Display) -> Result<DeviceAddress> {
    // SAFETY: only asks for memory.
    check("cuMemAlloc", unsafe { result::malloc_sync(bytes) }, during)
}

/// Give memory back; waits for work that may use it.
///
/// # Safety
/// It came from [`allocate`] in this context, and is not used again.
pub unsafe fn free(address: DeviceAddress, during: impl Display) -> Result<()> {
    // SAFETY: freed once, as the caller promises.
    check("cuMemFree", unsafe { result::free_sync(address) }, during)
}

/// Host memory that kernels of the current context may write: its address here, and there. Never freed.
pub fn allocate_mapped<T>(value: T, during: impl Display) -> Result<(*mut T, *mut T)> {
    // SAFETY: only asks for memory.
    let host = unsafe { result::malloc_host(size_of::<T>(), sys::CU_MEMHOSTALLOC_DEVICEMAP) };
    let host = check("cuMemHostAlloc", host, &during)?.cast::<T>();
    // SAFETY: pages of its own, which nothing uses yet.
    unsafe { host.write(value) };
    let mut device = 0;
    // SAFETY: memory that was just mapped, and a local to write to.
    let mapped = unsafe { sys::cuMemHostGetDevicePointer_v2(&mut device, host.cast(), 0) }.result();
    check("cuMemHostGetDevicePointer", mapped, during)?;
    Ok((host, device as *mut T))
}

/// Copy to the host after all work of the stream, and wait.
///
/// # Safety
/// `source` holds as many `T` on the device; any bytes are a valid `T`.
pub unsafe fn read<T: Copy>(source: *const T, values: &mut [T], stream: Stream, during: impl Display) -> Result<()> {
    // SAFETY: as many values on both sides; the stream is waited for before `values` are used.
    let copied = unsafe { result::memcpy_dtoh_async(values, source as DeviceAddress, stream.cast()) };
    check("cuMemcpyDtoHAsync", copied, &during)?;
    synchronize_stream(stream, during)
}

/// Copy to the device in the order of the stream, and wait.
///
/// # Safety
/// `target` is memory for as many `T` on the device.
pub unsafe fn write<T: Copy>(target: *mut T, values: &[T], stream: Stream, during: impl Display) -> Result<()> {
    // SAFETY: as many values on both sides; the stream is waited for before `values` go.
    let copied = unsafe { result::memcpy_htod_async(target as DeviceAddress, values, stream.cast()) };
    check("cuMemcpyHtoDAsync", copied, &during)?;
    synchronize_stream(stream, during)
}

/// Copy `bytes` from device memory to device memory, in the order of the stream.
///
/// # Safety
/// Both sides hold as many bytes on the device.
pub unsafe fn copy(
    target: *mut u8,
    source: *const u8,
    bytes: usize,
    stream: Stream,
    during: impl Display,
) -> Result<()> {
    let (target, source) = (target as DeviceAddress, source as DeviceAddress);
    // SAFETY: the caller vouches for both sides.
    check("cuMemcpyDtoDAsync", unsafe { result::memcpy_dtod_async(target, source, bytes, stream.cast()) }, during)
}

/// Fill `bytes` of device memory with a value, in the order of the stream.
///
/// # Safety
/// The target holds as many bytes on the device.
pub unsafe fn fill(target: *mut u8, value: u8, bytes: usize, stream: Stream, during: impl Display) -> Result<()> {
    // SAFETY: the caller vouches for the target.
    let cleared = unsafe { result::memset_d8_async(target as DeviceAddress, value, bytes, stream.cast()) };
    check("cuMemsetD8Async", cleared, during)
}
