// SPDX-License-Identifier: Apache-2.0
//! A call that the driver refused, in words.

use crate::error::{Error, Result};
use cudarc::driver::result::DriverError;
use parking_lot::Mutex;
use std::fmt::Display;

/// What devices know of why calls fail.
static EXPLANATIONS: Mutex<Vec<Explanation>> = Mutex::new(Vec::new());
type Explanation = Box<dyn Fn() -> Option<String> + Send>;

/// Ask this, too, whenever a call fails from now on; what it says ends the error's text. It makes no call itself.
pub fn explain_refusals(explanation: impl Fn() -> Option<String> + Send + 'static) {
    EXPLANATIONS.lock().push(Box::new(explanation));
}

/// Turn a driver's refusal into [`Error::Cuda`]: `<call> is <code> (<its text>); it must be 0. <during what>`, and why, if a
/// device knows.
pub fn check<T>(call: &str, outcome: std::result::Result<T, DriverError>, during: impl Display) -> Result<T> {
    outcome.map_err(|error| {
        let text = error.error_string().ok().map(|text| text.to_string_lossy().into_owned());
        let text = text.unwrap_or_else(|| "no text".to_owned());
        let why: String =
            EXPLANATIONS.lock().iter().filter_map(|explain| explain()).map(|why| format!(" {why}")).collect();
        Error::Cuda(format!("{call} is {} ({text}); it must be 0. {during}.{why}", error.0 as u32))
    })
}
