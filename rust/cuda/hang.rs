// SPDX-License-Identifier: Apache-2.0
//! A barrier that never comes: the kernel that waits for it says so and traps (`kernels/common/wait.cuh`).
//!
//! After a trap every call of the driver fails, and says no more than that a launch failed. So the record lies in host
//! memory, and ends the text of each later failure.

use super::driver;
use super::kernels::{Kernel, Row, params};
use crate::error::Result;

/// The slowest kernel takes milliseconds. Longer is no debugger's stop, no other program's share of the GPU.
const SECONDS: u64 = 30;

/// The record of one device. Lives as long as the process.
#[derive(Debug)]
pub struct Watch {
    on_device: *mut params::HangRecord,
}

// SAFETY: an address that only kernels use.
unsafe impl Send for Watch {}
// SAFETY: the same.
unsafe impl Sync for Watch {}

impl Watch {
    /// Of the device that is entered, which has these tables of kernels.
    pub fn new(ordinal: i32, tables: Vec<&'static [Row]>) -> Result<Self> {
        let during = format_args!("Opening CUDA device {ordinal}");
        let (here, on_device) = driver::allocate_mapped(params::HangRecord::default(), during)?;
        let here = here.addr(); // a closure of another thread may read it
        driver::explain_refusals(move || {
            // SAFETY: memory of the process's life, aligned; kernels write it whole.
            let record = unsafe { (here as *const params::HangRecord).read_volatile() };
            text(&record, &tables).map(|text| format!("{text} on CUDA device {ordinal}. {REMEDY}"))
        });
        Ok(Watch { on_device })
    }

    /// What a kernel takes.
    pub fn bound(&self, kernel: Kernel) -> params::WaitBound {
        let (record, nanoseconds) = (self.on_device, SECONDS * 1_000_000_000);
        params::WaitBound { record, nanoseconds, kernel: number(kernel.place()), reserved: 0 }
    }
}

const REMEDY: &str = "It stopped itself instead of hanging. Report it; serve with cuda-portable meanwhile.";

/// A kernel in a record: never 0, which is none.
fn number((table, index): (usize, usize)) -> u32 {
    (table as u32) << 16 | (index as u32 + 1)
}

fn name(number: u32, tables: &[&'static [Row]]) -> Option<&'static str> {
    let (table, row) = (number as usize >> 16, number as usize & 0xffff);
    Some(tables.get(table)?.get(row.checked_sub(1)?)?.name)
}

/// Who waited for what; nothing if nobody did.
fn text(record: &params::HangRecord, tables: &[&'static [Row]]) -> Option<String> {
    let params::HangRecord { kernel, block, barrier, parity, milliseconds } = *record;
    let name = match kernel {
        0 => return None,
        number => name(number, tables).unwrap_or("of an unknown number"),
    };
    let seconds = f64::from(milliseconds) / 1e3;
    Some(format!("Kernel {name}, block {block}, waited {seconds} s for barrier {barrier} (parity {parity})"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::families;

    #[test]
    fn a_record_names_its_kernel() {
        let tables: Vec<_> = families::tables((9, 0)).collect();
        for (table, rows) in tables.iter().enumerate() {
            for (index, row) in rows.iter().enumerate() {
                assert_eq!(name(number((table, index)), &tables), Some(row.name));
            }
        }
        let kernel = number((1, 0));
        let record = params::HangRecord { kernel, block: 17, barrier: 4, parity: 1, milliseconds: 30_250 };
        let said = "Kernel gemm1_sm90_n8, block 17, waited 30.25 s for barrier 4 (parity 1)";
        assert_eq!(text(&record, &tables).as_deref(), Some(said));
        assert_eq!(text(&params::HangRecord::default(), &tables), None);
        let strange = params::HangRecord { kernel: u32::MAX, ..record };
        assert!(text(&strange, &tables).is_some_and(|text| text.starts_with("Kernel of an unknown number")));
    }
}
