// SPDX-License-Identifier: Apache-2.0
//! How a call is cut up, and where its scratch lies.

use super::isa::Isa;
use super::operands::Operands;
use crate::config::{LayerConfig, LinearConfig};
use crate::routing::max_rows;
use crate::workspace::{Region, Walk};
use half::bf16;

/// Tokens computed at a time. More would only make the workspace larger: with 1024 tokens the weights of an expert are
/// decoded once for many rows already.
pub const CHUNK_TOKENS: usize = 1024;

/// Rows are not padded on the CPU: nothing here works in tiles of 128.
pub const ROW_ALIGNMENT: usize = 1;

/// The plan of one MoE forward.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct LayerPlan {
    /// A row a token.
    pub x: OperandPlan,
    /// bf16 output of the activation, a row a slot.
    pub h: Region<bf16>,
    /// The same as GEMM2 reads it.
    pub h_operand: OperandPlan,
    /// f32 output of GEMM2, a row a slot.
    pub y: Region<f32>,
    pub workspace_size: u64,
}

impl LayerPlan {
    /// For calls of up to `max_tokens` tokens.
    pub fn new(config: &LayerConfig, isa: &Isa, max_tokens: usize) -> Self {
        let tokens = max_tokens.min(CHUNK_TOKENS);
        let slots = tokens * config.top_k;
        let rows = max_rows(slots, config.num_local_experts, ROW_ALIGNMENT);
        let mut walk = Walk::default();
        LayerPlan {
            x: OperandPlan::new(&mut walk, isa, tokens, config.hidden_size),
            h: walk.region(rows * config.intermediate_size),
            h_operand: OperandPlan::new(&mut walk, isa, rows, config.intermediate_size),
            y: walk.region(rows * config.hidden_size),
            workspace_size: walk.size(),
        }
    }
}

/// Where a GEMM's input lies as the microkernel reads it, and what each row's results are multiplied by.
#[derive(Debug)]
pub struct OperandPlan {
    rows: Region<u8>,
    global_scales: Region<f32>,
    reduction: usize,
}

impl OperandPlan {
    fn new(walk: &mut Walk, isa: &Isa, rows: usize, reduction: usize) -> Self {
        let (rows, global_scales) = (walk.region(rows * isa.operand_row_bytes(reduction)), walk.region(rows));
        OperandPlan { rows, global_scales, reduction }
    }

    /// The operands in a workspace at `base`.
    pub fn operands<'a>(&self, isa: &'a Isa, base: *mut u8) -> Operands<'a> {
        Operands::new(isa, self.reduction, self.rows.pointer(base), self.global_scales.pointer(base))
    }
}

/// The plan of one linear forward.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct LinearPlan {
    /// A row a token.
    pub x: OperandPlan,
    pub workspace_size: u64,
}

impl LinearPlan {
    /// For calls of up to `max_tokens` tokens.
    pub fn new(config: &LinearConfig, isa: &Isa, max_tokens: usize) -> Self {
        let tokens = max_tokens.min(CHUNK_TOKENS);
        let mut walk = Walk::default();
        LinearPlan { x: OperandPlan::new(&mut walk, isa, tokens, config.in_features), workspace_size: walk.size() }
    }
}
