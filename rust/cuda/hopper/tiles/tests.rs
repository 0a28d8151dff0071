// SPDX-License-Identifier: Apache-2.0
use super::*;
use crate::config::Mode;
use crate::cuda::tests::layer_config;

/// The size for a call of so many tokens, by an expert's rows alone.
fn size_for(num_tokens: usize, config: &LayerConfig) -> u32 {
    let mean = (num_tokens * config.top_k) as f64 / config.num_experts as f64;
    let (limits, beyond) = sizes_by_mean(config.mode);
    let by_mean = limits.iter().find(|(limit, _)| mean < *limit).map_or(beyond, |(_, size)| *size);
    let enough = sizes_of(config).iter().copied().find(|size| *size as usize >= num_tokens).unwrap_or(by_mean);
    by_mean.min(enough)
}

/// What an expert's rows cost in tiles of a size, in rows: rows are spread evenly over as few tiles as hold them, and
/// the widest kernel multiplies as many columns as a tile has, in steps. A tile costs 64 or 80 rows beside its own, to
/// dequantise weights (measured: 200 clocks and 2.3 a row for 2 x 64 x 64 weights). One of the widest kernel, whose stages are
/// smaller, costs 111, and less for each column (H200: 16.1, 18.4, 22.2 and 24.5 us an expert of Pro with 32, 64, 94 and 128
/// rows in the mean, where those of 48 and 112 rows take 12.9 and 20.1).
/// Of e4m3 rows a tile costs 72, and one of the widest kernel 100 (H200: Flash EP1 and Pro EP8).
fn expert_cost(rows: f64, size: u32, mode: Mode) -> f64 {
    let tiles = (rows / f64::from(size)).ceil();
    let tile = match (mode, size) {
        (Mode::Fp8, params::GEMM_SM90_WIDEST_ROWS) => f64::from(widest_columns(rows / tiles)) + 100.0,
        (Mode::Fp8, _) => f64::from(size) + 72.0,
        (_, params::GEMM_SM90_WIDEST_ROWS) => 111.0 + 0.77 * f64::from(widest_columns(rows / tiles)),
        (_, params::GEMM_SM90_FOUR_TILES_ROWS..=params::GEMM_SM90_FOUR_GROUPS_ROWS) => {
            four_groups_cost(rows / tiles, size)
        }
        (_, ..params::GEMM_SM90_FOUR_TILES_ROWS) => f64::from(size) + 78.0,
        (_, ..=112) => f64::from(size) + 64.0,
        _ => f64::from(size) + 80.0,
    };
    tiles * tile
}

/// A tile of a kernel with four warpgroups along the weight rows, which multiplies 8 columns fewer where there are no
/// rows for them. Below 24 columns HBM is short, and they count less (H200: 960 us for 16 and 8 columns, 1104 for 24
/// and 16, 1285 for 32 and 24, 1297 for 40, 1659 for 64, of 256 experts of Flash). In whole layers those of 24 rows take
/// 3 % more than those of 16 where 16 columns do.
fn four_groups_cost(rows: f64, size: u32) -> f64 {
    let narrow = if size < params::GEMM_SM90_FOUR_GROUPS_ROWS { size - 8 } else { size };
    let columns = f64::from(if rows <= f64::from(narrow) { narrow } else { size });
    let of_size = if size > params::GEMM_SM90_FOUR_TILES_ROWS { 2.8 } else { 0.0 };
    (78.0 + 0.72 * columns).max(90.5 + 0.2 * columns) + of_size
}

/// What the widest kernel multiplies for a tile of so many rows.
fn widest_columns(rows: f64) -> u32 {
    let step = params::GEMM_SM90_COLUMN_STEP;
    ((rows / f64::from(step)).ceil() as u32 * step)
        .clamp(params::GEMM_SM90_FEWEST_COLUMNS, params::GEMM_SM90_WIDEST_ROWS)
}

/// Of an expert, in rows, if each token takes it with this likelihood: rows are binomial, near enough to normal.
fn cost(num_tokens: usize, likelihood: f64, size: u32, mode: Mode) -> f64 {
    let mean = num_tokens as f64 * likelihood;
    let deviation = (mean * (1.0 - likelihood)).sqrt();
    let (mut sum, mut weights) = (0.0, 0.0);
    for z in (-32..=32).map(|eighth| f64::from(eighth) / 8.0) {
        let weight = (-z * z / 2.0_f64).exp();
        let rows = (mean + z * deviation).round().clamp(1.0, num_tokens.max(1) as f64);
        (sum, weights) = (sum + weight * expert_cost(rows, size, mode), weights + weight);
    }
    sum / weights
}

fn uniform_cost(num_tokens: usize, config: &LayerConfig, size: u32) -> f64 {
    cost(num_tokens, config.top_k as f64 / config.num_experts as f64, size, config.mode)
}

/// Likelihoods that a token takes the expert of each rank, if experts are drawn like 1 / rank.
fn zipf_likelihoods(config: &LayerConfig) -> Vec<f64> {
    let of = |scale: f64| (1..=config.num_experts).map(move |rank| 1.0 - (-scale / rank as f64).exp());
    let (mut low, mut high) = (0.1_f64, 1e4_f64);
    for _ in 0..60 {
        let middle = (low * high).sqrt();
        if of(middle).sum::<f64>() > config.top_k as f64 { high = middle } else { low = middle }
    }
    of(low).collect()
}

/// The mean of an expert, by Zipf's law.
fn zipf_cost(num_tokens: usize, likelihoods: &[f64], size: u32, mode: Mode) -> f64 {
    let rows = likelihoods.iter().map(|likelihood| (num_tokens as f64 * likelihood).round());
    rows.map(|rows| expert_cost(rows, size, mode)).sum::<f64>() / likelihoods.len() as f64
}

/// The sum over a rank of eight, one of whose experts every token takes, and its rows.
fn hot_cost(num_tokens: usize, config: &LayerConfig, size: u32) -> (f64, f64) {
    let others = (config.num_experts / 8 - 1) as f64;
    let likelihood = (config.top_k - 1) as f64 / config.num_experts as f64;
    let cost =
        expert_cost(num_tokens as f64, size, config.mode) + others * cost(num_tokens, likelihood, size, config.mode);
    (cost, num_tokens as f64 * (1.0 + others * likelihood))
}

const LAYERS: [(usize, usize); 8] = [(6, 256), (6, 384), (8, 384), (8, 256), (8, 128), (10, 512), (22, 512), (4, 128)];

/// Of mode fp8 with scales in pairs, whose kernels have every size.
fn layer_of(mode: Mode, top_k: usize, num_experts: usize) -> LayerConfig {
    let scale_block_size = if mode == Mode::Fp8 { 32 } else { 16 };
    LayerConfig { mode, scale_block_size, top_k, num_experts, ..layer_config() }
}

fn layers() -> impl Iterator<Item = (Mode, usize, usize)> {
    [Mode::Bf16, Mode::Fp8].into_iter().flat_map(|mode| LAYERS.map(|(top_k, experts)| (mode, top_k, experts)))
}

/// 128 rows of e4m3 no layer takes.
fn sizes(config: &LayerConfig) -> impl Iterator<Item = u32> {
    let all = config.mode != Mode::Fp8;
    sizes_of(config).iter().copied().filter(move |size| all || *size != 128)
}

fn best_under_uniform_routing(tokens: usize, config: &LayerConfig) -> f64 {
    sizes(config).map(|size| uniform_cost(tokens, config, size)).min_by(f64::total_cmp).unwrap()
}

/// What a row costs under uniform routing, Zipf's law and a hot expert together. Sizes of e4m3 rows were swept under uniform
/// routing alone.
fn cost_of_a_row(tokens: usize, config: &LayerConfig, zipf: &[f64], size: u32) -> f64 {
    let mean = (tokens * config.top_k) as f64 / config.num_experts as f64;
    let uniform = uniform_cost(tokens, config, size) / mean;
    if config.mode == Mode::Fp8 {
        return uniform;
    }
    let (hot, hot_rows) = hot_cost(tokens, config, size);
    uniform + zipf_cost(tokens, zipf, size, config.mode) / mean + hot / hot_rows
}

/// The least of it, of the sizes that uniform routing likes to 1 %.
fn best_by_model(tokens: usize, config: &LayerConfig, zipf: &[f64]) -> f64 {
    let most = 1.01 * best_under_uniform_routing(tokens, config);
    let liked = sizes(config).filter(|size| uniform_cost(tokens, config, *size) <= most);
    liked.map(|size| cost_of_a_row(tokens, config, zipf, size)).min_by(f64::total_cmp).unwrap()
}

/// At the token counts that were swept on GPUs.
#[test]
fn the_table_chooses_what_the_model_likes_where_it_was_measured() {
    for (mode, top_k, experts) in layers() {
        let config = layer_of(mode, top_k, experts);
        let zipf = zipf_likelihoods(&config);
        for tokens in (0..14).map(|power| 1 << power) {
            let chosen = cost_of_a_row(tokens, &config, &zipf, size_for(tokens, &config));
            let best = best_by_model(tokens, &config, &zipf);
            assert!(chosen <= 1.02 * best, "{top_k} of {experts}, {tokens} tokens: {chosen} for {best}");
        }
    }
}

/// By the model, at every number of tokens; where sizes change, the best jumps with single tokens.
#[test]
fn uniform_routing_pays_little_for_skewed_ones() {
    for (mode, top_k, experts) in layers() {
        let config = layer_of(mode, top_k, experts);
        for tokens in (1..1100).step_by(3).chain((1100..28_000).step_by(137)) {
            let (best, size) = (best_under_uniform_routing(tokens, &config), size_for(tokens, &config));
            let chosen = uniform_cost(tokens, &config, size);
            assert!(chosen <= 1.025 * best, "{top_k} of {experts}, {tokens} tokens: {size}");
        }
    }
}

#[test]
fn the_table_by_tokens_is_the_table_by_mean_and_by_rounds() {
    for (top_k, experts) in [(6, 256), (1, 16), (6, 6), (8, 8), (22, 512), (1, 1)] {
        let config = LayerConfig { top_k, num_experts: experts, num_local_experts: experts, ..layer_config() };
        let table = layer_table(&config).unwrap();
        for tokens in (1..3000).chain((3000..200_000).step_by(499)) {
            let many = tokens > 8 && rounds_of_four_tiles(tokens, &config) >= 9.0;
            let size = size_for(tokens, &config).max(if many { 16 } else { 8 });
            assert_eq!(table.rows(tokens), size, "{top_k} of {experts}, {tokens} tokens");
        }
    }
    let few = LayerConfig { top_k: 6, num_experts: 6, ..layer_config() };
    assert_eq!(layer_table(&few).unwrap().rows(8), 8, "8 tokens have at most 8 rows of an expert");
}

/// Shape, mode and tokens, and microseconds with tiles of 8, 16 and 24 rows.
const SWEPT: &str = include_str!("../../../../tests/bench/record/h200/2026-12-01-few-rows.csv");

#[test]
fn few_rows_are_chosen_as_they_were_swept() {
    let mut lines = SWEPT.lines().skip_while(|line| line.starts_with('#') || line.starts_with("shape"));
    let mut seen = 0;
    while let Some([shape, mode, tokens, us @ ..]) =
        lines.next().map(|line| line.split(',').collect::<Vec<_>>()).as_deref()
    {
        let (hidden_size, intermediate_size, num_experts, num_local_experts) = match *shape {
            "pro8" => (7168, 3072, 384, 48),
            "flash8" => (4096, 2048, 256, 32),
            _ => (4096, 2048, 256, 256),
        };
        let (mode, scale_block_size) = match *mode {
            "bf16" => (Mode::Bf16, 16),
            "nvfp4" => (Mode::Nvfp4, 16),
            _ => (Mode::Fp8, 32),
        };
        let sizes = LayerConfig { hidden_size, intermediate_size, num_experts, num_local_experts, ..layer_config() };
        let table = layer_table(&LayerConfig { mode, scale_block_size, ..sizes }).unwrap();
        let rows = table.rows(tokens.parse().unwrap());
        let us = us.iter().map(|us| us.parse().unwrap()).collect::<Vec<f64>>();
        let best = us.iter().copied().min_by(f64::total_cmp).unwrap();
        assert!(us[rows as usize / 8 - 1] <= 1.02 * best, "{shape} {mode:?} {tokens}: {rows} rows, {us:?}");
        seen += 1;
    }
    assert_eq!(seen, 99);
}

#[test]
fn sizes_grow_with_rows_per_expert() {
    let rows = |tokens, experts| size_for(tokens, &LayerConfig { top_k: 6, num_experts: experts, ..layer_config() });
    assert_eq!([rows(1, 256), rows(512, 256), rows(1024, 384), rows(1024, 256)], [8, 24, 32, 32]);
    assert_eq!([rows(2048, 384), rows(4096, 384), rows(8192, 384)], [48, 80, 144]);
    assert_eq!([rows(4096, 256), rows(8192, 256)], [112, 112]);
    assert_eq!([3.0, 40.0, 48.5, 81.0, 112.0, 113.0, 144.0].map(widest_columns), [32, 48, 64, 96, 112, 128, 144]);
}

#[test]
fn sizes_of_one_order_are_those_from_four_weight_tiles_on() {
    for mode in [Mode::Bf16, Mode::Fp8] {
        let own = LayerConfig { mode, ..layer_config() };
        let in_one_order = LayerConfig { tile_rows: Some(ONE_ORDER), ..own.clone() };
        let [own, in_one_order] = [own, in_one_order].map(|config| layer_table(&config).unwrap());
        for tokens in (1..10_000).step_by(7) {
            assert_eq!(in_one_order.rows(tokens), own.rows(tokens).max(16), "{tokens} tokens");
        }
    }
}

#[test]
fn a_benchmark_may_ask_for_a_size_that_there_is() {
    let forced = |rows| layer_table(&LayerConfig { tile_rows: Some(rows), ..layer_config() });
    assert_eq!(forced(96).unwrap().rows(1), 96);
    let all_tokens = LayerConfig { num_experts: 6, ..layer_config() }; // of which every expert has a row
    let single = LayerConfig { mode: Mode::Fp8, ..all_tokens };
    for (tokens, rows) in [(1, 8), (8, 8), (9, 16), (25, 48), (1 << 20, 208)] {
        assert_eq!(layer_table(&single).unwrap().rows(tokens), rows, "{tokens} tokens");
    }
    assert!(layer_table(&LayerConfig { tile_rows: Some(96), ..single.clone() }).is_err());
    assert!(layer_table(&LayerConfig { tile_rows: Some(96), scale_block_size: 32, ..single }).is_ok());
    let text = forced(13).unwrap_err().to_string();
    assert!(text.contains("tile_rows is 13; it must be 0 (the library chooses) or one of [8, 16"), "{text}");
}

#[test]
fn a_linear_fills_the_multiprocessors() {
    // 2048 weight rows are 32 tiles: 64 tokens in tiles of 16 make 128 CTAs, in one tile of 64 only 8.
    assert_eq!(linear_rows(64, 32, 132), 16);
    assert_eq!(linear_rows(512, 32, 132), 64, "16 blocks of two weight tiles, 8 row tiles");
    assert_eq!(linear_rows(1, 32, 132), 8);
    assert_eq!(linear_rows(64, 112, 132), 64, "56 CTAs, which become 112 of half as many weights");
    assert_eq!(linear_rows(256, 32, 132), 64, "64 CTAs, which become 128");
    assert_eq!(linear_rows(4096, 256, 132), 128, "2048 CTAs in 16 rounds, the last all but full");
}
