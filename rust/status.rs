// SPDX-License-Identifier: Apache-2.0
//! What the kernels saw: counters that the doctor reads. The CPU's live here; CUDA's on the device.

use crate::format::BlockReport;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

/// A reading of the counters; the fields of `nvfp4_moe_device_status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct DeviceStatus {
    pub saturated_blocks: u64,
    pub nonfinite_values: u64,
    pub out_of_range_ids: u64,
    pub first_bad_token: i64,
}

/// Counters that many threads add to.
#[derive(Debug)]
pub struct Counters {
    saturated_blocks: AtomicU64,
    nonfinite_values: AtomicU64,
    out_of_range_ids: AtomicU64,
    first_bad_token: AtomicI64,
}

/// Counters of the CPU.
pub static CPU: Counters = Counters {
    saturated_blocks: AtomicU64::new(0),
    nonfinite_values: AtomicU64::new(0),
    out_of_range_ids: AtomicU64::new(0),
    first_bad_token: AtomicI64::new(-1),
};

impl Counters {
    /// Count what quantising a row of `token` met.
    pub fn add_blocks(&self, token: usize, report: BlockReport) {
        if !report.is_clean() {
            self.saturated_blocks.fetch_add(report.saturated_blocks, Relaxed);
            self.nonfinite_values.fetch_add(report.nonfinite_values, Relaxed);
            self.note_token(token);
        }
    }

    /// Count ids that named no expert.
    pub fn add_out_of_range(&self, token: usize, count: u64) {
        self.out_of_range_ids.fetch_add(count, Relaxed);
        self.note_token(token);
    }

    fn note_token(&self, token: usize) {
        let _ = self.first_bad_token.compare_exchange(-1, token as i64, Relaxed, Relaxed);
    }

    /// Read all counters.
    pub fn read(&self) -> DeviceStatus {
        DeviceStatus {
            saturated_blocks: self.saturated_blocks.load(Relaxed),
            nonfinite_values: self.nonfinite_values.load(Relaxed),
            out_of_range_ids: self.out_of_range_ids.load(Relaxed),
            first_bad_token: self.first_bad_token.load(Relaxed),
        }
    }

    /// Start again.
    pub fn reset(&self) {
        for counter in [&self.saturated_blocks, &self.nonfinite_values, &self.out_of_range_ids] {
            counter.store(0, Relaxed);
        }
        self.first_bad_token.store(-1, Relaxed);
    }
}
