// SPDX-License-Identifier: Apache-2.0
//! The CPU worker threads: one rayon pool of our own, so that the host's pools keep their size. A forked child has its own;
//! where the system gives no thread, calls compute on their caller's.

use crate::error::Result;
use crate::memory::ask_for_small_things;
use crate::panics;
use crate::process::PerProcess;
use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// This process's pool, once it computes.
static POOL: PerProcess<Mutex<Option<Arc<ThreadPool>>>> = PerProcess::new();

/// What the caller asked for; 0 = one for each core.
static NUM_THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Computes without a pool.
    static ALONE: Cell<bool> = const { Cell::new(false) };
}

/// std's own choice, given, because where none is given std looks for one in the environment.
const STACK_BYTES: usize = 2 << 20;

/// Limit the threads; 0 = one for each core. Calls that run keep the pool they started with.
pub fn set_num_threads(num_threads: usize) {
    NUM_THREADS.store(num_threads, Relaxed);
    *slot() = None;
}

fn slot() -> MutexGuard<'static, Option<Arc<ThreadPool>>> {
    POOL.get().lock().unwrap_or_else(PoisonError::into_inner)
}

fn pool() -> Option<Arc<ThreadPool>> {
    let mut slot = slot();
    if slot.is_none() {
        *slot = build(NUM_THREADS.load(Relaxed)).map(Arc::new);
    }
    slot.clone()
}

/// As many threads as asked for, or as the system gives. The number is told to rayon, because its 0 is a question to the
/// environment.
fn build(num_threads: usize) -> Option<ThreadPool> {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let most = if num_threads == 0 { cores() } else { num_threads };
    let fewer = std::iter::successors(Some(most), |number| Some(number / 2)).take_while(|number| *number > 0);
    let pools = fewer.map(|number| {
        let builder = ThreadPoolBuilder::new()
            .num_threads(number)
            .stack_size(STACK_BYTES)
            .start_handler(|_| panics::silence_this_thread())
            .thread_name(|i| format!("nvfp4-moe-{i}"));
        builder.build().ok()
    });
    pools.flatten().next()
}

/// Run `body` where the loops below use our threads.
///
/// # Errors
/// [`Error::OutOfMemory`](crate::error::Error::OutOfMemory), before it runs.
pub fn run<R: Send>(body: impl FnOnce() -> R + Send) -> Result<R> {
    ask_for_small_things()?;
    Ok(match pool() {
        Some(pool) => pool.install(body),
        None => alone(body),
    })
}

fn alone<R>(body: impl FnOnce() -> R) -> R {
    struct Together;
    impl Drop for Together {
        fn drop(&mut self) {
            ALONE.set(false);
        }
    }
    ALONE.set(true);
    let _together = Together;
    body()
}

/// Threads that a loop uses.
pub fn count() -> usize {
    if ALONE.get() { 1 } else { rayon::current_num_threads() }
}

/// `body(state, i)` for i in `0..count`, each thread with a state of its own, at least `at_a_time` in a row: what all of
/// it comes to by `merge`, or the first error.
pub fn try_reduce<S, R: Copy + Send + Sync>(
    count: usize,
    at_a_time: usize,
    state: impl Fn() -> S + Send + Sync,
    body: impl Fn(&mut S, usize) -> Result<R> + Send + Sync,
    nothing: R,
    merge: impl Fn(R, R) -> R + Send + Sync,
) -> Result<R> {
    if ALONE.get() {
        let mut state = state();
        return (0..count).try_fold(nothing, |all, i| Ok(merge(all, body(&mut state, i)?)));
    }
    let all = (0..count).into_par_iter().with_min_len(at_a_time).map_init(state, body);
    all.try_reduce(|| nothing, |a, b| Ok(merge(a, b)))
}

/// `body(state, i)` for i in `0..count`, as [`try_reduce`].
pub fn try_for_each<S>(
    count: usize,
    at_a_time: usize,
    state: impl Fn() -> S + Send + Sync,
    body: impl Fn(&mut S, usize) -> Result<()> + Send + Sync,
) -> Result<()> {
    try_reduce(count, at_a_time, state, body, (), |(), ()| ())
}

/// What `body` makes of each item, in order, or the first error.
pub fn try_map<T: Send, R: Send>(items: Vec<T>, body: impl Fn(T) -> Result<R> + Send + Sync) -> Result<Vec<R>> {
    let body = |item| {
        ask_for_small_things()?;
        body(item)
    };
    if ALONE.get() { items.into_iter().map(body).collect() } else { items.into_par_iter().map(body).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_without_threads_computes_by_itself() {
        let here = std::thread::current().id();
        let sum = alone(|| {
            assert_eq!(count(), 1);
            let body = |seen: &mut usize, i| {
                *seen += 1;
                assert_eq!((*seen, std::thread::current().id()), (i + 1, here), "in order, on the caller's thread");
                Ok(i)
            };
            try_reduce(10, 1, || 0, body, 0, |a, b| a + b)
        });
        assert_eq!(sum.unwrap(), 45);
        assert!(!ALONE.get());
    }
}
