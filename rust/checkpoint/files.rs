//! All tensors of a checkpoint by name, over one file or many.

use super::header::{Dtype, Tensor, read_header};
use super::source::{Directory, Source};
use crate::error::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

/// Index files of today's largest models are some 40 MB.
const MAX_INDEX_BYTES: u64 = 1 << 28;

/// Bytes that [`Files::scan`] holds at a time.
const SCAN_BYTES: usize = 1 << 20;

/// The open files and where each tensor lies in them.
#[derive(Debug)]
pub struct Files {
    files: Vec<(String, Source)>,
    tensors: BTreeMap<String, Tensor>,
    /// Tensors that the index places in a file which is not there, with that file's name.
    absent: BTreeMap<String, String>,
}

impl Files {
    /// Open what the index names; without an index, `model.safetensors`; without that, every `*.safetensors`.
    pub fn open(directory: &Directory) -> Result<Self> {
        let Some(index) = directory.open(INDEX)? else {
            return Self::open_unindexed(directory);
        };
        let weight_map = parse_index(&index.read_all(INDEX, MAX_INDEX_BYTES)?)?;
        let names: BTreeSet<_> = weight_map.values().cloned().collect();
        let mut files = Self::open_named(directory, names)?;
        for (tensor, file) in weight_map {
            if files.files.iter().all(|(name, _)| *name != file) {
                files.absent.insert(tensor, file);
            } else if !files.tensors.contains_key(&tensor) {
                return Err(Error::checkpoint(
                    tensor,
                    "missing",
                    format_args!("{INDEX} places it in {file}"),
                    "Download that file and the index again: they do not belong together.",
                ));
            }
        }
        Ok(files)
    }

    fn open_unindexed(directory: &Directory) -> Result<Self> {
        let mut names = directory.names()?;
        names.retain(|name| name.ends_with(".safetensors"));
        if names.iter().any(|name| name == SINGLE) {
            names = vec![SINGLE.to_owned()];
        }
        if names.is_empty() {
            let remedy = "Pass the directory that holds the model's *.safetensors files.";
            let rule = format!("{INDEX}, {SINGLE} or other *.safetensors files are needed");
            return Err(Error::Io(format!("checkpoint is a directory without weights; {rule}. {remedy}")));
        }
        Self::open_named(directory, names)
    }

    /// Open files that are there; a tensor may lie in one of them only.
    fn open_named(directory: &Directory, names: impl IntoIterator<Item = String>) -> Result<Self> {
        let mut this = Files { files: Vec::new(), tensors: BTreeMap::new(), absent: BTreeMap::new() };
        for name in names {
            let Some(source) = directory.open(&name)? else { continue };
            for (tensor, place) in read_header(this.files.len(), &name, &source)? {
                if let Some(first) = this.tensors.get(&tensor) {
                    let first = this.files.get(first.file).map_or(&name, |(first, _)| first);
                    return Err(Error::checkpoint(
                        &tensor,
                        format_args!("in {first} and in {name}"),
                        "a tensor may occur once",
                        "Remove the file that does not belong to the checkpoint.",
                    ));
                }
                this.tensors.insert(tensor, place);
            }
            this.files.push((name, source));
        }
        Ok(this)
    }

    /// A tensor that must be there.
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        self.find(name)?.ok_or_else(|| {
            Error::checkpoint(
                name,
                "missing",
                format_args!("none of {} files has it", self.files.len()),
                "Download or export the checkpoint again.",
            )
        })
    }

    /// A tensor that may be missing altogether, but not together with its file.
    pub fn find(&self, name: &str) -> Result<Option<&Tensor>> {
        match self.absent.get(name) {
            Some(file) => Err(Error::checkpoint(
                name,
                "missing",
                format_args!("{INDEX} places it in {file}, which is not in the directory"),
                format_args!("Download {file}."),
            )),
            None => Ok(self.tensors.get(name)),
        }
    }

    /// A tensor of this dtype and shape; `meaning` says in words what the extents are.
    pub fn expect(&self, name: &str, dtype: Dtype, shape: &[u64], meaning: &str) -> Result<&Tensor> {
        let tensor = self.get(name)?;
        if tensor.dtype != dtype || *tensor.shape != *shape {
            return Err(Error::checkpoint(
                name,
                format_args!("{} {:?}", tensor.dtype, tensor.shape),
                format_args!("it must be {dtype} {shape:?} ({meaning})"),
                "Export the checkpoint again.",
            ));
        }
        Ok(tensor)
    }

    /// The value of an f32 tensor of one element, shape `[]` or `[1]`; `None` if there is no such tensor.
    pub fn scalar(&self, name: &str) -> Result<Option<f32>> {
        let Some(tensor) = self.find(name)? else { return Ok(None) };
        if tensor.dtype != Dtype::F32 || !matches!(*tensor.shape, [] | [1]) {
            return Err(Error::checkpoint(
                name,
                format_args!("{} {:?}", tensor.dtype, tensor.shape),
                "it must be F32 [] or [1] (one scale for the tensor)",
                "Export the checkpoint again.",
            ));
        }
        let mut bytes = [0; 4];
        self.read(tensor, &mut bytes)?;
        Ok(Some(f32::from_le_bytes(bytes)))
    }

    /// Copy a whole tensor into `out`, which has its length.
    pub fn read(&self, tensor: &Tensor, out: &mut [u8]) -> Result<()> {
        debug_assert_eq!(out.len() as u64, tensor.len);
        let (name, source) = &self.files[tensor.file];
        source.read_exact_at(name, out, tensor.start)
    }

    /// Show a tensor's bytes in order, in pieces of a bounded and even length: `look(offset, piece)`.
    pub fn scan(&self, tensor: &Tensor, mut look: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        let (name, source) = &self.files[tensor.file];
        let mut buf = vec![0; SCAN_BYTES.min(tensor.len as usize)];
        let mut offset = 0;
        while offset < tensor.len {
            let len = (tensor.len - offset).min(SCAN_BYTES as u64);
            let piece = &mut buf[..len as usize];
            source.read_exact_at(name, piece, tensor.start + offset)?;
            look(offset, piece)?;
            offset += len;
        }
        Ok(())
    }

    /// Every tensor's name and dtype in order of name; no dtype for those whose file is absent.
    pub fn names(&self) -> impl Iterator<Item = (&str, Option<&Dtype>)> {
        let present = self.tensors.iter().map(|(name, tensor)| (name.as_str(), Some(&tensor.dtype)));
        present.chain(self.absent.keys().map(|name| (name.as_str(), None)))
    }

    /// Files that the index names and the directory lacks, each with the number of tensors it should hold.
    pub fn absent_files(&self) -> BTreeMap<&str, usize> {
        let mut files = BTreeMap::new();
        for file in self.absent.values() {
            *files.entry(file.as_str()).or_default() += 1;
        }
        files
    }

    /// Number of open files, and their bytes.
    pub fn size(&self) -> (usize, u64) {
        (self.files.len(), self.files.iter().map(|(_, source)| source.len()).sum())
    }
}

/// `{"weight_map": {tensor: file}}`; files are plain names, so that an index cannot lead out of the directory.
fn parse_index(json: &[u8]) -> Result<BTreeMap<String, String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_slice(json).map_err(|e| {
        Error::checkpoint(
            INDEX,
            format_args!("malformed ({e})"),
            "it must map each tensor to its file in `weight_map`",
            "Download the index again.",
        )
    })?;
    if let Some((tensor, file)) =
        index.weight_map.iter().find(|(_, file)| !file.ends_with(".safetensors") || file.contains(['/', '\\']))
    {
        return Err(Error::checkpoint(
            format_args!("file of {tensor} in {INDEX}"),
            format_args!("{file:?}"),
            "it must be the plain name of a .safetensors file",
            "Download the index again.",
        ));
    }
    Ok(index.weight_map)
}
