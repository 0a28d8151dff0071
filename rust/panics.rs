// SPDX-License-Identifier: Apache-2.0
//! Panics of this library print nothing: their text is the call's error. Rust prints from a hook of the whole process, so
//! ours stands before the host's and passes on what is not ours.

use std::cell::Cell;
use std::panic::{set_hook, take_hook};
use std::sync::atomic::{AtomicBool, Ordering};

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Run `body`; a panic in it, on this thread, reaches no hook.
pub fn quietly<R>(body: impl FnOnce() -> R) -> R {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            let _ = QUIET.try_with(|quiet| quiet.set(self.0));
        }
    }
    stand_before_the_hook();
    // A thread that is ending has no such variable any more.
    let _restore = Restore(QUIET.try_with(|quiet| quiet.replace(true)).unwrap_or(false));
    body()
}

/// The same for the rest of this thread, which is the library's own.
pub fn silence_this_thread() {
    QUIET.set(true);
}

/// Once. A hook that the host sets later is in its place, and is the host's to answer for.
fn stand_before_the_hook() {
    static STANDS: AtomicBool = AtomicBool::new(false);
    // A thread that panics may not change the hook; the next call will.
    if STANDS.load(Ordering::Relaxed) || std::thread::panicking() || STANDS.swap(true, Ordering::Relaxed) {
        return;
    }
    let host_s = take_hook();
    set_hook(Box::new(move |panic| {
        if !QUIET.try_with(Cell::get).unwrap_or(false) {
            host_s(panic);
        }
    }));
}
