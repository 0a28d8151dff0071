// SPDX-License-Identifier: Apache-2.0
//! Statics that a forked child starts afresh. Of its parent's threads it has only the one that forked, so pools have no
//! workers there, and a lock that another thread held is never released.

use std::sync::atomic::{AtomicPtr, Ordering};

/// A `T` for each process, made when first asked for. What the parent had stays allocated in the child and untouched: to
/// drop it could wait for threads that are not there.
pub struct PerProcess<T>(AtomicPtr<Owned<T>>);

struct Owned<T> {
    process: u32,
    value: T,
}

impl<T: Default + Sync + 'static> PerProcess<T> {
    /// None yet.
    #[allow(clippy::new_without_default)] // a static needs a const
    pub const fn new() -> Self {
        PerProcess(AtomicPtr::new(std::ptr::null_mut()))
    }

    /// This process's.
    pub fn get(&self) -> &'static T {
        let process = std::process::id();
        let known = self.0.load(Ordering::Acquire);
        // SAFETY: NULL, or leaked by `make` below, and never written again.
        match unsafe { known.as_ref() } {
            Some(owned) if owned.process == process => &owned.value,
            _ => self.make(process, known),
        }
    }

    #[cold]
    fn make(&self, process: u32, known: *mut Owned<T>) -> &'static T {
        let fresh = Box::into_raw(Box::new(Owned { process, value: T::default() }));
        let winner = match self.0.compare_exchange(known, fresh, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => fresh,
            Err(other_thread_s) => {
                // SAFETY: made above, and nobody else has seen it.
                drop(unsafe { Box::from_raw(fresh) });
                other_thread_s
            }
        };
        // SAFETY: leaked, by this thread or by one of the same process that was first.
        unsafe { &(*winner).value }
    }
}
