// SPDX-License-Identifier: Apache-2.0
//! Checks that exports share: integers and pointers as they cross from C.

use super::header::*;
use crate::call::Workspace;
use crate::config::{Device, KernelChoice, Mode, ONE_ORDER, ScalePolicy};
use crate::cuda;
use crate::error::{Error, Result};

pub(crate) fn null_error(name: &str) -> Error {
    Error::argument(name, "NULL", "it must point to valid memory", "Pass its address.")
}

/// A reference out of a C pointer, or an error that names it.
///
/// # Safety
/// `pointer` must be NULL or point to a valid `T` that lives for `'a` and is not written meanwhile.
pub(crate) unsafe fn not_null<'a, T>(name: &str, pointer: *const T) -> Result<&'a T> {
    // SAFETY: NULL or a valid T; as_ref tells the two apart.
    unsafe { pointer.as_ref() }.ok_or_else(|| null_error(name))
}

/// As [`not_null`], exclusive.
///
/// # Safety
/// `pointer` must be NULL or point to a valid `T` that lives for `'a` and is not used otherwise meanwhile.
pub(crate) unsafe fn not_null_mut<'a, T>(name: &str, pointer: *mut T) -> Result<&'a mut T> {
    // SAFETY: NULL or a valid T that is the caller's alone; as_mut tells the two apart.
    unsafe { pointer.as_mut() }.ok_or_else(|| null_error(name))
}

/// A tensor's pointer: not NULL, and a multiple of its element's size.
pub(crate) fn aligned<T>(name: &str, pointer: *const T, size: usize) -> Result<*const T> {
    if pointer.is_null() { Err(null_error(name)) } else { aligned_or_null(name, pointer, size) }
}

/// As [`aligned`], where NULL has a meaning.
pub(crate) fn aligned_or_null<T>(name: &str, pointer: *const T, size: usize) -> Result<*const T> {
    if pointer.addr().is_multiple_of(size) {
        return Ok(pointer);
    }
    let rule = format!("it must be a multiple of {size}, the size of its elements");
    Err(Error::argument(name, format!("{pointer:p}"), rule, "Pass an aligned tensor."))
}

/// Rows of bf16: the address of the first, values from one to the next, values of each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows {
    pub first: *const u16,
    pub stride: usize,
    pub width: usize,
}

impl Rows {
    /// From the first to the last of so many.
    pub fn span(self, name: &'static str, num_rows: usize) -> Span {
        Span::of_rows(name, self.first, size_of::<u16>(), [num_rows, self.stride, self.width])
    }
}

/// `out` is written while `x` is still read; both have `num_rows` rows.
pub(crate) fn no_overlap(num_rows: usize, x: Rows, out: Rows) -> Result<()> {
    if columns_of_one_buffer(x, out) {
        return Ok(());
    }
    apart(out.span("out", num_rows), &[x.span("x", num_rows)])
}

/// Bytes that a call reads or writes, by the name of their field.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    name: &'static str,
    first: usize,
    bytes: usize,
}

impl Span {
    /// Of that many bytes; none where the pointer is NULL.
    pub fn new<T>(name: &'static str, pointer: *const T, bytes: usize) -> Self {
        Span { name, first: pointer.addr(), bytes: if pointer.is_null() { 0 } else { bytes } }
    }

    /// All of a caller's scratch; none where the library's own is taken.
    pub fn of_workspace(workspace: Workspace) -> Self {
        Span::new("workspace", workspace.pointer, usize::try_from(workspace.size).unwrap_or(usize::MAX))
    }

    /// Of rows of values of that many bytes; the most there is where strides of a caller's ask for more.
    pub fn of_rows<T>(name: &'static str, pointer: *const T, size: usize, rows: [usize; 3]) -> Self {
        let [num_rows, stride, width] = rows;
        let values = num_rows.saturating_sub(1).saturating_mul(stride).saturating_add(width);
        Span::new(name, pointer, values.saturating_mul(size))
    }

    fn ends_before(self, other: Span) -> bool {
        self.first.saturating_add(self.bytes) <= other.first
    }
}

/// `written` is written while others are still read, or written by other threads.
pub(crate) fn apart(written: Span, others: &[Span]) -> Result<()> {
    let meets = |other: &&Span| {
        written.bytes > 0 && other.bytes > 0 && !written.ends_before(**other) && !other.ends_before(written)
    };
    let Some(other) = others.iter().find(meets) else { return Ok(()) };
    let rule = format!(
        "its {} bytes must not overlap the {} bytes of {} at {:#x}",
        written.bytes, other.bytes, other.name, other.first
    );
    Err(Error::argument(written.name, format!("{:#x}", written.first), rule, "Pass a buffer of its own."))
}

/// Are these columns side by side of rows of one buffer? Then what lies between the rows of one may be the other's.
fn columns_of_one_buffer(x: Rows, out: Rows) -> bool {
    // From the start of a row of x to the next start of a row of out.
    let bytes = out.first.addr().wrapping_sub(x.first.addr()) as isize;
    let apart = (bytes as i128).rem_euclid(2 * x.stride.max(1) as i128) as usize;
    x.stride == out.stride && apart >= 2 * x.width && apart + 2 * out.width <= 2 * x.stride
}

/// May a handle on this device be used in this process?
pub(crate) fn process_of(device: Device) -> Result<()> {
    if device == Device::Cpu { Ok(()) } else { cuda::check_process() }
}

/// A field that has no meaning yet, so that it can get one.
pub(crate) fn reserved(value: i32) -> Result<()> {
    if value == 0 { Ok(()) } else { Err(Error::argument("reserved", value, "it must be 0", "Zero the struct first.")) }
}

/// A count or size.
pub(crate) fn size_of_field(name: &str, value: i32) -> Result<usize> {
    usize::try_from(value).map_err(|_| Error::argument(name, value, "it must not be negative", "Pass its size."))
}

/// Elements between rows, at most: more than any memory holds, and far from where products of sizes overflow.
const MAX_STRIDE: usize = 1 << 40;

/// Elements between rows, 0 meaning dense.
pub(crate) fn stride(name: &str, value: i64, width_name: &str, width: usize) -> Result<usize> {
    match usize::try_from(value) {
        Ok(0) => Ok(width),
        Ok(stride) if stride >= width && stride <= MAX_STRIDE => Ok(stride),
        _ => {
            let rule =
                format!("it must be 0 (dense), or at least {width_name}, which is {width}, and at most {MAX_STRIDE}");
            Err(Error::argument(name, value, rule, "Pass the elements between two rows."))
        }
    }
}

pub(crate) fn device_of(kind: i32, ordinal: i32) -> Result<Device> {
    match (kind as u32, ordinal) {
        (NVFP4_MOE_DEVICE_CPU, 0) => Ok(Device::Cpu),
        (NVFP4_MOE_DEVICE_CPU, _) => {
            Err(Error::argument("device_ordinal", ordinal, "it must be 0 on the CPU", "Pass 0."))
        }
        (NVFP4_MOE_DEVICE_CUDA, 0..) => Ok(Device::Cuda(ordinal, KernelChoice::Own)),
        (NVFP4_MOE_DEVICE_CUDA_PORTABLE, 0..) => Ok(Device::Cuda(ordinal, KernelChoice::Portable)),
        (NVFP4_MOE_DEVICE_CUDA | NVFP4_MOE_DEVICE_CUDA_PORTABLE, _) => {
            Err(Error::argument("device_ordinal", ordinal, "it must not be negative", "Pass a CUDA device index."))
        }
        _ => {
            let rule = "it must be 0 (CPU), 1 (CUDA) or 2 (CUDA, portable kernels)";
            Err(Error::argument("device_kind", kind, rule, "Pass one of NVFP4_MOE_DEVICE_*."))
        }
    }
}

/// Default is bf16: exact for the weights, and no input scale can hurt it.
pub(crate) fn mode_of(_device: Device, mode: i32) -> Result<Mode> {
    match mode as u32 {
        NVFP4_MOE_MODE_DEFAULT | NVFP4_MOE_MODE_BF16 => Ok(Mode::Bf16),
        NVFP4_MOE_MODE_NVFP4 => Ok(Mode::Nvfp4),
        NVFP4_MOE_MODE_FP8 => Ok(Mode::Fp8),
        _ => {
            let rule = "it must be 0 (default), 1 (bf16), 2 (nvfp4) or 3 (fp8)";
            Err(Error::argument("mode", mode, rule, "Pass one of NVFP4_MOE_MODE_*."))
        }
    }
}

/// Rows of a tile; 0 leaves the choice to the library. Which sizes there are, the device says. The CPU adds in one order.
pub(crate) fn tile_rows_of(device: Device, tile_rows: i32) -> Result<Option<u32>> {
    match u32::try_from(tile_rows) {
        Ok(0) => Ok(None),
        Ok(NVFP4_MOE_TILE_ROWS_ONE_ORDER) => Ok(Some(ONE_ORDER)),
        Ok(rows) if device != Device::Cpu => Ok(Some(rows)),
        _ => {
            let rule = "it must be 0 (the library chooses), 1 (in one order), or on CUDA a size that there is";
            Err(Error::argument("tile_rows", tile_rows, rule, "Pass 0."))
        }
    }
}

pub(crate) fn policy_of(policy: i32) -> Result<ScalePolicy> {
    match policy as u32 {
        NVFP4_MOE_SCALE_STATIC => Ok(ScalePolicy::Static),
        NVFP4_MOE_SCALE_DYNAMIC => Ok(ScalePolicy::Dynamic),
        _ => {
            let rule = "it must be 0 (static) or 1 (dynamic)";
            Err(Error::argument("scale_policy", policy, rule, "Pass one of NVFP4_MOE_SCALE_*."))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Once an overflow: strides that no memory has, of as many rows as fit an i32.
    #[test]
    fn rows_that_no_memory_holds_overlap_whatever_lies_behind_them() {
        let bytes =
            |num_rows, stride, width| Rows { first: std::ptr::dangling(), stride, width }.span("x", num_rows).bytes;
        assert_eq!(bytes(3, 100, 16), 2 * (200 + 16));
        let rows = i32::MAX as usize;
        assert_eq!(bytes(rows, MAX_STRIDE, 16), usize::MAX);
        let far_apart = |first| Rows { first: std::ptr::without_provenance(first), stride: MAX_STRIDE, width: 16 };
        let one = |first| Rows { first: std::ptr::without_provenance(first), stride: 0, width: 1 };
        assert!(no_overlap(rows, far_apart(1 << 12), one(1 << 20)).is_err());
        assert!(no_overlap(rows, one(1 << 20), far_apart(1 << 12)).is_err());
        assert!(no_overlap(rows, far_apart(1 << 20), one(1 << 12)).is_ok());
    }

    #[test]
    fn columns_of_one_buffer_do_not_overlap() {
        let columns =
            |first: usize, width| Rows { first: std::ptr::without_provenance(4096 + 2 * first), stride: 64, width };
        for (x, out) in [((0, 32), (32, 32)), ((32, 32), (0, 32)), ((0, 16), (48, 16)), ((64 * 5, 32), (32, 32))] {
            let (x, out) = (columns(x.0, x.1), columns(out.0, out.1));
            assert!(no_overlap(9, x, out).is_ok() && no_overlap(9, out, x).is_ok(), "{x:?} {out:?}");
        }
        for (x, out) in [((0, 33), (32, 32)), ((0, 32), (33, 32)), ((0, 64), (0, 1)), ((0, 32), (31, 1))] {
            let (x, out) = (columns(x.0, x.1), columns(out.0, out.1));
            assert!(no_overlap(9, x, out).is_err() && no_overlap(9, out, x).is_err(), "{x:?} {out:?}");
        }
        let other_stride = Rows { stride: 65, ..columns(32, 32) };
        assert!(no_overlap(9, columns(0, 32), other_stride).is_err(), "rows that meet somewhere");
    }
}
