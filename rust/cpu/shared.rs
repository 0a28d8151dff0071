//! Memory that tasks share.

/// A pointer that tasks share; each writes rows or columns of its own.
pub struct Shared<T>(pub *mut T);

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Shared<T> {}

// SAFETY: every use states which part is its own.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// `len` elements from `index`.
    ///
    /// # Safety
    /// They lie in the buffer, and no other reference to them lives meanwhile.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn part<'a>(self, index: usize, len: usize) -> &'a mut [T] {
        // SAFETY: by contract.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(index), len) }
    }
}
