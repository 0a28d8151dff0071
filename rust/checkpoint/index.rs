// SPDX-License-Identifier: Apache-2.0
//! `model.safetensors.index.json`: which tensor lies in which file.

use super::source::Directory;
use super::text::fault;
use crate::error::Result;
use std::collections::BTreeMap;

/// Its name.
pub const INDEX: &str = "model.safetensors.index.json";

/// Those of today's largest models are some 40 MB.
const MAX_INDEX_BYTES: u64 = 1 << 28;

/// Each tensor's file, where there is an index.
///
/// Files are plain names, so that an index cannot lead out of the directory.
pub fn read_index(directory: &Directory) -> Result<Option<BTreeMap<String, String>>> {
    let Some(source) = directory.open(INDEX)? else { return Ok(None) };
    parse(&source.read_all(INDEX, MAX_INDEX_BYTES)?).map(Some)
}

fn parse(json: &[u8]) -> Result<BTreeMap<String, String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_slice(json).map_err(|e| {
        fault(
            INDEX,
            format_args!("malformed ({e})"),
            "it must map each tensor to its file in `weight_map`",
            "Download the index again.",
        )
    })?;
    let leads_out = |file: &str| !file.ends_with(".safetensors") || file.contains(['/', '\\', '\0']);
    if let Some((tensor, file)) = index.weight_map.iter().find(|(_, file)| leads_out(file)) {
        return Err(fault(
            format_args!("file of {tensor} in {INDEX}"),
            format_args!("{file:?}"),
            "it must be the plain name of a .safetensors file",
            "Download the index again.",
        ));
    }
    Ok(index.weight_map)
}
