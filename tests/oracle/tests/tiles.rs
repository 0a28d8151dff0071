// SPDX-License-Identifier: Apache-2.0
//! `kernels/common/tiles.cuh` and `kernels/hopper/config.cuh`: which CTA multiplies what, for many routings, matrices and
//! grids, against the host's plans for it.

use nvfp4_moe::cuda::facts::{FP8_ROWS, GEMM_ROWS, rounds, threads_of_cta, tiles_of_cta};
use nvfp4_moe_oracle::facts::{self, Group, Launch, Tile};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

#[test]
fn gemms_are_compiled_for_the_row_tiles_that_the_host_chooses_from() {
    assert_eq!(facts::row_tile_sizes(2), GEMM_ROWS);
    assert_eq!(facts::row_tile_sizes(1), FP8_ROWS);
}

#[test]
fn a_cta_has_as_many_weight_tiles_and_threads_on_both_sides() {
    for (bytes, is_linear) in [(2, false), (1, false), (2, true)] {
        let what = format!("rows of {bytes} bytes a column, linear {is_linear}");
        for rows in 1..=200 {
            let wanted = tiles_of_cta(rows, bytes, is_linear) as i32;
            assert_eq!(facts::tiles_of_cta(rows as i32, bytes as i32, is_linear), wanted, "{rows} {what}");
        }
        for rows in facts::row_tile_sizes(bytes as u32) {
            let wanted = threads_of_cta(rows, bytes, is_linear);
            assert_eq!(facts::threads_of_gemm(rows, bytes as u32, is_linear), wanted, "{rows} {what}");
        }
    }
}

/// A grouped launch and a linear of as many rows, but for grid and weight tiles.
fn launches() -> impl Strategy<Value = [Launch; 2]> {
    let rows_of_experts = prop::collection::vec((0..3, 0..1000), 1..=40);
    (1..=18, 1..=70, rows_of_experts).prop_map(|(eights, m_tiles, experts)| {
        let tile_rows = 8 * eights;
        let mut linear = Launch {
            groups: Vec::new(),
            num_rows: 0,
            m_tiles,
            tile_rows,
            num_ctas: 1,
            weight_tiles: 1,
            is_sm100: false,
            by_warps: false,
        };
        // Behind the end marks lies what an earlier call left.
        let mut groups = vec![Group { expert: 7, first_row: 7, num_rows: 7, first_tile: 7 }; experts.len() + 2];
        let (mut count, mut first_tile) = (0, 0);
        for (expert, (kind, rows)) in experts.iter().enumerate() {
            let num_rows = if *kind > 0 { rows % (2 * tile_rows + 1) } else { 0 };
            if num_rows > 0 {
                groups[count] = Group { expert: expert as i32, first_row: linear.num_rows, num_rows, first_tile };
                count += 1;
                linear.num_rows += num_rows;
                first_tile += facts::row_tiles_of(num_rows, tile_rows);
            }
        }
        let end = Group { expert: -1, first_row: linear.num_rows, num_rows: 0, first_tile };
        for at in [count, count + 1, experts.len() + 1] {
            groups[at] = end; // as routing writes it
        }
        [Launch { groups, ..linear.clone() }, linear]
    })
}

/// The CTAs together multiply every row with every weight tile once, and none has more rounds than its share. Returns
/// how many tiles were halved.
fn check(launch: &Launch) -> usize {
    let tiles = facts::walk(launch);
    assert_eq!(facts::walk(&Launch { by_warps: true, ..launch.clone() }), tiles, "{launch:?}");
    let mut seen = vec![0u8; (launch.num_rows * launch.m_tiles) as usize];
    let mut half_rounds = vec![0; launch.num_ctas as usize];
    // Whole but for the last ones of a matrix, which may have fewer weight tiles.
    let is_half = |tile: &Tile| {
        launch.weight_tiles > 1
            && tile.num_m_tiles <= launch.weight_tiles / 2
            && tile.first_m_tile + tile.num_m_tiles < launch.m_tiles
    };
    for tile in &tiles {
        assert!((1..=launch.tile_rows).contains(&tile.num_rows), "{tile:?} of {launch:?}");
        assert!((1..=launch.weight_tiles).contains(&tile.num_m_tiles), "{tile:?} of {launch:?}");
        for m in tile.first_m_tile..tile.first_m_tile + tile.num_m_tiles {
            let first = (m * launch.num_rows + tile.first_row) as usize;
            seen[first..first + tile.num_rows as usize].iter_mut().for_each(|times| *times += 1);
        }
        half_rounds[tile.cta as usize] += if is_half(tile) { 1 } else { 2 };
    }
    assert!(seen.iter().all(|times| *times == 1), "a row and a weight tile meet not once: {launch:?}");
    assert!(half_rounds[0] > 0, "the first CTA has no tile: {launch:?}");
    let most = 2 * num_tiles(launch).div_ceil(launch.num_ctas as usize);
    assert!(half_rounds.iter().all(|rounds| *rounds <= most), "more than {most} half rounds: {launch:?}");
    tiles.iter().filter(|tile| is_half(tile)).count()
}

/// Tiles of a launch before any is halved.
fn num_tiles(launch: &Launch) -> usize {
    let row_tiles = match launch.groups.last() {
        Some(end) => end.first_tile,
        None => facts::row_tiles_of(launch.num_rows, launch.tile_rows),
    };
    row_tiles as usize * (launch.m_tiles as usize).div_ceil(launch.weight_tiles as usize)
}

/// What the host thinks a linear's launch takes, in rounds, is what its busiest CTA does.
fn check_rounds(launch: &Launch) {
    const HALF: f64 = 0.7; // of a whole tile's time
    let mut busy = vec![0.0; launch.num_ctas as usize];
    for tile in facts::walk(launch) {
        busy[tile.cta as usize] += if tile.num_m_tiles < launch.weight_tiles { HALF } else { 1.0 };
    }
    let busiest = busy.into_iter().fold(0.0, f64::max);
    let wanted = rounds(num_tiles(launch), launch.weight_tiles as usize, launch.num_ctas as u32);
    assert!((busiest - wanted).abs() < 1e-9, "{busiest} rounds, not {wanted}: {launch:?}");
}

#[test]
fn ctas_share_the_tiles_without_gaps() {
    let (strategy, mut runner) = (launches(), TestRunner::deterministic());
    let (mut checked, mut halved) = (0, 0);
    for _ in 0..200 {
        let both = strategy.new_tree(&mut runner).expect("nothing is rejected").current();
        if both[1].num_rows == 0 {
            continue;
        }
        for mut launch in both {
            for (num_ctas, weight_tiles) in
                [1, 2, 7, 66, 131, 132, 148].into_iter().flat_map(|c| [(c, 1), (c, 2), (c, 4)])
            {
                (launch.num_ctas, launch.weight_tiles) = (num_ctas, weight_tiles);
                halved += usize::from(check(&launch) > 0);
                checked += 1;
                // Where no tile is narrow at the matrix's end, halves are known by their weight tiles.
                if launch.groups.is_empty() && launch.m_tiles % weight_tiles == 0 {
                    check_rounds(&launch);
                }
            }
        }
    }
    assert!(checked > 5000 && halved > 500 && halved < checked, "{checked} launches, {halved} with halves");
}
