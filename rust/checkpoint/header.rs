// SPDX-License-Identifier: Apache-2.0
//! The header of one safetensors file: which tensor lies where.
//!
//! A file is `u64 header length (little-endian) | JSON header | data`. The header maps each tensor's name to its
//! dtype, shape and half-open byte range of the data; the ranges tile the data without gap or overlap.
//! Source: the safetensors format description. It is parsed here, and not by the `safetensors` crate, because a
//! refusal has to name the tensor and both numbers, and because a file may hold dtypes that are not ours to judge.

use super::dtype::Dtype;
use super::source::{PARSED_BYTES, Source, not_weights};
use super::text::fault;
use crate::error::{Error, Result};
use crate::memory::{ask_for, filled};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use std::collections::HashSet;
use std::fmt;

/// Longer headers are refused, as other readers do: a file that is not safetensors may claim any length.
const MAX_HEADER_BYTES: u64 = 100_000_000;

const DOWNLOAD_AGAIN: &str = "Download or copy the file again.";

/// One tensor of a file; its bytes lie inside the file and are as many as dtype and shape say.
#[derive(Debug, Clone)]
pub struct Tensor {
    /// Index of its file.
    pub file: usize,
    /// Element type.
    pub dtype: Dtype,
    /// Extents, outermost first; empty for a scalar.
    pub shape: Box<[u64]>,
    /// Its first byte, counted from the start of the file.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}

/// The tensors of a file.
#[derive(Debug)]
pub struct Header {
    /// Those whose bytes are there.
    pub whole: Vec<(String, Tensor)>,
    /// Those that lie past the end of a file that was cut off, and the refusal of each.
    pub cut_off: Vec<(String, Error)>,
}

/// Every tensor of file number `file`, checked against the file's size.
pub fn read_header(file: usize, name: &str, source: &Source) -> Result<Header> {
    let size = source.len();
    if let Some((found, remedy)) = not_weights(name, source)? {
        return Err(fault(name, found, "it must be a safetensors file", remedy));
    }
    if size < 8 {
        return Err(fault(
            name,
            format_args!("{size} bytes"),
            "a safetensors file is at least 8 bytes",
            DOWNLOAD_AGAIN,
        ));
    }
    let mut length = [0; 8];
    source.read_exact_at(name, &mut length, 0)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES {
        return Err(fault(
            format_args!("header of {name}"),
            format_args!("{length} bytes"),
            format_args!("it must be at most {MAX_HEADER_BYTES}"),
            "This is not a safetensors file, or it is damaged. Download or copy it again.",
        ));
    }
    if length > size - 8 {
        return Err(fault(
            name,
            format_args!("{size} bytes"),
            format_args!("its header ends at byte {}", length + 8),
            DOWNLOAD_AGAIN,
        ));
    }
    let mut json = filled("bytes of a header", length as usize, 0)?;
    ask_for("bytes of a header's tensors", PARSED_BYTES * length as usize)?;
    source.read_exact_at(name, &mut json, 8)?;
    let Entries(entries) = serde_json::from_slice(&json).map_err(|e| {
        fault(
            format_args!("header of {name}"),
            format_args!("malformed ({e})"),
            "it must be a JSON object of tensors",
            DOWNLOAD_AGAIN,
        )
    })?;
    drop(json);
    refuse_duplicates(name, &entries)?;
    place(file, name, entries, 8 + length, size)
}

fn refuse_duplicates(file_name: &str, entries: &[(String, Entry)]) -> Result<()> {
    let mut seen = HashSet::with_capacity(entries.len());
    match entries.iter().find(|(name, _)| !seen.insert(name)) {
        None => Ok(()),
        Some((name, _)) => {
            let value = format_args!("twice in the header of {file_name}");
            Err(fault(name, value, "a tensor may occur once", DOWNLOAD_AGAIN))
        }
    }
}

/// Turn ranges of the data into checked ranges of the file. `data` is the file offset at which the data starts.
fn place(file: usize, file_name: &str, mut entries: Vec<(String, Entry)>, data: u64, size: u64) -> Result<Header> {
    entries.sort_by_key(|(_, entry)| entry.data_offsets);
    let (mut whole, mut cut_off) = (Vec::with_capacity(entries.len()), Vec::new());
    let mut expected = 0;
    for (name, Entry { dtype, shape, data_offsets: (start, end) }) in entries {
        let past_the_end = |name: &str| {
            fault(
                name,
                format_args!("bytes {start} to {end} of the data of {file_name}"),
                format_args!("the file has {} bytes of data", size - data),
                "The file is truncated or its header is wrong. Download or copy the file again.",
            )
        };
        if start > end {
            return Err(past_the_end(&name));
        }
        if start != expected {
            return Err(fault(
                &name,
                format_args!("at byte {start} of the data of {file_name}"),
                format_args!("the tensor before it ends at {expected}, and neither gaps nor overlaps are allowed"),
                DOWNLOAD_AGAIN,
            ));
        }
        expected = end;
        let dtype = Dtype::from_name(&dtype);
        let count = shape.iter().try_fold(1u64, |product, extent| product.checked_mul(*extent));
        let len = end - start;
        if let Some(bits) = dtype.bits()
            && count.and_then(|count| count.checked_mul(bits)) != len.checked_mul(8)
        {
            return Err(fault(
                &name,
                format_args!("{len} bytes in {file_name}"),
                format_args!("its dtype {dtype} and shape {shape:?} do not fill that"),
                DOWNLOAD_AGAIN,
            ));
        }
        if end > size - data {
            let error = past_the_end(&name);
            cut_off.push((name, error));
        } else {
            whole.push((name, Tensor { file, dtype, shape: shape.into(), start: data + start, len }));
        }
    }
    if expected < size - data {
        return Err(fault(
            file_name,
            format_args!("{size} bytes"),
            format_args!("its last tensor ends at byte {}", data + expected),
            DOWNLOAD_AGAIN,
        ));
    }
    match cut_off.first() {
        Some((_, error)) if whole.is_empty() => Err(error.clone()),
        _ => Ok(Header { whole, cut_off }),
    }
}

/// A tensor as the JSON has it; offsets count from the start of the data.
#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// All tensors in file order, a name that occurs twice included, which a map would hide.
struct Entries(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct EntriesVisitor;
        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> std::result::Result<Entries, M::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(EntriesVisitor)
    }
}
