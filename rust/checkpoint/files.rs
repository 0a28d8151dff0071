// SPDX-License-Identifier: Apache-2.0
//! All tensors of a checkpoint by name, over one file or many.
//!
//! A fault stays where it is: a file that is missing or damaged, or a tensor that is in no file or in two, is remembered
//! and told to those who ask for such a tensor. Only a checkpoint without a single readable file is refused as a whole.

use super::dtype::Dtype;
use super::header::{Header, Tensor, read_header};
use super::index::{INDEX, read_index};
use super::source::{Directory, Source};
use super::text::{fault, printable, shorten};
use crate::error::{Error, Result};
use crate::memory::{ask_for, ask_for_small_things, filled};
use std::collections::{BTreeMap, BTreeSet};

const SINGLE: &str = "model.safetensors";

/// Bytes that [`Files::scan`] holds at a time.
const SCAN_BYTES: usize = 1 << 20;

/// The open files and where each tensor lies in them.
#[derive(Debug, Default)]
pub struct Files {
    files: Vec<(String, Source)>,
    tensors: BTreeMap<String, Tensor>,
    faults: BTreeMap<String, Fault>,
    /// Files that are there and cannot be used, with the error.
    damaged: BTreeMap<String, Error>,
    /// Safetensors files that neither the index nor the rule for directories without one asks for.
    unread: Vec<String>,
}

/// Why a tensor that was announced cannot be had.
#[derive(Debug)]
enum Fault {
    /// The index places it in a file that is not in the directory.
    FileMissing(String),
    /// The index places it in a file that is damaged.
    FileDamaged(String),
    /// The index places it in a file that does not hold it.
    NotInFile(String),
    /// It lies in two files.
    Twice(String, String),
    /// It lies past the end of its file.
    CutOff(String, Error),
}

impl Files {
    /// Open what the index names; without an index, `model.safetensors`; without that, every `*.safetensors`.
    pub fn open(directory: &Directory) -> Result<Self> {
        ask_for_small_things()?;
        let mut present = directory.names()?;
        present.retain(|name| name.ends_with(".safetensors"));
        let Some(index) = read_index(directory)? else {
            return Self::open_unindexed(directory, present);
        };
        let names: BTreeSet<_> = index.values().cloned().collect();
        let mut files = Self::open_named(directory, &names)?;
        for (tensor, file) in index {
            files.place(tensor, file);
        }
        files.unread = present.into_iter().filter(|name| !names.contains(name)).collect();
        Ok(files)
    }

    fn open_unindexed(directory: &Directory, present: Vec<String>) -> Result<Self> {
        if present.is_empty() {
            let remedy = "Pass the directory that holds the model's *.safetensors files.";
            let rule = format!("{INDEX}, {SINGLE} or other *.safetensors files are needed");
            return Err(Error::Io(format!("checkpoint is a directory without weights; {rule}. {remedy}")));
        }
        let single = present.iter().any(|name| name == SINGLE);
        let (names, unread): (Vec<_>, _) = present.into_iter().partition(|name| !single || name == SINGLE);
        let names = names.into_iter().collect();
        Ok(Files { unread, ..Self::open_named(directory, &names)? })
    }

    /// Open files; an error only if none can be used.
    fn open_named(directory: &Directory, names: &BTreeSet<String>) -> Result<Self> {
        let mut this = Files::default();
        for name in names {
            match directory.open(name).and_then(|source| this.add(name, source)) {
                Ok(()) => {}
                Err(error @ Error::OutOfMemory { .. }) => return Err(error),
                Err(error) => drop(this.damaged.insert(name.clone(), error)),
            }
        }
        if this.files.is_empty() {
            let missing = format_args!("{} files", names.len());
            let none =
                || fault(INDEX, missing, "none of the files that it names is in the directory", "Download them.");
            return Err(this.damaged.into_values().next().unwrap_or_else(none));
        }
        Ok(this)
    }

    fn add(&mut self, name: &str, source: Option<Source>) -> Result<()> {
        let Some(source) = source else { return Ok(()) };
        let Header { whole, cut_off } = read_header(self.files.len(), name, &source)?;
        let cut_off = cut_off.into_iter().map(|(tensor, error)| (tensor, Fault::CutOff(name.to_owned(), error)));
        self.faults.extend(cut_off);
        for (tensor, place) in whole {
            if let Some(first) = self.tensors.get(&tensor) {
                let first = self.files.get(first.file).map_or(name, |(first, _)| first).to_owned();
                self.faults.insert(tensor, Fault::Twice(first, name.to_owned()));
            } else {
                self.tensors.insert(tensor, place);
            }
        }
        self.files.push((name.to_owned(), source));
        Ok(())
    }

    /// Take an entry of the index in.
    fn place(&mut self, tensor: String, file: String) {
        if self.tensors.contains_key(&tensor) || self.faults.contains_key(&tensor) {
            return;
        }
        let is_open = self.files.iter().any(|(name, _)| *name == file);
        let fault = match self.damaged.contains_key(&file) {
            true => Fault::FileDamaged(file),
            false if is_open => Fault::NotInFile(file),
            false => Fault::FileMissing(file),
        };
        self.faults.insert(tensor, fault);
    }

    /// A tensor that must be there.
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        self.find(name)?.ok_or_else(|| {
            let rule = format!("none of {} files has it", self.files.len());
            match self.damaged.first_key_value() {
                Some((file, _)) => {
                    fault(name, "missing", format_args!("{rule}, and {file} is damaged"), "Download that.")
                }
                None => fault(name, "missing", rule, "Download or export the checkpoint again."),
            }
        })
    }

    /// A tensor that may be missing altogether, but not together with its file.
    pub fn find(&self, name: &str) -> Result<Option<&Tensor>> {
        let error = match self.faults.get(name) {
            None => return Ok(self.tensors.get(name)),
            Some(Fault::FileMissing(file)) => fault(
                name,
                "missing",
                format_args!("{INDEX} places it in {file}, which is not in the directory"),
                format_args!("Download {file}."),
            ),
            Some(Fault::FileDamaged(file)) => fault(
                name,
                "missing",
                format_args!("{INDEX} places it in {file}, which is damaged"),
                format_args!("{}", self.damaged.get(file).map(Error::to_string).unwrap_or_default()),
            ),
            Some(Fault::NotInFile(file)) => fault(
                name,
                "missing",
                format_args!("{INDEX} places it in {file}, which does not hold it"),
                "Download that file and the index again: they do not belong together.",
            ),
            Some(Fault::Twice(first, second)) => fault(
                name,
                format_args!("in {first} and in {second}"),
                "a tensor may occur once",
                "Remove the file that does not belong to the checkpoint.",
            ),
            Some(Fault::CutOff(_, error)) => error.clone(),
        };
        Err(error)
    }

    /// A tensor of one of these dtypes and of this shape; `meaning` says in words what the extents are.
    ///
    /// The dtype is judged first: another type of element often comes with another shape, and is the reason for it.
    pub fn expect(
        &self,
        name: &str,
        dtype: &[Dtype],
        shape: impl Fn(&Dtype) -> Vec<u64>,
        meaning: &str,
    ) -> Result<&Tensor> {
        let tensor = self.get(name)?;
        let known = dtype.iter().find(|known| **known == tensor.dtype);
        let wanted = known.unwrap_or(&dtype[0]);
        let wanted_shape = shape(wanted);
        if known.is_none() || *tensor.shape != *wanted_shape {
            let remedy = match tensor.dtype.is_unquantised() {
                true => "Run the layer with the model's own kernels, or export it with this matrix quantised.",
                false => "Export the checkpoint again.",
            };
            return Err(fault(
                name,
                format_args!("{} {:?}", tensor.dtype, tensor.shape),
                format_args!("it must be {wanted} {wanted_shape:?} ({meaning})"),
                remedy,
            ));
        }
        Ok(tensor)
    }

    /// The values of an f32 tensor of at most `most` elements; `None` if there is no such tensor.
    pub fn floats(&self, name: &str, most: u64) -> Result<Option<Vec<f32>>> {
        let Some(tensor) = self.find(name)? else { return Ok(None) };
        if tensor.dtype != Dtype::F32 || tensor.len / 4 > most || tensor.len == 0 {
            let rule = match most {
                1 => "it must be F32 [] or [1] (one scale for the tensor)".to_owned(),
                _ => format!("it must be F32 of at most {most} elements (scales of the experts)"),
            };
            let value = format!("{} {:?}", tensor.dtype, tensor.shape);
            return Err(fault(name, value, rule, "Export the checkpoint again."));
        }
        let mut bytes = filled("bytes of scales", tensor.len as usize, 0)?;
        self.read(tensor, 0, &mut bytes)?;
        Ok(Some(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()))
    }

    /// Fill `out` with a tensor's bytes from `offset` on; they lie within the tensor.
    pub fn read(&self, tensor: &Tensor, offset: u64, out: &mut [u8]) -> Result<()> {
        debug_assert!(offset + out.len() as u64 <= tensor.len);
        let (name, source) = &self.files[tensor.file];
        source.read_exact_at(name, out, tensor.start + offset)
    }

    /// Show `len` bytes of a tensor from `start` on in order, in pieces of a bounded and even length: `look(at, piece)`.
    pub fn scan(
        &self,
        tensor: &Tensor,
        start: u64,
        len: u64,
        mut look: impl FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut buf = filled("bytes of a scan", SCAN_BYTES.min(len as usize), 0)?;
        let mut at = 0;
        while at < len {
            let piece = &mut buf[..(len - at).min(SCAN_BYTES as u64) as usize];
            self.read(tensor, start + at, piece)?;
            look(at, piece)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Every tensor's name in order, with the tensor where it can be had.
    pub fn names(&self) -> impl Iterator<Item = (&str, Option<&Tensor>)> {
        let present = self.tensors.iter().map(|(name, tensor)| (name.as_str(), Some(tensor)));
        let missing = self.faults.keys().filter(|name| !self.tensors.contains_key(*name));
        present.chain(missing.map(|name| (name.as_str(), None)))
    }

    /// Each fault in a sentence.
    pub fn warnings(&self) -> Vec<String> {
        let (mut missing_files, mut cut_off) = (BTreeMap::<_, usize>::new(), BTreeMap::<_, Vec<&String>>::new());
        let (mut strays, mut twice) = (Vec::new(), Vec::new());
        for (tensor, fault) in &self.faults {
            match fault {
                Fault::FileMissing(file) => *missing_files.entry(printable(file)).or_default() += 1,
                Fault::NotInFile(file) => strays.push(format!("{tensor} of {file}")),
                Fault::Twice(first, second) => twice.push(format!("{tensor} in {first} and {second}")),
                Fault::CutOff(file, _) => cut_off.entry(printable(file)).or_default().push(tensor),
                Fault::FileDamaged(_) => {} // told once, with its file
            }
        }
        let mut warnings: Vec<_> = self.damaged.values().map(Error::to_string).collect();
        let missing =
            |(file, tensors)| format!("{file} is missing; the index places {tensors} tensors in it. Download it.");
        warnings.extend(missing_files.into_iter().map(missing));
        warnings.extend(cut_off.into_iter().map(|(file, tensors)| {
            format!(
                "{file} is cut off; {} of its tensors lie past its end ({}), and layers that need them are refused. Download \
                 or copy it again.",
                tensors.len(),
                shorten(&tensors)
            )
        }));
        let mut list = |names: &[String], rest: &str| {
            if !names.is_empty() {
                warnings.push(format!("{} {rest}", shorten(names)));
            }
        };
        list(
            &strays,
            "are missing; the index lists them. Layers without them are read; download both again for the others.",
        );
        list(&twice, "lie in two files; layers that need them are refused. Remove the file that does not belong here.");
        list(
            &self.unread,
            "is in the directory and not read; the index, or model.safetensors, stands for all. Nothing to do.",
        );
        warnings
    }

    /// Refuse files that were written to since they were opened.
    pub fn check_unchanged(&self) -> Result<()> {
        self.files.iter().try_for_each(|(name, source)| source.check_unchanged(name))
    }

    /// Is there memory for tables of every tensor, as layers and reports are made of?
    pub fn ask_for_tables(&self) -> Result<()> {
        ask_for_small_things()?;
        let names = self.tensors.keys().chain(self.faults.keys());
        ask_for("bytes of tables of tensors", names.map(|name| 4 * (name.len() + 256)).sum())
    }

    /// Number of open files, and their bytes.
    pub fn size(&self) -> (usize, u64) {
        (self.files.len(), self.files.iter().map(|(_, source)| source.len()).sum())
    }
}
