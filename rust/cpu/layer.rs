// SPDX-License-Identifier: Apache-2.0
//! The MoE layer on the CPU: weights stay where the caller has them.

use super::forward::LayerCall;
use super::isa;
use super::plan::LayerPlan;
use super::rounding;
use crate::call::{Calibration, InputScales, LayerArgs, LayerBackend, LayerWeights, Readiness, Storage, Stream};
use crate::config::{LayerConfig, Mode, WeightForm};
use crate::error::Result;
use crate::format::{
    BLOCK_SIZE, ScaleRow, ScaleSpan, WeightError, check_block_scales, check_scale_pairs, check_scale_spans,
    check_weight_global_scales, parts_of,
};
use crate::part_scales::PartScales;
use crate::shape::RowOrder;

/// A layer, with or without weights.
#[derive(Debug)]
pub struct CpuLayer {
    config: LayerConfig,
    weights: Option<LayerWeights>,
    weight_error: WeightError,
    calibration: Calibration,
}

impl CpuLayer {
    /// A layer without weights.
    pub fn new(config: &LayerConfig) -> Self {
        CpuLayer {
            config: config.clone(),
            weights: None,
            weight_error: WeightError::default(),
            calibration: Calibration::default(),
        }
    }

    fn isa(&self) -> &'static isa::Isa {
        if self.config.rounds_weights() { isa::rounded() } else { isa::best() }
    }

    unsafe fn compute(
        &self,
        config: &LayerConfig,
        input_scales: InputScales,
        args: &LayerArgs,
        observe: bool,
    ) -> Result<Calibration> {
        let Some(weights) = &self.weights else { return Ok(Calibration::default()) }; // the facade refused
        // SAFETY: valid host memory, as the backend's caller promises.
        unsafe { LayerCall { config, weights, input_scales, args, isa: self.isa(), observe }.run() }
    }

    /// Mode fp8 refuses weights that are not exact in e4m3, projection by projection. On the CPU nothing needs that, but
    /// the CPU is the oracle of GPUs that do.
    fn check_exact_in_e4m3(&self, w13_block_scale: &[u8], w2_block_scale: &[u8], order: RowOrder) -> Result<()> {
        let (scales, projections) = (self.config.shape().projection_block_scales(), self.config.shape().projections);
        let experts = w13_block_scale.chunks(projections * scales).zip(w2_block_scale.chunks(scales));
        let row = self.config.hidden_size / BLOCK_SIZE;
        let spans = experts.map(|(w13, w2)| {
            let of_projection = |at: usize| match order {
                RowOrder::Interleaved => {
                    w13.chunks(row).skip(at).step_by(2).map(ScaleSpan::of).fold(ScaleSpan::default(), ScaleSpan::and)
                }
                _ => ScaleSpan::of(&w13[at * scales..][..scales]),
            };
            (0..projections).map(of_projection).chain([ScaleSpan::of(w2)]).collect()
        });
        check_scale_spans(spans, order)
    }

    /// Refuse block scales that are not equal in pairs, where they were said to be. The CPU reads them one by one.
    fn check_pairs(&self, weights: &LayerWeights) -> Result<()> {
        for expert in 0..self.config.num_local_experts {
            for part in parts_of(weights.row_order).iter().copied() {
                let scales = PartScales::of(weights, self.config.shape(), part);
                // SAFETY: host memory that nobody writes during prepare.
                let of_all = unsafe { scales.block_scale.slice() };
                for row in 0..scales.rows {
                    let own = &of_all[scales.at(expert, row)..][..scales.blocks];
                    check_scale_pairs(ScaleRow { expert, part, row: scales.given(row) }, own)?;
                }
            }
        }
        Ok(())
    }
}

impl LayerBackend for CpuLayer {
    fn storage_size(&self) -> u64 {
        0
    }

    fn readiness(&self) -> Readiness {
        Readiness::of(&self.weights)
    }

    fn weight_error(&self) -> WeightError {
        self.weight_error
    }

    unsafe fn prepare(&mut self, weights: &LayerWeights, _: Storage, _: Stream) -> Result<()> {
        // SAFETY: host memory that nobody writes during the call.
        let (w13, w2, w13_global, w2_global) = unsafe {
            let w = weights;
            (w.w13_block_scale.slice(), w.w2_block_scale.slice(), w.w13_global_scale.slice(), w.w2_global_scale.slice())
        };
        check_block_scales("w13_block_scale", w13)?;
        check_block_scales("w2_block_scale", w2)?;
        check_weight_global_scales("w13_global_scale", w13_global)?;
        check_weight_global_scales("w2_global_scale", w2_global)?;
        let mut error = WeightError::default();
        if self.config.rounds_weights() {
            // SAFETY: the caller's promise is the same.
            let matrices = unsafe { rounding::measure(&self.config, weights) }?;
            error = WeightError::of(matrices).check(self.config.fp8_max_error)?;
        } else if self.config.mode == Mode::Fp8 {
            self.check_exact_in_e4m3(w13, w2, weights.row_order)?;
            if self.config.weight_form() == WeightForm::Fp8Pairs {
                self.check_pairs(weights)?;
            }
        }
        self.weights = Some(*weights);
        self.weight_error = error;
        self.calibration = Calibration::default(); // it was of other weights
        Ok(())
    }

    fn workspace_size(&self, max_tokens: usize) -> u64 {
        LayerPlan::new(&self.config, self.isa(), max_tokens).workspace_size
    }

    unsafe fn forward(&self, scales: InputScales, args: &LayerArgs, _: Stream) -> Result<()> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.compute(&self.config, scales, args, false) }.map(|_| ())
    }

    unsafe fn calibrate(&mut self, args: &LayerArgs, _: Stream) -> Result<()> {
        let config = LayerConfig { mode: Mode::Bf16, ..self.config.clone() };
        // SAFETY: the caller's promise is the same.
        let seen = unsafe { self.compute(&config, InputScales::default(), args, true) }?;
        self.calibration = self.calibration.widened_by(seen);
        Ok(())
    }

    fn take_calibration(&mut self) -> Result<Calibration> {
        Ok(std::mem::take(&mut self.calibration))
    }
}
