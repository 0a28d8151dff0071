// SPDX-License-Identifier: Apache-2.0
//! What a call is made of, and what a backend must answer: the ground that the facades ([`crate::layer`],
//! [`crate::linear`]) and the backends ([`crate::cpu`], [`crate::cuda`]) stand on.

use crate::error::{Error, Result};
use crate::format::{WeightError, check_global_scale};
use crate::shape::RowOrder;
use std::fmt::Debug;

/// A stream of the caller: `CUstream` or `cudaStream_t`; NULL on the CPU.
pub type Stream = *mut std::ffi::c_void;

/// A tensor that the caller keeps alive, on the layer's device. A slice only for the length of a call, because between
/// calls its owner may move experts (EPLB).
#[derive(Debug)]
pub struct Tensor<T> {
    /// First element.
    pub pointer: *const T,
    /// Number of elements.
    pub len: usize,
}

impl<T> Clone for Tensor<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Tensor<T> {}

// SAFETY: a Tensor is an address; whoever reads through it promises that nobody writes meanwhile (`slice`).
unsafe impl<T: Sync> Send for Tensor<T> {}
// SAFETY: the same promise holds for several threads that read at once.
unsafe impl<T: Sync> Sync for Tensor<T> {}

impl<T> Tensor<T> {
    /// The elements.
    ///
    /// # Safety
    /// The tensor lives in host memory, and nobody writes it during `'a`.
    pub unsafe fn slice<'a>(self) -> &'a [T] {
        // SAFETY: `len` elements in host memory that nobody writes, as the caller promises.
        unsafe { std::slice::from_raw_parts(self.pointer, self.len) }
    }
}

/// The weights of a layer, of the lengths that [`MoeShape`](crate::shape::MoeShape) gives them.
#[derive(Debug, Clone, Copy)]
pub struct LayerWeights {
    /// Of w13's rows.
    pub row_order: RowOrder,
    /// e2m1x2 `[L, 2I, H/2]`; without a gate I rows, as everywhere below
    pub w13: Tensor<u8>,
    /// e4m3 `[L, 2I, H/16]`
    pub w13_block_scale: Tensor<u8>,
    /// `[L, 2]`
    pub w13_global_scale: Tensor<f32>,
    /// e2m1x2 `[L, H, I/2]`
    pub w2: Tensor<u8>,
    /// e4m3 `[L, H, I/16]`
    pub w2_block_scale: Tensor<u8>,
    /// `[L]`
    pub w2_global_scale: Tensor<f32>,
    /// bf16 `[L, 2I]`, in the order of w13's rows
    pub w13_bias: Option<Tensor<u16>>,
    /// bf16 `[L, H]`
    pub w2_bias: Option<Tensor<u16>>,
    /// What the checkpoint says of the inputs.
    pub input_scales: InputScales,
}

/// Decoding global scales of the inputs of GEMM1 and GEMM2; 0 = none.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct InputScales {
    /// Of x.
    pub w13: f32,
    /// Of h.
    pub w2: f32,
}

impl InputScales {
    /// Refuse what cannot scale: both must be finite and at least 2^-110.
    pub fn check(self) -> Result<Self> {
        self.named().into_iter().try_for_each(|(name, scale)| check_global_scale(name, scale))?;
        Ok(self)
    }

    /// As [`InputScales::check`], of those that are there.
    pub fn check_those_given(self) -> Result<Self> {
        let given = self.named().into_iter().filter(|(_, scale)| *scale != 0.0);
        given.into_iter().try_for_each(|(name, scale)| check_global_scale(name, scale))?;
        Ok(self)
    }

    /// Refuse to quantise with what was never given.
    pub fn check_both_given(self) -> Result<()> {
        match (self.w13 == 0.0, self.w2 == 0.0) {
            (false, false) => Ok(()),
            (true, true) => Err(missing_input_scale("w13_input_scale and w2_input_scale are")),
            (true, false) => Err(missing_input_scale("w13_input_scale is")),
            (false, true) => Err(missing_input_scale("w2_input_scale is")),
        }
    }

    fn named(self) -> [(&'static str, f32); 2] {
        [("w13_input_scale", self.w13), ("w2_input_scale", self.w2)]
    }
}

/// What a static policy without scales fails with, of a layer or a linear.
pub fn missing_input_scale(names: &str) -> Error {
    Error::NotPrepared(format!(
        "{names} 0; mode nvfp4 with static scales needs finite values of at least 2^-110. \
         Calibrate and set them, or use dynamic scales or mode bf16."
    ))
}

/// Largest finite inputs that calibration met; negative while there was none.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Calibration {
    /// Of GEMM1.
    pub x_amax: f32,
    /// Of GEMM2.
    pub h_amax: f32,
}

impl Default for Calibration {
    fn default() -> Self {
        Calibration { x_amax: -1.0, h_amax: -1.0 }
    }
}

impl Calibration {
    /// The larger of both, each by itself.
    pub fn widened_by(self, other: Calibration) -> Self {
        Calibration { x_amax: self.x_amax.max(other.x_amax), h_amax: self.h_amax.max(other.h_amax) }
    }
}

/// Expert ids `[T, k]` as the router wrote them; any value may appear.
#[derive(Debug, Clone, Copy)]
pub enum TopkIds {
    /// `NVFP4_MOE_DTYPE_I32`
    I32(*const i32),
    /// `NVFP4_MOE_DTYPE_I64`
    I64(*const i64),
}

impl TopkIds {
    /// The id at an index.
    ///
    /// # Safety
    /// Host memory that is valid there.
    pub unsafe fn get(self, index: usize) -> i64 {
        // SAFETY: the caller vouches for the index.
        unsafe {
            match self {
                TopkIds::I32(ids) => i64::from(*ids.add(index)),
                TopkIds::I64(ids) => *ids.add(index),
            }
        }
    }
}

/// Scratch that a caller brings.
#[derive(Debug, Clone, Copy)]
pub struct Workspace {
    /// NULL: the backend's shared one.
    pub pointer: *mut u8,
    /// Bytes.
    pub size: u64,
}

/// Arguments of a layer's forward; fields as in `nvfp4_moe_layer_args`, checked, strides filled in.
#[derive(Debug, Clone, Copy)]
pub struct LayerArgs {
    /// T, at least 1.
    pub num_tokens: usize,
    /// bf16 `[T, H]`
    pub x: *const u16,
    /// Elements between rows.
    pub x_row_stride: usize,
    /// `[T, k]`
    pub topk_ids: TopkIds,
    /// Elements between rows.
    pub topk_ids_row_stride: usize,
    /// `[T, k]`, or NULL: 1.
    pub topk_weights: *const f32,
    /// Elements between rows.
    pub topk_weights_row_stride: usize,
    /// `[E]` global to local id, or NULL: `first_local_expert` decides.
    pub expert_map: *const i32,
    /// bf16 `[T, H]`
    pub out: *mut u16,
    /// Elements between rows.
    pub out_row_stride: usize,
    /// Scratch.
    pub workspace: Workspace,
    /// What sums begin with.
    pub shared: SharedOutput,
}

/// What each token's sum begins with: the output of shared experts.
#[derive(Debug, Clone, Copy)]
pub struct SharedOutput {
    /// bf16 `[T, H]`, or NULL: 0.
    pub rows: *const u16,
    /// Elements between rows.
    pub row_stride: usize,
    /// The CUDA event that it is complete with, or NULL: when the call is made.
    pub ready: *mut std::ffi::c_void,
}

impl SharedOutput {
    /// Sums begin with 0.
    pub const NONE: Self = SharedOutput { rows: std::ptr::null(), row_stride: 0, ready: std::ptr::null_mut() };
}

// SAFETY: tasks of a call read through these pointers, and write `out` and `workspace` in parts of one task each.
unsafe impl Send for LayerArgs {}
// SAFETY: several tasks do so at once, each in its own part.
unsafe impl Sync for LayerArgs {}

/// The weight of a linear; fields as in `nvfp4_moe_linear_weights`.
#[derive(Debug, Clone)]
pub struct LinearWeights {
    /// e2m1x2 `[out_features, in_features/2]`
    pub weight: Tensor<u8>,
    /// e4m3 `[out_features, in_features/16]`
    pub block_scale: Tensor<u8>,
    /// `[num_parts]`
    pub global_scale: Tensor<f32>,
    /// First row after each part: ascending, the last is `out_features`.
    pub part_ends: Vec<usize>,
    /// bf16 `[out_features]`
    pub bias: Option<Tensor<u16>>,
    /// Decodes the input; 0 = none.
    pub input_scale: f32,
}

impl LinearWeights {
    /// The part, and so the global scale, that a row belongs to.
    pub fn part_of_row(&self, row: usize) -> usize {
        self.part_ends.partition_point(|end| *end <= row)
    }
}

/// Arguments of a linear's forward; fields as in `nvfp4_moe_linear_args`, checked, strides filled in.
#[derive(Debug, Clone, Copy)]
pub struct LinearArgs {
    /// T, at least 1.
    pub num_tokens: usize,
    /// bf16 `[T, in_features]`
    pub x: *const u16,
    /// Elements between rows.
    pub x_row_stride: usize,
    /// bf16 `[T, out_features]`
    pub out: *mut u16,
    /// Elements between rows.
    pub out_row_stride: usize,
    /// Scratch.
    pub workspace: Workspace,
}

// SAFETY: tasks of a call read through these pointers, and write `out` and `workspace` in parts of one task each.
unsafe impl Send for LinearArgs {}
// SAFETY: several tasks do so at once, each in its own part.
unsafe impl Sync for LinearArgs {}

/// Device memory that prepare fills; on the CPU nothing does.
#[derive(Debug, Clone, Copy)]
pub struct Storage {
    /// First byte.
    pub pointer: *mut u8,
    /// Bytes.
    pub size: u64,
}

/// Can a layer or linear compute?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// It has weights.
    Ready,
    /// It never had any.
    NeverPrepared,
    /// It had begun to write new ones over those that it had when the device failed.
    HalfWritten,
}

impl Readiness {
    /// Of what has weights or none.
    pub fn of<T>(weights: &Option<T>) -> Self {
        if weights.is_some() { Readiness::Ready } else { Readiness::NeverPrepared }
    }

    /// Refuse what cannot; `noun` is a layer or a linear.
    pub fn check(self, noun: &str) -> Result<()> {
        let text = match self {
            Readiness::Ready => return Ok(()),
            Readiness::NeverPrepared => {
                format!("the {noun} has 0 prepared weights; forward needs them. Call nvfp4_moe_{noun}_prepare first.")
            }
            Readiness::HalfWritten => format!(
                "the {noun} has 0 prepared weights: its last prepare failed after it began to write; forward needs them whole. \
                 Call nvfp4_moe_{noun}_prepare again."
            ),
        };
        Err(Error::NotPrepared(text))
    }
}

/// What computes a layer. It checks what only it can (memory, data); the facade has checked the rest.
pub trait LayerBackend: Debug + Send + Sync {
    /// Bytes that prepare fills.
    fn storage_size(&self) -> u64;

    /// Are there weights, and if not, why?
    fn readiness(&self) -> Readiness;

    /// What rounding to e4m3 did to the weights that it has.
    fn weight_error(&self) -> WeightError;

    /// Take weights, or refuse them. Forgets what calibration saw of those before; a refusal changes nothing.
    ///
    /// # Safety
    /// The tensors are valid on the backend's device, with the lengths of its [`MoeShape`](crate::shape::MoeShape). On
    /// the CPU the tensors, on CUDA the storage must outlive the backend.
    unsafe fn prepare(&mut self, weights: &LayerWeights, storage: Storage, stream: Stream) -> Result<()>;

    /// Scratch for up to `max_tokens` tokens, in every mode that the layer may compute in.
    fn workspace_size(&self, max_tokens: usize) -> u64;

    /// Compute, or enqueue.
    ///
    /// # Safety
    /// The pointers of `args` are valid on the backend's device.
    unsafe fn forward(&self, scales: InputScales, args: &LayerArgs, stream: Stream) -> Result<()>;

    /// Forward in mode bf16, and remember the largest inputs of both GEMMs.
    ///
    /// # Safety
    /// As [`LayerBackend::forward`].
    unsafe fn calibrate(&mut self, args: &LayerArgs, stream: Stream) -> Result<()>;

    /// What calibration saw; forgets it.
    fn take_calibration(&mut self) -> Result<Calibration>;

    /// Other input scales than prepare's, for calls that are not made of [`LayerBackend::forward`]'s: graphs.
    fn set_input_scales(&mut self, _: InputScales) -> Result<()> {
        Ok(())
    }

    /// Give back what it holds, and say what could not be.
    fn close(&mut self) -> Result<()> {
        Ok(())
    }
}

/// What computes a linear.
pub trait LinearBackend: Debug + Send + Sync {
    /// Bytes that prepare fills.
    fn storage_size(&self) -> u64;

    /// Is there a weight, and if not, why?
    fn readiness(&self) -> Readiness;

    /// Take a weight, or refuse it, as [`LayerBackend::prepare`].
    ///
    /// # Safety
    /// As [`LayerBackend::prepare`].
    unsafe fn prepare(&mut self, weights: &LinearWeights, storage: Storage, stream: Stream) -> Result<()>;

    /// Scratch for up to `max_tokens` tokens.
    fn workspace_size(&self, max_tokens: usize) -> u64;

    /// Compute, or enqueue.
    ///
    /// # Safety
    /// The pointers of `args` are valid on the backend's device.
    unsafe fn forward(&self, input_scale: f32, args: &LinearArgs, stream: Stream) -> Result<()>;

    /// Forward in mode bf16, and remember the largest input.
    ///
    /// # Safety
    /// As [`LinearBackend::forward`].
    unsafe fn calibrate(&mut self, args: &LinearArgs, stream: Stream) -> Result<()>;

    /// The largest finite input that calibration saw, negative if none; forgets it.
    fn take_amax(&mut self) -> Result<f32>;

    /// As [`LayerBackend::set_input_scales`].
    fn set_input_scale(&mut self, _: f32) -> Result<()> {
        Ok(())
    }

    /// As [`LayerBackend::close`].
    fn close(&mut self) -> Result<()> {
        Ok(())
    }
}
