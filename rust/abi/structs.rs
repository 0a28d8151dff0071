// SPDX-License-Identifier: Apache-2.0
//! Structs that cross the ABI, of callers older and newer than this library: each starts with its own size.

use super::header::*;
use crate::error::{Error, Result};
use std::mem::{MaybeUninit, size_of};

/// A public struct: plain integers, floats and pointers, `struct_size` first, for which zero bytes are a value.
///
/// # Safety
/// The type must be `repr(C)`, without padding, valid for any bytes, and start with a `u32` struct size.
pub(crate) unsafe trait Struct: Copy {
    /// Its name in the header.
    const NAME: &'static str;
    /// `size_of` it in the first release; callers never send less.
    const FIRST_SIZE: usize;
}

/// No caller means a struct larger than this.
const MAX_SIZE: usize = 4096;

/// The structs of the header, each with its size in the first release.
macro_rules! structs {
    ($($name:ident: $first_size:literal;)*) => {
        $(
            // SAFETY: bindgen writes repr(C) and only integers, floats and pointers; tests/abi/abi_json.py refuses
            // padding, and a first field other than `uint32_t struct_size`.
            unsafe impl Struct for $name {
                const NAME: &'static str = stringify!($name);
                const FIRST_SIZE: usize = $first_size;
            }
        )*
    };
}

structs! {
    nvfp4_moe_layer_desc: 56;
    nvfp4_moe_layer_weights: 64;
    nvfp4_moe_layer_args: 104;
    nvfp4_moe_weight_error: 36;
    nvfp4_moe_linear_desc: 32;
    nvfp4_moe_linear_weights: 48;
    nvfp4_moe_linear_args: 56;
    nvfp4_moe_device_status: 40;
    nvfp4_moe_quantize_args: 72;
    nvfp4_moe_checkpoint_layer_info: 48;
    nvfp4_moe_checkpoint_buffers: 64;
}

/// Copy a caller's struct, older (shorter: the rest is 0) or newer (longer: its tail must be 0).
///
/// # Safety
/// `pointer` must be NULL or readable for 4 bytes and for as many as its first 4 say; of any alignment.
pub(crate) unsafe fn read_struct<T: Struct>(pointer: *const T) -> Result<T> {
    const { assert!(T::FIRST_SIZE >= 8 && T::FIRST_SIZE <= size_of::<T>() && size_of::<T>() <= MAX_SIZE) };
    let name = T::NAME;
    if pointer.is_null() {
        return Err(Error::argument(name, "NULL", "it must point to a struct", "Pass its address."));
    }
    // SAFETY: not NULL, and so readable for 4 bytes.
    let size = unsafe { struct_size(pointer) };
    if size < T::FIRST_SIZE || size > MAX_SIZE {
        return Err(Error::argument(
            format_args!("{name}.struct_size"),
            size,
            format_args!("this library knows {} bytes", size_of::<T>()),
            format_args!("Set it to sizeof({name})."),
        ));
    }
    let known = size.min(size_of::<T>());
    let bytes = pointer.cast::<u8>();
    // SAFETY: the caller's struct is readable for `size` bytes, of which known..size is the tail.
    let tail = unsafe { std::slice::from_raw_parts(bytes.add(known), size - known) };
    if let Some(at) = tail.iter().position(|byte| *byte != 0) {
        return Err(Error::argument(
            format_args!("{name} byte {}", known + at),
            tail[at],
            format_args!("this library knows {} bytes of the struct and the rest must be 0", size_of::<T>()),
            "Use a newer library, or leave the newer field unset.",
        ));
    }
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: `known` bytes fit both sides, and any bytes are a T (the trait's promise).
    unsafe {
        std::ptr::copy_nonoverlapping(bytes, value.as_mut_ptr().cast(), known);
        Ok(value.assume_init())
    }
}

/// Fill a caller's struct: its own `struct_size` bytes and no more, of which those that this library knows. The size
/// itself stays the caller's.
///
/// # Safety
/// `pointer` must have passed [`read_struct`], and be writable for as many bytes as its first 4 say.
pub(crate) unsafe fn write_struct<T: Struct>(pointer: *mut T, value: T) {
    let header = size_of::<u32>();
    // SAFETY: read_struct found a size of at least FIRST_SIZE; `value` is a struct of our own, and elsewhere.
    unsafe {
        let known = struct_size(pointer.cast_const()).min(size_of::<T>());
        let from = (&raw const value).cast::<u8>().add(header);
        std::ptr::copy_nonoverlapping(from, pointer.cast::<u8>().add(header), known - header);
    }
}

/// The first field.
///
/// # Safety
/// `pointer` must be readable for 4 bytes.
unsafe fn struct_size<T: Struct>(pointer: *const T) -> usize {
    // SAFETY: that is the contract; alignment is not assumed.
    unsafe { pointer.cast::<u32>().read_unaligned() as usize }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A struct that has grown twice since its first release.
    #[derive(Debug, Clone, Copy, PartialEq)]
    #[repr(C)]
    struct Grown {
        struct_size: u32,
        first: u32,
        second: u64,
        third: u64,
    }

    // SAFETY: repr(C), integers only, without padding.
    unsafe impl Struct for Grown {
        const NAME: &'static str = "grown";
        const FIRST_SIZE: usize = 8;
    }

    const POISON: u8 = 0xa5;

    /// A caller's memory: `size` in front, then `size - 4` bytes of `filling`, then poison that is not the struct's.
    fn memory(size: usize, filling: u8) -> [u8; 48] {
        let mut memory = [POISON; 48];
        memory[..4].copy_from_slice(&(size as u32).to_le_bytes());
        memory[4..size].fill(filling);
        memory
    }

    #[test]
    fn a_struct_of_any_release_is_read() {
        for size in [8, 16, 24] {
            let mut memory = memory(size, 1);
            // SAFETY: the memory is as long as its size says, and longer.
            let value = unsafe { read_struct(memory.as_mut_ptr().cast::<Grown>()) }.unwrap();
            let field = |end| if size >= end { 0x0101_0101_0101_0101 } else { 0 };
            let wanted = Grown { struct_size: size as u32, first: 0x0101_0101, second: field(16), third: field(24) };
            assert_eq!(value, wanted, "what an older caller does not know is 0");
        }
        let mut longer = memory(32, 0);
        // SAFETY: as long as it says.
        assert!(unsafe { read_struct(longer.as_mut_ptr().cast::<Grown>()) }.is_ok());
        longer[31] = 1;
        // SAFETY: as long as it says.
        let error = unsafe { read_struct(longer.as_mut_ptr().cast::<Grown>()) }.unwrap_err().to_string();
        assert!(error.starts_with("grown byte 31 is 1; this library knows 24 bytes"), "{error}");
    }

    #[test]
    fn a_struct_is_filled_as_far_as_its_caller_knows_it_and_we_do() {
        let value = Grown { struct_size: 24, first: !0, second: !0, third: !0 };
        for (size, known) in [(8, 8), (12, 12), (16, 16), (24, 24), (32, 24), (44, 24)] {
            let mut memory = memory(size, 0);
            // SAFETY: the memory is as long as its size says, and longer.
            unsafe {
                read_struct(memory.as_mut_ptr().cast::<Grown>()).unwrap();
                write_struct(memory.as_mut_ptr().cast::<Grown>(), value);
            }
            assert_eq!(memory[..4], (size as u32).to_le_bytes(), "the size stays the caller's");
            assert!(memory[4..known].iter().all(|byte| *byte == 0xff), "{size}: {memory:?}");
            assert!(memory[known..size].iter().all(|byte| *byte == 0), "{size}: {memory:?}");
            assert!(memory[size..].iter().all(|byte| *byte == POISON), "{size} bytes are the caller's: {memory:?}");
        }
    }
}
