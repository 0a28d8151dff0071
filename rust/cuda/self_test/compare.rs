// SPDX-License-Identifier: Apache-2.0
//! One case of the self-test on a device: by the portable kernels, and by the device's own with each size of their tiles.

use super::cases::{LayerCase, LinearCase, Memory, TOKENS};
use super::data::of_bf16;
use crate::call::{
    InputScales, LayerArgs, LayerBackend, LinearArgs, LinearBackend, Storage, Stream, Tensor, Workspace,
};
use crate::config::{Device as Place, KernelChoice, Mode, ScalePolicy};
use crate::cuda::device::Device;
use crate::cuda::family::Family;
use crate::cuda::kernels::{COMPARE_VALUES, params};
use crate::cuda::layer::CudaLayer;
use crate::cuda::linear::CudaLinear;
use crate::cuda::memory::Buffer;
use crate::error::{Error, Result};
use std::sync::Arc;

/// Where and what is tested.
#[derive(Debug)]
pub struct Bench {
    /// The device, entered.
    pub device: Arc<Device>,
    /// Its number.
    pub ordinal: i32,
    /// Whose kernels are in question.
    pub family: &'static dyn Family,
    /// For tests of this test: spoil a weight of the family's.
    pub is_planted: bool,
}

/// What a comparison found.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The family makes no such layer or linear.
    Refused,
    /// The same bits.
    Equal,
    /// The same bits, but for tiles whose size needs a proof.
    EqualWithoutFiner,
    /// Other bits; where, in words.
    Different(String),
}

/// Tensors on the device, freed together.
struct Tensors<'a> {
    device: &'a Arc<Device>,
    held: Vec<Buffer>,
}

impl<'a> Tensors<'a> {
    fn of(bench: &'a Bench) -> Self {
        Tensors { device: &bench.device, held: Vec::new() }
    }

    fn reserve<T>(&mut self, bytes: usize) -> Result<*mut T> {
        self.held.push(self.device.allocate(bytes.max(1))?);
        Ok(self.held[self.held.len() - 1].pointer())
    }

    fn storage(&mut self, size: u64) -> Result<Storage> {
        Ok(Storage { pointer: self.reserve(size as usize)?, size })
    }
}

impl Memory for Tensors<'_> {
    fn put<T: Copy>(&mut self, values: &[T]) -> Result<Tensor<T>> {
        let pointer = self.reserve(size_of_val(values))?;
        // SAFETY: memory of that size, which nothing else uses.
        unsafe { self.device.write(pointer, values, self.device.aside()) }?;
        Ok(Tensor { pointer, len: values.len() })
    }
}

/// A layer or a linear with weights and inputs.
trait Subject {
    fn set_tile_rows(&mut self, rows: u32) -> Result<()>;
    fn workspace_size(&self) -> u64;
    /// The first so many tokens, into device memory for them.
    unsafe fn forward(&self, tokens: usize, out: *mut u16, workspace: Workspace, stream: Stream) -> Result<()>;
}

struct ALayer(CudaLayer, LayerArgs);

impl Subject for ALayer {
    fn set_tile_rows(&mut self, rows: u32) -> Result<()> {
        self.0.set_tile_rows(rows)
    }

    fn workspace_size(&self) -> u64 {
        self.0.workspace_size(TOKENS)
    }

    unsafe fn forward(&self, tokens: usize, out: *mut u16, workspace: Workspace, stream: Stream) -> Result<()> {
        let args = LayerArgs { num_tokens: tokens, out, workspace, ..self.1 };
        // SAFETY: prepared, and the caller vouches for `out`.
        unsafe { self.0.forward(InputScales::default(), &args, stream) }
    }
}

struct ALinear(CudaLinear, LinearArgs);

impl Subject for ALinear {
    fn set_tile_rows(&mut self, rows: u32) -> Result<()> {
        self.0.set_tile_rows(rows)
    }

    fn workspace_size(&self) -> u64 {
        self.0.workspace_size(TOKENS)
    }

    unsafe fn forward(&self, tokens: usize, out: *mut u16, workspace: Workspace, stream: Stream) -> Result<()> {
        let args = LinearArgs { num_tokens: tokens, out, workspace, ..self.1 };
        // SAFETY: as a layer's.
        unsafe { self.0.forward(0.0, &args, stream) }
    }
}

/// The backend, or nothing where the family has none like it.
fn unless_refused<T>(made: Result<T>) -> Result<Option<T>> {
    match made {
        Ok(made) => Ok(Some(made)),
        Err(Error::Unsupported(_) | Error::InvalidArgument(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Bench {
    /// A layer in a mode.
    pub fn compare_layer(&self, case: &LayerCase, (mode, scales): (Mode, ScalePolicy)) -> Result<Outcome> {
        let config = |choice| case.config(Place::Cuda(self.ordinal, choice), mode, scales);
        let made = |choice| CudaLayer::new(self.ordinal, choice, &config(choice));
        let Some(own) = unless_refused(made(KernelChoice::Own))? else { return Ok(Outcome::Refused) };
        let mut tensors = Tensors::of(self);
        let (weights, args) = (case.weights(&mut tensors, scales)?, case.args(&mut tensors)?);
        let mut prepared = |mut layer: CudaLayer| {
            let storage = tensors.storage(layer.storage_size())?;
            // SAFETY: tensors and storage of the sizes that the layer asks for, which live until the comparison ends.
            unsafe { layer.prepare(&weights, storage, self.device.aside()) }?;
            Ok((ALayer(layer, args), storage))
        };
        let (portable, _) = prepared(made(KernelChoice::Portable)?)?;
        let (own, storage) = prepared(own)?;
        self.plant(storage)?;
        self.compare(&format!("{mode:?}, {scales:?} scales, {}", case.name), own, &portable, case.config.hidden_size)
    }

    /// A linear in a mode.
    pub fn compare_linear(&self, case: &LinearCase, (mode, scales): (Mode, ScalePolicy)) -> Result<Outcome> {
        let config = |choice| case.config(Place::Cuda(self.ordinal, choice), mode, scales);
        let made = |choice| CudaLinear::new(self.ordinal, choice, &config(choice));
        let Some(own) = unless_refused(made(KernelChoice::Own))? else { return Ok(Outcome::Refused) };
        let mut tensors = Tensors::of(self);
        let (weights, x) = (case.weights(&mut tensors, scales)?, tensors.put(&case.x)?.pointer);
        let (x_row_stride, out_row_stride) = (case.config.in_features, case.config.out_features);
        let workspace = Workspace { pointer: std::ptr::null_mut(), size: 0 };
        let out = std::ptr::null_mut();
        let args = LinearArgs { num_tokens: TOKENS, x, x_row_stride, out, out_row_stride, workspace };
        let mut prepared = |mut linear: CudaLinear| {
            let storage = tensors.storage(linear.storage_size())?;
            // SAFETY: as a layer's.
            unsafe { linear.prepare(&weights, storage, self.device.aside()) }?;
            Ok((ALinear(linear, args), storage))
        };
        let (portable, _) = prepared(made(KernelChoice::Portable)?)?;
        let (own, storage) = prepared(own)?;
        self.plant(storage)?;
        self.compare(&format!("{mode:?}, {scales:?} scales, linear"), own, &portable, out_row_stride)
    }

    /// Turn a bit of a code of the first rows, if this is a test of the test.
    fn plant(&self, storage: Storage) -> Result<()> {
        let (place, stream) = (storage.pointer.wrapping_add(1000), self.device.aside());
        if self.is_planted {
            // SAFETY: a byte of the storage, which is larger.
            unsafe {
                let byte: u8 = self.device.read(place.cast_const(), stream)?;
                self.device.write(place, &[byte ^ 4], stream)?;
            }
        }
        Ok(())
    }

    /// Sizes of tiles that the family has for it, those that need a proof last.
    fn sizes(&self, own: &mut impl Subject) -> Vec<u32> {
        let mut sizes: Vec<_> = (8..=256).step_by(8).filter(|rows| own.set_tile_rows(*rows).is_ok()).collect();
        sizes.sort_by_key(|rows| self.family.needs_proof(*rows));
        sizes
    }

    fn compare(&self, what: &str, mut own: impl Subject, portable: &impl Subject, cols: usize) -> Result<Outcome> {
        let mut tensors = Tensors::of(self);
        let mut largest = own.workspace_size().max(portable.workspace_size());
        let sizes = self.sizes(&mut own);
        for &rows in &sizes {
            own.set_tile_rows(rows)?;
            largest = largest.max(own.workspace_size());
        }
        let buffers = Buffers {
            workspace: tensors.storage(largest)?,
            expected: tensors.reserve(2 * TOKENS * cols)?,
            out: tensors.reserve(2 * TOKENS * cols)?,
            found: tensors.reserve(size_of::<params::Differences>())?,
        };
        self.forward(portable, TOKENS, buffers.expected, &buffers, cols)?;
        for rows in sizes {
            own.set_tile_rows(rows)?;
            for tokens in [TOKENS, 3] {
                if let Some(difference) = self.difference(&own, tokens, &buffers, cols)? {
                    return Ok(match self.family.needs_proof(rows) {
                        true => Outcome::EqualWithoutFiner,
                        false => {
                            Outcome::Different(format!("mode {what}, {tokens} tokens in tiles of {rows}: {difference}"))
                        }
                    });
                }
            }
        }
        Ok(Outcome::Equal)
    }

    /// Into memory without a number in it, by way of a workspace without one.
    fn forward(
        &self,
        subject: &impl Subject,
        tokens: usize,
        out: *mut u16,
        buffers: &Buffers,
        cols: usize,
    ) -> Result<()> {
        let (stream, Storage { pointer, size }) = (self.device.aside(), buffers.workspace);
        // SAFETY: buffers of these sizes.
        unsafe {
            self.device.poison(pointer, size as usize, stream)?;
            self.device.poison(out.cast(), 2 * TOKENS * cols, stream)?;
            subject.forward(tokens, out, Workspace { pointer, size }, stream)
        }
    }

    /// The first value that is not what it must be, in words.
    fn difference(&self, own: &impl Subject, tokens: usize, buffers: &Buffers, cols: usize) -> Result<Option<String>> {
        self.forward(own, tokens, buffers.out, buffers, cols)?;
        let (stream, num_values) = (self.device.aside(), tokens * cols);
        let compare = params::CompareParams {
            own: buffers.out,
            portable: buffers.expected,
            found: buffers.found,
            num_values: num_values as i64,
        };
        // SAFETY: buffers of at least these sizes.
        let found = unsafe {
            self.device.clear(buffers.found, 1, stream)?;
            self.device.launch(self.device.by_rows(COMPARE_VALUES, num_values.div_ceil(256)), stream, &compare)?;
            self.device.read(buffers.found.cast_const(), stream)?
        };
        if found.values == 0 {
            return Ok(None);
        }
        let first = num_values.saturating_sub(found.first as usize);
        // SAFETY: an index of both.
        let [is, must_be] = unsafe {
            let value = |values: *mut u16| self.device.read(values.cast_const().wrapping_add(first), stream);
            [value(buffers.out)?, value(buffers.expected)?].map(of_bf16)
        };
        let (row, col, differ) = (first / cols, first % cols, found.values);
        Ok(Some(format!(
            "row {row}, column {col} is {is} by its own kernels and {must_be} by the portable ones; {differ} of \
             {num_values} values differ, and none may"
        )))
    }
}

struct Buffers {
    workspace: Storage,
    expected: *mut u16,
    out: *mut u16,
    found: *mut params::Differences,
}
