// SPDX-License-Identifier: Apache-2.0
//! Scratch of calls that bring none: one workspace for each stream, because work of two streams may run at once.
//!
//! ```text
//! grows          to twice its size at least, also during a capture
//! outgrown       freed, unless a capture has used it: its graph reads it as long as it lives, which nobody tells us
//! kept by that   less than the one that outgrew them: each is at most half of the next
//! many streams   STREAMS workspaces that no capture has used; a new stream's takes the place of the one used longest ago
//! ```

use super::device::Device;
use super::driver::{self, DeviceAddress};
use crate::call::Stream;
use crate::error::Result;
use parking_lot::MutexGuard;

/// Streams whose workspaces are kept where no capture has used them.
const STREAMS: usize = 16;

/// Where a call computes; a shared workspace is its own until this is dropped, so that two threads on one stream take turns.
#[derive(Debug)]
pub struct Scratch<'a> {
    /// First byte.
    pub base: *mut u8,
    pub(super) _turn: Option<MutexGuard<'a, SharedWorkspaces>>,
}

impl Scratch<'_> {
    /// Of a call that needs none.
    pub fn none() -> Self {
        Scratch { base: std::ptr::null_mut(), _turn: None }
    }
}

/// The workspaces of a device.
#[derive(Debug, Default)]
pub struct SharedWorkspaces {
    all: Vec<Shared>,
    calls: u64,
}

/// The workspace of a stream.
#[derive(Debug, Default)]
struct Shared {
    stream: u64,
    address: DeviceAddress,
    size: u64,
    in_a_graph: bool,
    last_call: u64,
}

impl SharedWorkspaces {
    /// The workspace of a stream, of at least `size` bytes.
    pub fn of_stream(&mut self, device: &Device, stream: Stream, size: u64) -> Result<*mut u8> {
        let (id, capturing) = (driver::stream_id(stream)?, driver::is_capturing(stream)?);
        let place = match self.all.iter().position(|shared| shared.stream == id) {
            Some(place) => place,
            None => self.add(device, id),
        };
        self.calls += 1;
        let shared = &mut self.all[place];
        shared.last_call = self.calls;
        if shared.size < size {
            shared.grow(device, size)?;
        }
        shared.in_a_graph |= capturing;
        Ok(shared.address as *mut u8)
    }

    /// An empty one; returns its place.
    fn add(&mut self, device: &Device, stream: u64) -> usize {
        let free = |shared: &&(usize, &Shared)| !shared.1.in_a_graph;
        let places: Vec<_> = self.all.iter().enumerate().collect();
        let oldest = places.iter().filter(free).min_by_key(|(_, shared)| shared.last_call).map(|(place, _)| *place);
        match oldest {
            Some(place) if places.iter().filter(free).count() >= STREAMS => {
                self.all[place].free(device);
                self.all[place] = Shared { stream, ..Default::default() };
                place
            }
            _ => {
                self.all.push(Shared { stream, ..Default::default() });
                self.all.len() - 1
            }
        }
    }
}

impl Shared {
    fn grow(&mut self, device: &Device, size: u64) -> Result<()> {
        let larger = size.max(2 * self.size);
        if !self.in_a_graph {
            self.free(device);
        }
        let during = format_args!("Growing the shared workspace of CUDA device {} to {larger} bytes", device.ordinal);
        self.address = device.take(larger as usize, during)?;
        (self.size, self.in_a_graph) = (larger, false);
        Ok(())
    }

    /// Calls of its stream may still run: the driver waits for them.
    fn free(&mut self, device: &Device) {
        if std::mem::take(&mut self.size) > 0 {
            // SAFETY: no call that is enqueued later, and no graph, has this address.
            let _ = unsafe { device.give_back(self.address) }; // kept for the next attempt
        }
    }
}
