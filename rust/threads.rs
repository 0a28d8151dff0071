// SPDX-License-Identifier: Apache-2.0
//! The CPU worker threads: one rayon pool of our own, so that the host's pools keep their size.

use crate::error::{Error, Result};
use once_cell::sync::Lazy;
use parking_lot::RwLock;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::sync::Arc;

static POOL: Lazy<RwLock<Option<Arc<ThreadPool>>>> = Lazy::new(|| RwLock::new(None));

/// std's own choice, given, because where none is given std looks for one in the environment.
const STACK_BYTES: usize = 2 << 20;

/// The number is given, too, because rayon's 0 is a question to the environment.
fn build(num_threads: usize) -> Result<Arc<ThreadPool>> {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let num_threads = if num_threads == 0 { cores() } else { num_threads };
    let builder = ThreadPoolBuilder::new()
        .num_threads(num_threads)
        .stack_size(STACK_BYTES)
        .thread_name(|i| format!("nvfp4-moe-{i}"));
    let pool = builder.build().map_err(|e| Error::Internal(format!("{num_threads} worker threads: {e}")))?;
    Ok(Arc::new(pool))
}

/// Limit the threads; 0 = one for each core. Calls that run keep the pool they started with.
pub fn set_num_threads(num_threads: usize) -> Result<()> {
    let pool = build(num_threads)?;
    *POOL.write() = Some(pool);
    Ok(())
}

/// Run `body` where rayon's parallel iterators use our threads.
pub fn run<R: Send>(body: impl FnOnce() -> R + Send) -> Result<R> {
    let existing = POOL.read().clone();
    let pool = match existing {
        Some(pool) => pool,
        None => {
            let mut slot = POOL.write();
            match &*slot {
                Some(pool) => pool.clone(),
                None => slot.insert(build(0)?).clone(),
            }
        }
    };
    Ok(pool.install(body))
}
