// SPDX-License-Identifier: Apache-2.0
//! Where bytes come from: files of a directory, or of memory (for tests and the fuzzer).
//!
//! Files are read with `pread`, not mapped. A mapped file that someone truncates kills the process, its pages count
//! as ours (so a layer would be held twice while it is copied), and the copy has to be made either way.

use super::text::{fault, printable};
use crate::error::{Error, Result};
use crate::memory::{ask_for, filled};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::SystemTime;

/// Bytes that parsed JSON may take for each byte of its text, tables that grow by doubling included.
pub const PARSED_BYTES: usize = 16;

/// A flat set of named files.
#[derive(Debug)]
pub enum Directory {
    /// On disk.
    Disk(PathBuf),
    /// Contents by name.
    Memory(BTreeMap<String, Vec<u8>>),
}

/// One open file.
#[derive(Debug)]
pub enum Source {
    /// An open regular file, and what it was when it was opened: its size, and when it had last been written.
    Disk(File, u64, Option<SystemTime>),
    /// Its contents.
    Memory(Vec<u8>),
}

impl Directory {
    /// Names of its files, sorted.
    pub fn names(&self) -> Result<Vec<String>> {
        let path = match self {
            Directory::Memory(files) => return Ok(files.keys().cloned().collect()),
            Directory::Disk(path) => path,
        };
        let entries = fs::read_dir(path).and_then(|entries| entries.collect::<std::io::Result<Vec<_>>>());
        let entries = entries.map_err(|e| {
            let rule = "it must be a readable directory of safetensors files";
            let remedy = "Pass the model's directory; a model that is only on a hub has to be downloaded first.";
            Error::Io(format!("checkpoint is {} ({e}); {rule}. {remedy}", printable(path.display())))
        })?;
        let mut names: Vec<_> = entries.iter().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        Ok(names)
    }

    /// Open a file; `None` if there is none of that name.
    pub fn open(&self, name: &str) -> Result<Option<Source>> {
        match self {
            Directory::Memory(files) => Ok(files.get(name).map(|bytes| Source::Memory(bytes.clone()))),
            Directory::Disk(directory) => open_file(directory.join(name)).map_err(|e| io_error(name, e)),
        }
    }
}

fn open_file(path: PathBuf) -> std::io::Result<Option<Source>> {
    match fs::metadata(&path) {
        // Hubs keep files elsewhere and link to them.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && fs::symlink_metadata(&path).is_ok() => {
            return Err(std::io::Error::other("it is a symbolic link to a file that is not there"));
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
        // Opening a pipe would wait for its writer.
        Ok(metadata) if !metadata.is_file() => return Err(std::io::Error::other("it is not a regular file")),
        Ok(_) => {}
    }
    let file = File::open(&path)?;
    let metadata = file.metadata()?;
    Ok(Some(Source::Disk(file, metadata.len(), metadata.modified().ok())))
}

impl Source {
    /// Size in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Source::Disk(_, size, _) => *size,
            Source::Memory(bytes) => bytes.len() as u64,
        }
    }

    /// Fill `buf` from byte `offset` on; `name` is the file's, for the error.
    pub fn read_exact_at(&self, name: &str, buf: &mut [u8], offset: u64) -> Result<()> {
        let result = match self {
            Source::Disk(file, ..) => file.read_exact_at(buf, offset),
            Source::Memory(bytes) => {
                let end = offset.checked_add(buf.len() as u64);
                match end.and_then(|end| bytes.get(usize::try_from(offset).ok()?..usize::try_from(end).ok()?)) {
                    Some(bytes) => {
                        buf.copy_from_slice(bytes);
                        Ok(())
                    }
                    None => Err(std::io::ErrorKind::UnexpectedEof.into()),
                }
            }
        };
        result.map_err(|e| io_error(name, e))
    }

    /// Refuse what was written to since it was opened: its header may not be true any more.
    pub fn check_unchanged(&self, name: &str) -> Result<()> {
        let Source::Disk(file, size, modified) = self else { return Ok(()) };
        let now = file.metadata().map_err(|e| io_error(name, e))?;
        if now.len() == *size && now.modified().ok() == *modified {
            return Ok(());
        }
        let (name, rule) = (printable(name), "a file of an open checkpoint must stay as it is");
        let remedy = "Wait until it is written, and open the checkpoint again.";
        Err(Error::Io(format!("{name} is {} bytes and was changed since it had {size}; {rule}. {remedy}", now.len())))
    }

    /// The whole file, at most `limit` bytes.
    pub fn read_all(&self, name: &str, limit: u64) -> Result<Vec<u8>> {
        if let Some((found, remedy)) = not_weights(name, self)? {
            return Err(fault(name, found, "it must be JSON", remedy));
        }
        if self.len() > limit {
            let remedy = "Check that this is the right file.";
            return Err(fault(
                name,
                format_args!("{} bytes", self.len()),
                format_args!("at most {limit} are read"),
                remedy,
            ));
        }
        let mut bytes = filled("bytes of a JSON file", self.len() as usize, 0)?;
        ask_for("bytes of a JSON file's values", PARSED_BYTES * bytes.len())?;
        self.read_exact_at(name, &mut bytes, 0)?;
        Ok(bytes)
    }
}

/// What often lies where a model's file should: (what it is, what to do).
pub fn not_weights(name: &str, source: &Source) -> Result<Option<(&'static str, &'static str)>> {
    let mut start = [0; 16];
    let len = source.len().min(start.len() as u64) as usize;
    source.read_exact_at(name, &mut start[..len], 0)?;
    let start = start[..len].to_ascii_lowercase();
    Ok(if start.starts_with(b"version https://") {
        Some(("a git-lfs pointer", "Run `git lfs pull` in the directory, or download the file."))
    } else if start.starts_with(b"<!doctype") || start.starts_with(b"<html") {
        Some(("an HTML page", "Download the file itself, and not the page that shows it."))
    } else {
        None
    })
}

fn io_error(name: &str, error: std::io::Error) -> Error {
    let remedy = "Check its permissions, and that nothing else writes the directory";
    let name = printable(name);
    Error::Io(format!("{name} is unreadable ({error}); every file of the checkpoint is needed. {remedy}."))
}
