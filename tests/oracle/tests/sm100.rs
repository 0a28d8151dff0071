// SPDX-License-Identifier: Apache-2.0
//! `kernels/sm100/layout.cuh`, `config.cuh` and `kernels/common/lines.cuh` against what `rust/cuda` allocates for them, and
//! against what the tensor core reads.

use nvfp4_moe::cuda::facts::{LAYER_ROWS, LINEAR_ROWS, sm100_slice};
use nvfp4_moe::format::{E2M1_VALUES, e4m3_decode};
use nvfp4_moe_oracle::facts::{self, Group, Launch};

const TILE_BYTES: usize = 18_432;

/// Marks a byte; each may be marked once.
fn mark(seen: &mut [bool], at: i64, what: &str) {
    let at = usize::try_from(at).expect("before the first byte");
    assert!(!std::mem::replace(&mut seen[at], true), "byte {at} is taken twice: {what}");
}

#[test]
fn a_weight_tile_has_a_place_for_every_code_and_scale() {
    let mut seen = vec![false; TILE_BYTES];
    for row in 0..128 {
        (0..256).step_by(2).for_each(|col| mark(&mut seen, facts::tile_code(row, col).into(), "code"));
        (0..16).for_each(|block| mark(&mut seen, facts::tile_scale(row, block).into(), "scale"));
    }
    assert!(seen.into_iter().all(|seen| seen));
}

#[test]
fn tiles_fill_the_storage() {
    for (hidden, inter) in [(16, 16), (144, 48), (272, 208), (256, 192), (7168, 3072)] {
        let slice = sm100_slice(hidden, inter);
        for (matrix, halves, features) in [(slice.w13, 2, inter), (slice.w2, 1, hidden)] {
            let (m_tiles, slabs) = (features.div_ceil(128), matrix.cols.div_ceil(256));
            assert_eq!(matrix.slabs, slabs);
            let mut seen = vec![false; matrix.codes.len / TILE_BYTES];
            for m in 0..m_tiles {
                for slab in 0..slabs {
                    for half in 0..halves {
                        let at = facts::tile_offset(m as i32, slab as i32, slabs as i32, halves, half);
                        mark(&mut seen, at / TILE_BYTES as i64, "tile");
                    }
                }
            }
            // Without a gate there may be one row of tiles more, which nobody reads.
            let used = seen.into_iter().filter(|seen| *seen).count();
            assert!(used * TILE_BYTES == matrix.codes.len || (halves == 1 && m_tiles % 2 == 1), "{matrix:?}");
        }
    }
}

#[test]
fn lines_have_a_place_for_every_value() {
    const ROWS: i64 = 24;
    let (mut codes, mut bf16) = (vec![false; 2 * 24 * 128], vec![false; 8 * 24 * 128]);
    for row in 0..ROWS {
        (0..512).step_by(2).for_each(|col| mark(&mut codes, facts::row_code(row, col, ROWS), "code"));
        (0..512).for_each(|col| mark(&mut bf16, facts::row_bf16(row, col, ROWS) + 1, "bf16"));
    }
    assert!(codes.into_iter().all(|seen| seen));
    assert!(bf16.into_iter().skip(1).step_by(2).all(|seen| seen));
}

/// Shared memory has, for each step of 64 columns, 32 rows of 16 bytes from the tile's first row on, and from its row 128 on;
/// the tensor core takes the scales of row n from row n % 32 there, bytes 4 (n / 32) and on.
#[test]
fn a_tile_that_starts_anywhere_finds_the_scales_of_128_rows_in_32() {
    const ROWS: i64 = 600;
    for first_row in [0, 8, 64, 200, 320] {
        for n in 0..256 {
            for block in [0, 3, 4, 18] {
                let copied = (i64::from(block / 4) * ROWS + first_row + n / 128 * 128) * 16;
                let wanted = copied + n % 32 * 16 + n % 128 / 32 * 4 + i64::from(block % 4);
                let quarter = (n % 128 / 32) as i32;
                assert_eq!(facts::row_block_scale(first_row + n, block, quarter, ROWS), wanted, "row {n}");
            }
        }
    }
}

#[test]
fn tiles_start_at_multiples_of_64_of_an_experts_rows() {
    for num_rows in 1..700 {
        for tile_rows in [64, 128, 192, 256] {
            let row_tiles = facts::row_tiles_of(num_rows, tile_rows);
            let group = Group { expert: 0, first_row: 8, num_rows, first_tile: 0 };
            let end = Group { expert: -1, first_row: 0, num_rows: 0, first_tile: row_tiles };
            let groups = vec![group, end, end];
            let list = Launch {
                groups,
                num_rows,
                m_tiles: 1,
                tile_rows,
                num_ctas: 1,
                weight_tiles: 1,
                is_sm100: true,
                by_warps: false,
            };
            let tiles = facts::walk(&list);
            assert_eq!(tiles.len(), row_tiles as usize);
            let mut next = 8;
            for tile in tiles {
                assert_eq!((tile.first_row, (tile.first_row - 8) % 64), (next, 0), "{num_rows} rows by {tile_rows}");
                assert!((1..=tile_rows).contains(&tile.num_rows));
                next += tile.num_rows;
            }
            assert_eq!(next, 8 + num_rows);
        }
    }
}

#[test]
fn sizes_that_the_host_chooses_from_fit_the_chip() {
    for rows in LAYER_ROWS {
        for halves in [1, 2] {
            assert!(facts::fits(false, halves, rows as i32) && facts::fits(true, halves, rows as i32), "{rows}");
        }
    }
    assert!(LINEAR_ROWS.into_iter().all(|rows| facts::fits(false, 1, rows as i32)));
    assert!(!facts::fits(false, 2, 256), "and others do not");
}

/// The value of bf16 bits.
fn bf16(bits: u32) -> f32 {
    f32::from_bits(bits << 16)
}

#[test]
fn weights_are_exact_in_bf16() {
    for scale in 0..0x7f {
        let twice = facts::spread_scale(scale);
        assert_eq!(twice & 0xffff, twice >> 16);
        for code in 0..16u32 {
            let wanted = E2M1_VALUES[code as usize] * e4m3_decode(scale as u8);
            for i in 0..4 {
                let spread = facts::spread_codes(code << (4 * i), i) & 0xffff;
                let upper = facts::spread_codes(code << (4 * i + 16), i) >> 16;
                assert_eq!(spread, upper, "codes i and i + 4");
                let product = bf16(spread) * bf16(twice & 0xffff);
                assert_eq!(product.to_bits() & 0xffff, 0, "exact in bf16");
                assert_eq!((product * 256.0).to_bits(), wanted.to_bits(), "code {code}, scale {scale:#x}");
            }
        }
    }
}
