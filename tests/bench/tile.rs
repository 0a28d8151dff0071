// SPDX-License-Identifier: Apache-2.0
//! Times one tile of every instruction set of this machine, its weights in L2: `cargo bench --bench tile`.
//!
//! For choosing their order (`rust/cpu/isa/mod.rs`) and for tuning their loops.

#![allow(missing_docs)]

use nvfp4_moe::cpu::isa::{Isa, MAX_TILE_TOKENS, TILE_ROWS, Tile, available};
use std::time::Instant;

const REDUCTION: usize = 4096;
/// Tiles of weights, 16 x 18 KiB.
const TILES: usize = 16;

fn main() {
    println!("instruction set   tokens   us/tile   MAC/ns   GB/s of weights");
    for isa in available() {
        for tokens in [1, 2, 4, 12, MAX_TILE_TOKENS] {
            let seconds = time(isa, tokens);
            let values = (TILE_ROWS * REDUCTION) as f64;
            println!(
                "{:15} {tokens:8} {:9.2} {:8.1} {:10.2}",
                isa.name,
                seconds * 1e6,
                values * tokens as f64 / seconds / 1e9,
                values * 0.5625 / seconds / 1e9
            );
        }
    }
}

/// Seconds of a tile: the best of 200 passes.
fn time(isa: &Isa, tokens: usize) -> f64 {
    let codes: Vec<u8> = (0..TILES * TILE_ROWS * REDUCTION / 2).map(|i| ((i * 7919) >> 3) as u8).collect();
    let block_scales = vec![0x38; codes.len() / 8];
    let row_bytes = isa.operand_row_bytes(REDUCTION);
    let mut rows = vec![0u8; row_bytes * tokens + 64];
    let first = rows.as_ptr().align_offset(64);
    let values: Vec<f32> = (0..REDUCTION).map(|i| (i % 7) as f32 - 3.0).collect();
    for row in rows[first..].chunks_exact_mut(row_bytes) {
        isa.write_row(&values, row);
    }
    let x: Vec<*const u8> = (0..tokens).map(|token| rows[first + token * row_bytes..].as_ptr()).collect();
    let mut out = [[0.0; TILE_ROWS]; MAX_TILE_TOKENS];
    let passes = (0..200).map(|_| {
        let start = Instant::now();
        for tile in 0..TILES {
            let codes = &codes[tile * TILE_ROWS * REDUCTION / 2..];
            let block_scales = &block_scales[tile * TILE_ROWS * REDUCTION / 16..];
            let tile =
                Tile { codes, block_scales, rows: TILE_ROWS, row_step: 1, rounded: None, reduction: REDUCTION, x: &x };
            // SAFETY: an instruction set of this machine; x are its operand rows.
            unsafe { (isa.tile)(&tile, &mut out) };
        }
        std::hint::black_box(&out);
        start.elapsed().as_secs_f64() / TILES as f64
    });
    passes.fold(f64::INFINITY, f64::min)
}
