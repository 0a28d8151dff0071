// SPDX-License-Identifier: Apache-2.0
//! What is waited for, and whether a stream is being captured.

use super::refusal::check;
use crate::call::Stream;
use crate::error::Result;
use cudarc::driver::{result, sys};
use std::ffi::c_void;
use std::fmt::Display;

/// Wait for all work of the stream.
pub fn synchronize_stream(stream: Stream, during: impl Display) -> Result<()> {
    // SAFETY: the caller's stream, which the driver checks.
    check("cuStreamSynchronize", unsafe { result::stream::synchronize(stream.cast()) }, during)
}

/// What is enqueued on the stream from now on waits for the event. May be captured, if the event was recorded in the capture.
///
/// # Safety
/// The event is alive.
pub unsafe fn wait_for_event(stream: Stream, event: *mut c_void) -> Result<()> {
    // SAFETY: the caller's stream and event, which the driver checks as far as it can.
    let outcome = unsafe { sys::cuStreamWaitEvent(stream.cast(), event.cast(), 0) }.result();
    check("cuStreamWaitEvent", outcome, "Waiting for shared_output_ready")
}

/// Wait for all work of the current context.
pub fn synchronize_context(during: impl Display) -> Result<()> {
    check("cuCtxSynchronize", result::ctx::synchronize(), during)
}

/// Is the stream being captured in a graph?
pub fn is_capturing(stream: Stream) -> Result<bool> {
    let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
    // SAFETY: the caller's stream, and a local to write to.
    let outcome = unsafe { sys::cuStreamIsCapturing(stream.cast(), &mut status) }.result();
    check("cuStreamIsCapturing", outcome, "Asking whether the stream is captured")?;
    Ok(status != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
}
