// SPDX-License-Identifier: Apache-2.0
//! The checkpoint reader: what it reads, what it refuses, what it reports.

#![allow(clippy::unwrap_used)] // helpers of tests, which may fail as tests do

mod abi;
mod config;
mod faults;
mod inspect;
mod limits;
mod made;
mod memory;
mod mxfp4;
mod namings;
mod read;
mod refusals;
