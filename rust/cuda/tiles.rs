// SPDX-License-Identifier: Apache-2.0
//! How many token rows a tile of a layer's GEMMs has, by the tokens of a call.

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

    /// From pairs of (most tokens, rows), ascending, and the rows of larger calls.
    pub fn new(up_to: Vec<(usize, u32)>, beyond: u32) -> Self {
        TileTable { up_to, beyond }
    }

    /// Rows of a tile for a call of so many tokens.
    pub fn rows(&self, num_tokens: usize) -> u32 {
        self.up_to.iter().find(|(most, _)| num_tokens <= *most).map_or(self.beyond, |(_, rows)| *rows)
    }
}
