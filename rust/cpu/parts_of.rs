// SPDX-License-Identifier: Apache-2.0
//! Buffers that many tasks of a call write, each its own part.

/// A buffer in the workspace or the caller's output. Tasks take parts of it that do not overlap, which no borrow can say
/// where rows are strided or tasks own columns.
pub struct PartsOf<T>(*mut T);

impl<T> Clone for PartsOf<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for PartsOf<T> {}

// SAFETY: an address; `part` makes its caller promise that no part is handed out twice at a time.
unsafe impl<T: Send> Send for PartsOf<T> {}
// SAFETY: the same promise holds between threads.
unsafe impl<T: Send> Sync for PartsOf<T> {}

impl<T> PartsOf<T> {
    /// A buffer that outlives the call.
    pub fn new(pointer: *mut T) -> Self {
        PartsOf(pointer)
    }

    /// Address of an element, for kernels that read through pointers.
    pub fn address(self, index: usize) -> *mut T {
        self.0.wrapping_add(index)
    }

    /// `len` elements from `index`.
    ///
    /// # Safety
    /// They lie in the buffer, and no other reference to them lives meanwhile.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn part<'a>(self, index: usize, len: usize) -> &'a mut [T] {
        // SAFETY: inside the buffer and unshared, as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(index), len) }
    }
}
