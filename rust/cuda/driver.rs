//! Driver calls whose failures name the call, and what it was for.

use crate::error::{Error, Result};
use cudarc::driver::result::DriverError;
use cudarc::driver::{result, sys};

/// Turn a driver's refusal into [`Error::Cuda`]: `<call> is <code> (<its text>); it must be 0. <during what>`.
pub fn check<T>(
    call: &str,
    outcome: std::result::Result<T, DriverError>,
    during: impl FnOnce() -> String,
) -> Result<T> {
    outcome.map_err(|error| {
        let text = error.error_string().ok().map(|text| text.to_string_lossy().into_owned());
        let text = text.unwrap_or_else(|| "no text".to_owned());
        Error::Cuda(format!("{call} is {} ({text}); it must be 0. {}.", error.0 as u32, during()))
    })
}

/// Makes a context current, and the one before again when dropped.
#[derive(Debug)]
pub struct Entered {
    before: Option<sys::CUcontext>,
    changed: bool,
}

impl Entered {
    /// Make `context` current unless it is already. torch's default stream is NULL, so the context decides the device.
    pub fn new(context: sys::CUcontext) -> Result<Self> {
        let during = || "Making the device's context current".to_owned();
        let before = check("cuCtxGetCurrent", result::ctx::get_current(), during)?;
        let changed = before != Some(context);
        if changed {
            // SAFETY: a primary context that the device holds for the life of the process.
            check("cuCtxSetCurrent", unsafe { result::ctx::set_current(context) }, during)?;
        }
        Ok(Entered { before, changed })
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        if self.changed {
            // SAFETY: the context that was current before, or none. A failure here has nobody to tell.
            let _ = unsafe { result::ctx::set_current(self.before.unwrap_or(std::ptr::null_mut())) };
        }
    }
}
