// SPDX-License-Identifier: Apache-2.0
//! How many token rows a tile of a layer's GEMMs has, by the tokens of a call.

use crate::config::LayerConfig;
use crate::error::{Error, Result};

/// Made at create, so that a forward only looks a size up.
#[derive(Debug, Clone)]
pub struct TileTable {
    /// Calls of up to so many tokens, and their rows of a tile; ascending.
    up_to: Vec<(usize, u32)>,
    /// Rows of a tile beyond.
    beyond: u32,
}

impl TileTable {
    /// The same rows for every call.
    pub fn always(rows: u32) -> Self {
        TileTable { up_to: Vec::new(), beyond: rows }
    }

    /// The same, of a size that was asked for; refused where it is not among `sizes`.
    pub fn only(rows: u32, sizes: &[u32]) -> Result<Self> {
        check_rows(rows, sizes)?;
        Ok(TileTable::always(rows))
    }

    /// From pairs of (most tokens, rows), ascending, and the rows of larger calls.
    pub fn new(up_to: Vec<(usize, u32)>, beyond: u32) -> Self {
        TileTable { up_to, beyond }
    }

    /// By the mean of an expert's rows, `tokens * top_k / num_experts`: below the first number of a pair its second, `beyond`
    /// from the last pair on. A token has at most one row of each expert, so no tile holds more rows than the first of `sizes`,
    /// which ascend, with room for all tokens. A size that is not among them becomes the next larger.
    pub fn by_mean(by_mean: &[(f64, u32)], beyond: u32, sizes: &[u32], config: &LayerConfig) -> Self {
        let mean = |tokens: usize| (tokens * config.top_k) as f64 / config.num_experts as f64;
        // Tokens at which the size may change: the last below each limit of the mean, and those that a size just holds.
        let last_below = |limit: f64| {
            let tokens = (limit * config.num_experts as f64 / config.top_k as f64).ceil() as usize;
            (tokens.saturating_sub(2)..=tokens).rev().find(|tokens| mean(*tokens) < limit)
        };
        let rows = |tokens: usize| {
            let usual = by_mean.iter().find(|(limit, _)| mean(tokens) < *limit).map_or(beyond, |(_, rows)| *rows);
            let enough = sizes.iter().copied().find(|size| *size as usize >= tokens).unwrap_or(usual);
            let size = usual.min(enough);
            sizes.iter().copied().find(|larger| *larger >= size).unwrap_or(size)
        };
        let mut ends: Vec<usize> = by_mean.iter().filter_map(|(limit, _)| last_below(*limit)).collect();
        ends.extend(sizes.iter().map(|size| *size as usize));
        ends.sort_unstable();
        ends.dedup();
        TileTable::new(ends.into_iter().map(|end| (end, rows(end))).collect(), beyond)
    }

    /// Of calls of `tokens` or more, tiles of so many rows at least.
    pub fn at_least(mut self, rows: u32, tokens: usize) -> Self {
        let before = (tokens - 1, self.rows(tokens - 1));
        self.up_to.retain(|(most, _)| *most != before.0);
        let first = self.up_to.partition_point(|(most, _)| *most < before.0);
        self.up_to[first..].iter_mut().for_each(|(_, of)| *of = rows.max(*of));
        self.up_to.insert(first, before);
        self.beyond = self.beyond.max(rows);
        self
    }

    /// Rows of a tile for a call of so many tokens.
    pub fn rows(&self, num_tokens: usize) -> u32 {
        self.up_to.iter().find(|(most, _)| num_tokens <= *most).map_or(self.beyond, |(_, rows)| *rows)
    }
}

/// Refuse a size that no kernel was compiled for.
pub fn check_rows(rows: u32, sizes: &[u32]) -> Result<()> {
    if sizes.contains(&rows) {
        return Ok(());
    }
    let rule = format!("it must be 0 (the library chooses) or one of {sizes:?}");
    Err(Error::argument("tile_rows", rows, rule, "Pass 0: the library chooses."))
}
