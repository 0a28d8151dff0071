//! One CUDA device of this process: its context, kernels, counters and shared workspace.

use super::driver::{Entered, check};
use super::kernels::{Functions, HOPPER, Kernel, MODULES, params};
use super::{BLOCKS_PER_SM, Stream, THREADS};
use crate::config::Kernels;
use crate::error::{Error, Result};
use crate::status;
use cudarc::driver::{result, sys};
use once_cell::sync::Lazy;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::ffi::c_void;
use std::mem::size_of;
use std::sync::Arc;

/// Devices in use. They stay until the process ends: layers share their modules, and graphs their workspace.
static DEVICES: Lazy<Mutex<HashMap<i32, Arc<Device>>>> = Lazy::new(Mutex::default);

/// A device with kernels loaded.
#[derive(Debug)]
pub struct Device {
    ordinal: i32,
    context: sys::CUcontext,
    capability: (i32, i32),
    functions: Functions,
    /// Multiprocessors.
    pub num_sms: u32,
    /// `params::DeviceStatus` in device memory.
    status: sys::CUdeviceptr,
    shared_workspace: Mutex<SharedWorkspace>,
}

// SAFETY: handles of the driver belong to the context, not to a thread.
unsafe impl Send for Device {}
// SAFETY: as above; what changes is behind a lock.
unsafe impl Sync for Device {}

/// Blocks of a launch, threads of a block, dynamic shared memory of a block.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct Shape {
    pub grid: [u32; 3],
    pub threads: u32,
    pub shared_bytes: u32,
}

impl Shape {
    /// All three.
    pub fn new(grid: [u32; 3], threads: u32, shared_bytes: u32) -> Self {
        Shape { grid, threads, shared_bytes }
    }
}

/// The workspace of calls that bring none.
#[derive(Debug, Default)]
struct SharedWorkspace {
    pointer: sys::CUdeviceptr,
    size: u64,
}

impl Device {
    /// The device, opened when first asked for.
    pub fn get(ordinal: i32) -> Result<Arc<Device>> {
        let mut devices = DEVICES.lock();
        if let Some(device) = devices.get(&ordinal) {
            return Ok(device.clone());
        }
        let device = Arc::new(Device::open(ordinal)?);
        devices.insert(ordinal, device.clone());
        Ok(device)
    }

    /// The device, if these kernels run there. Never others in their place: their numbers and layouts differ.
    pub fn for_kernels(ordinal: i32, kernels: Kernels) -> Result<Arc<Device>> {
        let device = Device::get(ordinal)?;
        if kernels == Kernels::Hopper && device.capability != HOPPER {
            let (major, minor) = device.capability;
            return Err(Error::Unsupported(format!(
                "device_kind is 1 (Hopper's kernels); they need compute capability 9.0, and CUDA device {ordinal} has \
                 {major}.{minor}. Pass 2, the portable kernels (cuda-portable), which need 8.0 or later."
            )));
        }
        Ok(device)
    }

    fn open(ordinal: i32) -> Result<Device> {
        if MODULES.is_empty() {
            return Err(unsupported(
                ordinal,
                "this build has no CUDA kernels, because nvcc was not found. Build with CUDA 13",
            ));
        }
        // SAFETY: only looks for the library. Every other call of cudarc panics where there is none.
        if !unsafe { sys::is_culib_present() } {
            return Err(unsupported(
                ordinal,
                "libcuda.so.1 could not be loaded. Install NVIDIA's driver, or use the CPU",
            ));
        }
        let during = || format!("Opening CUDA device {ordinal}");
        check("cuInit", result::init(), during)?;
        let device = check("cuDeviceGet", result::device::get(ordinal), during)?;
        let attribute = |attribute| {
            // SAFETY: a device that cuDeviceGet returned.
            check("cuDeviceGetAttribute", unsafe { result::device::get_attribute(device, attribute) }, during)
        };
        use sys::CUdevice_attribute as Attribute;
        let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let capability = (major, minor);
        if capability < (8, 0) {
            let rule = format!("its compute capability is {major}.{minor}; the kernels need 8.0 or later. Use the CPU");
            return Err(unsupported(ordinal, &rule));
        }
        let num_sms = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32;
        // SAFETY: as above. Never released: the context that torch and the runtime API share.
        let context = check("cuDevicePrimaryCtxRetain", unsafe { result::primary_ctx::retain(device) }, during)?;
        let _entered = Entered::new(context)?;
        let functions = Functions::load(capability)?;
        // SAFETY: the context is current.
        let status = check("cuMemAlloc", unsafe { result::malloc_sync(size_of::<params::DeviceStatus>()) }, during)?;
        let device =
            Device { ordinal, context, capability, functions, num_sms, status, shared_workspace: Mutex::default() };
        device.write_status(std::ptr::null_mut())?;
        Ok(device)
    }

    /// Make its context current until the result is dropped.
    pub fn enter(&self) -> Result<Entered> {
        Entered::new(self.context)
    }

    /// Where kernels count.
    pub fn status(&self) -> *mut params::DeviceStatus {
        self.status as *mut params::DeviceStatus
    }

    /// Enqueue a kernel. The device must be entered.
    ///
    /// # Safety
    /// The pointers in `params` must be what the kernel's parameters say, until the stream has passed it.
    pub unsafe fn launch<P>(&self, kernel: Kernel, shape: Shape, stream: Stream, params: &P) -> Result<()> {
        // SAFETY: by contract.
        unsafe { self.enqueue(kernel, shape, stream, &mut [], params) }
    }

    /// A launch whose blocks stride over up to `rows` rows.
    pub fn by_rows(&self, rows: usize) -> Shape {
        Shape::new([(rows as u32).min(self.num_sms * BLOCKS_PER_SM), 1, 1], THREADS, 0)
    }

    /// Enqueue a kernel that waits for the one before it by itself (kernels/common/overlap.cuh), so that its start may
    /// overlap the other's end.
    ///
    /// # Safety
    /// As [`Device::launch`]; the kernel must wait as stated.
    pub unsafe fn launch_overlapping<P>(&self, kernel: Kernel, shape: Shape, stream: Stream, params: &P) -> Result<()> {
        let mut overlaps = [sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        }];
        let attributes = if self.capability >= HOPPER { &mut overlaps[..] } else { &mut [] };
        // SAFETY: by contract.
        unsafe { self.enqueue(kernel, shape, stream, attributes, params) }
    }

    unsafe fn enqueue<P>(
        &self,
        kernel: Kernel,
        shape: Shape,
        stream: Stream,
        attributes: &mut [sys::CUlaunchAttribute],
        params: &P,
    ) -> Result<()> {
        let mut arguments = [std::ptr::from_ref(params).cast_mut().cast::<c_void>()];
        let config = sys::CUlaunchConfig {
            gridDimX: shape.grid[0],
            gridDimY: shape.grid[1],
            gridDimZ: shape.grid[2],
            blockDimX: shape.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shape.shared_bytes,
            hStream: stream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        };
        let function = self.functions.get(kernel);
        // SAFETY: the kernel takes one struct by value, P; its pointers are the caller's promise.
        let outcome =
            unsafe { sys::cuLaunchKernelEx(&config, function, arguments.as_mut_ptr(), std::ptr::null_mut()) }.result();
        check("cuLaunchKernelEx", outcome, || {
            format!(
                "Launching {} with {:?} blocks of {} threads and {} bytes of shared memory on CUDA device {}; an \
                 earlier kernel may be the cause",
                kernel.name(),
                shape.grid,
                shape.threads,
                shape.shared_bytes,
                self.ordinal
            )
        })
    }

    /// Device memory that lives as long as its owner.
    pub fn allocate(self: &Arc<Self>, bytes: usize) -> Result<Buffer> {
        let _entered = self.enter()?;
        let during = || format!("Allocating {bytes} bytes on CUDA device {}", self.ordinal);
        // SAFETY: the context is current.
        let pointer = check("cuMemAlloc", unsafe { result::malloc_sync(bytes) }, during)?;
        Ok(Buffer { device: self.clone(), pointer })
    }

    /// The workspace of calls that bring none, at least `size` bytes. Grows outside capture only, and keeps what it
    /// outgrew, because graphs may hold the address.
    pub fn shared_workspace(&self, size: u64, stream: Stream) -> Result<*mut u8> {
        let mut shared = self.shared_workspace.lock();
        if shared.size < size {
            if self.is_capturing(stream)? {
                return Err(Error::WorkspaceTooSmall {
                    what: "the device's shared workspace",
                    given: shared.size,
                    needed: size,
                    remedy: "Run once with this many tokens before capturing, or pass a workspace.",
                });
            }
            let during = || format!("Growing the shared workspace of CUDA device {} to {size} bytes", self.ordinal);
            // SAFETY: the device is entered.
            shared.pointer = check("cuMemAlloc", unsafe { result::malloc_sync(size as usize) }, during)?;
            shared.size = size;
        }
        Ok(shared.pointer as *mut u8)
    }

    /// Is the stream being captured in a graph?
    pub fn is_capturing(&self, stream: Stream) -> Result<bool> {
        let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        // SAFETY: the caller's stream, and a local to write to.
        let outcome = unsafe { sys::cuStreamIsCapturing(stream, &mut status) }.result();
        check("cuStreamIsCapturing", outcome, || "Asking whether the stream is captured".to_owned())?;
        Ok(status != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
    }

    /// Copy a value to the host after all work of the stream; waits. `T` is plain data.
    ///
    /// # Safety
    /// `source` must hold a `T` on this device; any bytes must be a valid `T`.
    pub unsafe fn read<T: Copy + Default>(&self, source: *const T, stream: Stream) -> Result<T> {
        let mut value = [T::default()];
        // SAFETY: by contract.
        unsafe { self.read_all(source, &mut value, stream) }?;
        Ok(value[0])
    }

    /// As [`Device::read`], as many values as there is room for.
    ///
    /// # Safety
    /// The same, of as many `T`.
    pub unsafe fn read_all<T: Copy>(&self, source: *const T, values: &mut [T], stream: Stream) -> Result<()> {
        let bytes = size_of_val(values);
        let during = || format!("Reading {bytes} bytes of CUDA device {}", self.ordinal);
        // SAFETY: by contract; the stream is waited for before `values` are used.
        let copied = unsafe { result::memcpy_dtoh_async(values, source as sys::CUdeviceptr, stream) };
        check("cuMemcpyDtoHAsync", copied, during)?;
        // SAFETY: the caller's stream.
        check("cuStreamSynchronize", unsafe { result::stream::synchronize(stream) }, during)
    }

    /// Copy a value to the device, in the order of the stream; waits. `T` is plain data.
    ///
    /// # Safety
    /// `target` must be memory for a `T` on this device.
    pub unsafe fn write<T: Copy>(&self, target: *mut T, value: T, stream: Stream) -> Result<()> {
        // SAFETY: by contract.
        unsafe { self.write_all(target, &[value], stream) }
    }

    /// Copy values to the device, in the order of the stream; waits. `T` is plain data.
    ///
    /// # Safety
    /// `target` must be memory for as many `T` on this device.
    pub unsafe fn write_all<T: Copy>(&self, target: *mut T, values: &[T], stream: Stream) -> Result<()> {
        let during = || format!("Writing {} bytes of CUDA device {}", size_of_val(values), self.ordinal);
        // SAFETY: by contract; the stream is waited for before `values` go.
        let copied = unsafe { result::memcpy_htod_async(target as sys::CUdeviceptr, values, stream) };
        check("cuMemcpyHtoDAsync", copied, during)?;
        // SAFETY: the caller's stream.
        check("cuStreamSynchronize", unsafe { result::stream::synchronize(stream) }, during)
    }

    /// Copy `len` values from device memory to device memory, in the order of the stream.
    ///
    /// # Safety
    /// Both sides must hold `len` values on this device.
    pub unsafe fn copy<T>(&self, target: *mut T, source: *const T, len: usize, stream: Stream) -> Result<()> {
        let bytes = len * size_of::<T>();
        // SAFETY: by contract.
        let copied =
            unsafe { result::memcpy_dtod_async(target as sys::CUdeviceptr, source as sys::CUdeviceptr, bytes, stream) };
        check("cuMemcpyDtoDAsync", copied, || format!("Copying {bytes} bytes on CUDA device {}", self.ordinal))
    }

    /// Wait for all work of the context.
    pub fn synchronize(&self) -> Result<()> {
        check("cuCtxSynchronize", result::ctx::synchronize(), || format!("Waiting for CUDA device {}", self.ordinal))
    }

    fn write_status(&self, stream: Stream) -> Result<()> {
        let clear = params::DeviceStatus { first_bad: u64::MAX, ..Default::default() };
        // SAFETY: the device's own block.
        unsafe { self.write(self.status(), clear, stream) }
    }
}

fn unsupported(ordinal: i32, reason: &str) -> Error {
    Error::Unsupported(format!("device_ordinal is {ordinal} (CUDA); {reason}."))
}

/// Device memory of one owner, freed when dropped.
#[derive(Debug)]
pub struct Buffer {
    device: Arc<Device>,
    pointer: sys::CUdeviceptr,
}

impl Buffer {
    /// Its first byte.
    pub fn pointer<T>(&self) -> *mut T {
        self.pointer as *mut T
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Ok(_entered) = self.device.enter() {
            // SAFETY: allocated by Device::allocate and freed once; cuMemFree waits for work that may use it.
            let _ = unsafe { result::free_sync(self.pointer) };
        }
    }
}

/// Read the counters of a device; waits for the stream.
#[allow(clippy::not_unsafe_ptr_arg_deref)] // the stream is a handle, which the driver checks
pub fn status_read(ordinal: i32, stream: Stream) -> Result<status::DeviceStatus> {
    let device = Device::get(ordinal)?;
    let _entered = device.enter()?;
    // SAFETY: the device's own block.
    let status = unsafe { device.read(device.status(), stream) }?;
    // The low half of first_bad is the token; all ones mean none.
    let first_bad_token = if status.first_bad == u64::MAX { -1 } else { i64::from(status.first_bad as u32) };
    Ok(status::DeviceStatus {
        saturated_blocks: status.saturated_blocks,
        nonfinite_values: status.nonfinite_values,
        out_of_range_ids: status.out_of_range_ids,
        first_bad_token,
    })
}

/// Zero the counters of a device.
#[allow(clippy::not_unsafe_ptr_arg_deref)] // as above
pub fn status_reset(ordinal: i32, stream: Stream) -> Result<()> {
    let device = Device::get(ordinal)?;
    let _entered = device.enter()?;
    device.write_status(stream)
}
