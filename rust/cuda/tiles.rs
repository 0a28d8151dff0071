//! The row-tile size of a GEMM: how many token rows one CTA multiplies with its weight rows.

/// What becomes of the result of a GEMM of `gemm_sm90`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GemmKind {
    /// Clamped SwiGLU of gate and up, to bf16.
    Gemm1,
    /// The same, of NVFP4 rows by slabs.
    Gemm1Nvfp4,
    /// f32 for combine.
    Gemm2,
    /// bf16 with bias.
    Linear,
}

impl GemmKind {
    /// The stem of its kernels' names.
    pub fn name(self) -> &'static str {
        match self {
            GemmKind::Gemm1 => "gemm1",
            GemmKind::Gemm1Nvfp4 => "gemm1_nvfp4",
            GemmKind::Gemm2 => "gemm2",
            GemmKind::Linear => "linear",
        }
    }
}

/// Row-tile sizes that `gemm_sm90` is compiled for.
pub const GEMM_ROWS: [u32; 5] = [8, 16, 32, 64, 128];

/// Rows, and features, of a tile of `gemm_portable`.
pub const PORTABLE_ROWS: u32 = 64;

/// The smallest tile that holds the rows of nearly every expert: the mean of a uniform routing plus two deviations.
///
/// A busier expert takes several tiles, which read its weights again, through L2. One tile never needs more than
/// `num_tokens` rows.
pub fn tile_rows(num_tokens: usize, top_k: usize, num_experts: usize) -> u32 {
    let mean = num_tokens as f64 * top_k as f64 / num_experts as f64;
    let wanted = (mean + 2.0 * mean.sqrt()).min(num_tokens as f64);
    GEMM_ROWS.into_iter().find(|rows| f64::from(*rows) >= wanted).unwrap_or(GEMM_ROWS[GEMM_ROWS.len() - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_grow_with_rows_per_expert() {
        assert_eq!(tile_rows(1, 6, 256), 8, "one token has at most one row of each expert");
        assert_eq!(tile_rows(8, 6, 6), 8, "8 tokens have at most 8");
        assert_eq!(tile_rows(512, 6, 256), 32, "12 rows, up to 19 in nearly all experts");
        assert_eq!(tile_rows(8192, 6, 384), 128);
        assert_eq!(tile_rows(1 << 17, 6, 8), 128, "no larger tile exists");
    }
}
