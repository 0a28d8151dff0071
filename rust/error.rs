// SPDX-License-Identifier: Apache-2.0
//! The one error type. Its texts follow one form: `<name> is <value>; <rule>. <what to do>`.

use std::fmt::Display;

/// Why a call failed. Each variant is one status code of the C ABI.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A value breaks a rule of the header.
    #[error("{0}")]
    InvalidArgument(String),
    /// Valid, but not on this device or in this build.
    #[error("{0}")]
    Unsupported(String),
    /// Workspace or storage is smaller than its size query says.
    #[error("{what} is {given} bytes; it must be at least {needed}. {remedy}")]
    WorkspaceTooSmall {
        /// Which buffer: `workspace_size` or `storage_size`.
        what: &'static str,
        /// Bytes that were given.
        given: u64,
        /// Bytes that are needed.
        needed: u64,
        /// Which size query to call.
        remedy: &'static str,
    },
    /// Forward before prepare, or static scales that were never given.
    #[error("{0}")]
    NotPrepared(String),
    /// Checkpoint files were read, and are wrong.
    #[error("{0}")]
    Checkpoint(String),
    /// Checkpoint files could not be read.
    #[error("{0}")]
    Io(String),
    /// The CUDA driver refused; the text names call, kernel and device.
    #[error("{0}")]
    Cuda(String),
    /// A bug in this library.
    #[error("{0}")]
    Internal(String),
    /// Host memory that the system refused.
    #[error("{name} is {len}; it needs {bytes} bytes of host memory, which the system refused. Pass less at a time.")]
    OutOfMemory {
        /// What the memory is for.
        name: &'static str,
        /// Its elements.
        len: usize,
        /// Its bytes.
        bytes: usize,
    },
}

impl Error {
    /// `<name> is <value>; <rule>. <remedy>`
    pub fn argument(name: impl Display, value: impl Display, rule: impl Display, remedy: impl Display) -> Self {
        Error::InvalidArgument(format!("{name} is {value}; {rule}. {remedy}"))
    }

    /// As [`Error::argument`], for what a file holds.
    pub fn checkpoint(name: impl Display, value: impl Display, rule: impl Display, remedy: impl Display) -> Self {
        Error::Checkpoint(format!("{name} is {value}; {rule}. {remedy}"))
    }
}

/// `Ok` or the crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
