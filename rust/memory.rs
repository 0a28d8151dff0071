// SPDX-License-Identifier: Apache-2.0
//! Host memory whose size a caller or a file decides: what the system refuses is an error, not the end of the process.

use crate::error::{Error, Result};
use std::io;

/// An empty vector with room for `len` elements.
pub fn vec_for<T>(name: &'static str, len: usize) -> Result<Vec<T>> {
    let mut vec = Vec::new();
    make_room(&mut vec, name, len)?;
    Ok(vec)
}

/// `len` elements.
pub fn filled<T: Clone>(name: &'static str, len: usize, value: T) -> Result<Vec<T>> {
    let mut vec = vec_for(name, len)?;
    vec.resize(len, value);
    Ok(vec)
}

/// Bring a buffer that is used again to `len` elements.
pub fn resize<T: Clone>(vec: &mut Vec<T>, name: &'static str, len: usize, value: T) -> Result<()> {
    make_room(vec, name, len.saturating_sub(vec.len()))?;
    vec.resize(len, value);
    Ok(())
}

/// Is there memory for what a parser or a report will allocate piece by piece, `bytes` in all? It is asked for at once,
/// given back untouched, and then there for them.
pub fn ask_for(name: &'static str, bytes: usize) -> Result<()> {
    let asked = vec_for::<u8>(name, bytes)?;
    std::hint::black_box(&asked); // else the compiler sees that it is not used, and asks for nothing
    Ok(())
}

/// What the small things of a call, or of one task of it, take together: names, tasks, texts.
const SMALL_THINGS: usize = 256 << 10;

/// Is there memory for them? Each is too small to be asked for by itself. Asked on the thread that needs them, because
/// allocators keep memory by threads.
pub fn ask_for_small_things() -> Result<()> {
    ask_for("bytes of working memory", SMALL_THINGS)
}

/// Text that grows as it is written; write to it as to a file.
#[derive(Default)]
pub struct Text(Vec<u8>);

impl io::Write for Text {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_reserve(bytes.len())?;
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Text {
    /// All of it, if `written` says that there was memory for it. Nothing but memory can fail.
    pub fn finish(self, name: &'static str, written: io::Result<()>) -> Result<String> {
        let len = self.0.len();
        let refused = || Error::OutOfMemory { name, len, bytes: 2 * len };
        written.map_err(|_| refused())?;
        String::from_utf8(self.0).map_err(|e| Error::Internal(format!("{name}: {e}")))
    }
}

fn make_room<T>(vec: &mut Vec<T>, name: &'static str, more: usize) -> Result<()> {
    let len = vec.len().saturating_add(more);
    let refused = |_| Error::OutOfMemory { name, len, bytes: len.saturating_mul(size_of::<T>()) };
    vec.try_reserve_exact(more).map_err(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_memory_holds_is_an_error() {
        assert!(vec_for::<f32>("num_cols", 1 << 10).unwrap().capacity() >= 1 << 10);
        for len in [1 << 60, usize::MAX] {
            let error = vec_for::<f32>("num_cols", len).unwrap_err();
            let bytes = len.saturating_mul(4);
            let wanted = format!("num_cols is {len}; it needs {bytes} bytes of host memory, ");
            assert!(error.to_string().starts_with(&wanted), "{error}");
        }
    }
}
