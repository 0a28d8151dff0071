//! How a call is cut up, and where its scratch lies.

use super::isa::Isa;
use crate::config::{LayerConfig, LinearConfig};
use crate::routing::max_rows;
use crate::workspace::{Region, Walk};

/// Tokens computed at a time. More would only make the workspace larger: with 1024 tokens the weights of an expert are
/// decoded once for many rows already.
pub const CHUNK_TOKENS: usize = 1024;

/// Rows are not padded on the CPU: nothing here works in tiles of 128.
pub const ROW_ALIGNMENT: usize = 1;

/// The plan of one MoE forward.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct LayerPlan {
    pub slot_to_row: Region<i32>,
    pub row_to_slot: Region<i32>,
    pub row_offsets: Region<i32>,
    /// Operands of x, a row a token, and what each row's GEMM results are multiplied by.
    pub x: Region<u8>,
    pub x_global_scale: Region<f32>,
    /// bf16 output of the SwiGLU, a row a slot.
    pub h: Region<u16>,
    pub h_operand: Region<u8>,
    pub h_global_scale: Region<f32>,
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
            slot_to_row: walk.region(slots),
            row_to_slot: walk.region(rows),
            row_offsets: walk.region(config.num_local_experts + 1),
            x: walk.region(tokens * isa.operand_row_bytes(config.hidden_size)),
            x_global_scale: walk.region(tokens),
            h: walk.region(rows * config.intermediate_size),
            h_operand: walk.region(rows * isa.operand_row_bytes(config.intermediate_size)),
            h_global_scale: walk.region(rows),
            y: walk.region(rows * config.hidden_size),
            workspace_size: walk.size(),
        }
    }
}

/// The plan of one linear forward.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct LinearPlan {
    pub x: Region<u8>,
    pub x_global_scale: Region<f32>,
    pub workspace_size: u64,
}

impl LinearPlan {
    /// For calls of up to `max_tokens` tokens.
    pub fn new(config: &LinearConfig, isa: &Isa, max_tokens: usize) -> Self {
        let tokens = max_tokens.min(CHUNK_TOKENS);
        let mut walk = Walk::default();
        LinearPlan {
            x: walk.region(tokens * isa.operand_row_bytes(config.in_features)),
            x_global_scale: walk.region(tokens),
            workspace_size: walk.size(),
        }
    }
}
