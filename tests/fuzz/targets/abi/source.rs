// SPDX-License-Identifier: Apache-2.0
//! Fuzzer bytes as values of C arguments, and memory of exactly the documented size.

use std::alloc::{Layout, alloc, dealloc};

/// The fuzzer's bytes, then zeros.
pub struct Source<'a> {
    data: &'a [u8],
}

impl<'a> Source<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        Source { data }
    }

    pub fn byte(&mut self) -> u8 {
        match self.data.split_first() {
            Some((first, rest)) => {
                self.data = rest;
                *first
            }
            None => 0,
        }
    }

    /// Usually one of a few; now and then any value.
    pub fn pick(&mut self, values: &[i32]) -> i32 {
        let byte = usize::from(self.byte());
        if byte > 250 { self.any() as i32 } else { values[byte % values.len()] }
    }

    /// `usual`, unless a byte says otherwise: for arguments whose other values end a call early.
    pub fn rarely(&mut self, usual: i32, values: &[i32]) -> i32 {
        if self.byte() < 240 { usual } else { self.pick(values) }
    }

    pub fn any(&mut self) -> u64 {
        (0..8).fold(0, |bits, _| bits << 8 | u64::from(self.byte()))
    }

    /// A byte count or coordinate: small, or anything.
    pub fn size(&mut self) -> u64 {
        let byte = self.byte();
        if byte < 128 { u64::from(byte) } else { self.any() }
    }

    pub fn float(&mut self) -> f32 {
        const USUAL: [f32; 12] = [0.0, 1.0, 0.01, 1.702, 7.0, 1e-33, 1e-38, -1.0, f32::NAN, f32::INFINITY, 1e38, -0.0];
        let byte = usize::from(self.byte());
        if byte < 240 { USUAL[byte % 16 % USUAL.len()] } else { f32::from_bits(self.any() as u32) }
    }

    /// A row stride for rows of `width`: dense, padded, too small, or absurd.
    pub fn stride(&mut self, width: i32) -> i64 {
        let width = i64::from(width);
        match self.byte() % 16 {
            0..=8 => 0,
            9 | 10 => width,
            11 => width.saturating_add(3),
            12 => width.saturating_mul(2),
            13 => width - 1,
            14 => -width,
            _ => self.any() as i64,
        }
    }
}

/// A struct as an older or newer caller would pass it; usually as it is, now and then NULL.
pub fn struct_of<T: Copy>(source: &mut Source, value: &T) -> Tensor {
    let size = size_of::<T>();
    let (claimed, tail) = match source.byte() {
        0 => return Tensor::null(),
        1 => (source.byte() as usize % size, 0),
        2 => (size + 8, 0),
        3 => (size + 8, 1),
        4 => (4097 + source.byte() as usize, 0),
        _ => (size, 0),
    };
    let mut memory = Tensor::new(claimed.max(4) as u64, 16);
    let bytes = memory.bytes();
    bytes.fill(tail);
    // SAFETY: T is plain data, and min() keeps both sides within bounds.
    unsafe { std::ptr::copy_nonoverlapping((value as *const T).cast(), bytes.as_mut_ptr(), size.min(bytes.len())) };
    bytes[..4].copy_from_slice(&(claimed as u32).to_ne_bytes());
    memory
}

/// Memory of one argument, freed when dropped; or NULL.
pub struct Tensor {
    memory: *mut u8,
    layout: Layout,
}

impl Tensor {
    fn new(len: u64, alignment: usize) -> Self {
        let layout = Layout::from_size_align(len.max(1) as usize, alignment).unwrap();
        // SAFETY: the layout has at least one byte.
        let memory = unsafe { alloc(layout) };
        assert!(!memory.is_null());
        // SAFETY: just allocated; tensors of callers are initialised.
        unsafe { memory.write_bytes(0x41, layout.size()) };
        Tensor { memory, layout }
    }

    pub fn null() -> Self {
        Tensor { memory: std::ptr::null_mut(), layout: Layout::new::<()>() }
    }

    /// `len` bytes of the fuzzer's choice, or NULL: where it says so, and where `len` is too much to allocate.
    pub fn bytes_or_null(source: &mut Source, len: Option<i64>) -> Self {
        let Some(len) = len.filter(|len| *len >= 0) else { return Self::null() };
        if source.byte() == 0 {
            return Self::null();
        }
        let mut tensor = Self::new(len as u64, 16);
        let (pattern, step) = (source.byte(), source.byte() | 1);
        for (i, byte) in tensor.bytes().iter_mut().enumerate() {
            *byte = pattern.wrapping_add((i as u8).wrapping_mul(step));
        }
        tensor
    }

    /// Block scales: usually valid ones.
    pub fn scales(source: &mut Source, len: Option<i64>) -> Self {
        let mut tensor = Self::bytes_or_null(source, len);
        if source.byte() < 230 {
            tensor.bytes().iter_mut().for_each(|byte| *byte = *byte % 0x7f);
        }
        tensor
    }

    /// `count` floats: usually finite and positive.
    pub fn floats(source: &mut Source, count: Option<i64>) -> Self {
        let mut tensor = Self::bytes_or_null(source, count.map(|n| n * 4));
        let value = if source.byte() < 200 { 0.03 } else { source.float() };
        tensor.bytes().chunks_exact_mut(4).for_each(|chunk| chunk.copy_from_slice(&value.to_ne_bytes()));
        tensor
    }

    /// `count` ids of 4 or 8 bytes: most of them in `0..limit`, some hostile.
    pub fn ids(source: &mut Source, count: Option<i64>, id_bytes: i64, limit: i32) -> Self {
        let mut tensor = Self::bytes_or_null(source, count.map(|n| n * id_bytes));
        for chunk in tensor.bytes().chunks_exact_mut(id_bytes as usize) {
            let id = match source.byte() {
                255 => source.any() as i64,
                254 => -1,
                253 => i64::from(limit),
                byte => i64::from(byte) % i64::from(limit.max(1)),
            };
            chunk.copy_from_slice(&id.to_ne_bytes()[..id_bytes as usize]);
        }
        tensor
    }

    /// Part sizes that usually sum to `total`.
    pub fn parts(source: &mut Source, count: Option<i64>, total: i32) -> Self {
        let mut tensor = Self::bytes_or_null(source, count.map(|n| n * 4));
        let mut left = total;
        let num_parts = tensor.bytes().len() / 4;
        for (i, chunk) in tensor.bytes().chunks_exact_mut(4).enumerate() {
            let rows = match source.byte() {
                255 => source.any() as i32,
                _ if i + 1 == num_parts => left,
                byte => i32::from(byte) % left.max(1),
            };
            left = left.wrapping_sub(rows);
            chunk.copy_from_slice(&rows.to_ne_bytes());
        }
        tensor
    }

    /// Scratch of `needed` bytes, one byte less, one more, or NULL.
    pub fn workspace(source: &mut Source, needed: u64) -> Self {
        let len = match source.byte() % 4 {
            0 => needed,
            1 => needed.saturating_sub(1),
            2 => needed + 1,
            _ => return Self::null(),
        };
        if len > 1 << 25 { Self::null() } else { Self::new(len, if source.byte() == 0 { 16 } else { 256 }) }
    }

    pub fn pointer<T>(&self) -> *mut T {
        self.memory.cast()
    }

    pub fn is_null(&self) -> bool {
        self.memory.is_null()
    }

    pub fn len(&self) -> u64 {
        self.layout.size() as u64
    }

    pub fn bytes(&mut self) -> &mut [u8] {
        if self.memory.is_null() {
            return &mut [];
        }
        // SAFETY: ours, of that size, initialised.
        unsafe { std::slice::from_raw_parts_mut(self.memory, self.layout.size()) }
    }
}

impl Drop for Tensor {
    fn drop(&mut self) {
        if !self.memory.is_null() {
            // SAFETY: allocated with this layout.
            unsafe { dealloc(self.memory, self.layout) };
        }
    }
}
