// SPDX-License-Identifier: Apache-2.0
//! Any file content gives a checkpoint or an error, never a panic.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nvfp4_moe::checkpoint::{Checkpoint, LayerBuffers};
use std::collections::BTreeMap;

/// Between the parts of an input; seeds.rs writes the same.
const SEPARATOR: &[u8] = b"|FILE|";

/// `config | index | file | file ...`; a file is `header \n data`, to which the header's true length is prepended, or
/// `\n bytes` as they are. An empty config or index is no file.
fn files(mut input: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut parts = Vec::new();
    while let Some(at) = input.windows(SEPARATOR.len()).position(|window| window == SEPARATOR) {
        parts.push(&input[..at]);
        input = &input[at + SEPARATOR.len()..];
    }
    parts.push(input);
    let names = ["config.json", "model.safetensors.index.json", "a.safetensors", "b.safetensors", "c.safetensors"];
    let content = |(at, part): (usize, &&[u8])| match part.iter().position(|byte| *byte == b'\n') {
        Some(header) if at >= 2 && header > 0 => {
            [&(header as u64).to_le_bytes(), &part[..header], &part[header + 1..]].concat()
        }
        Some(0) if at >= 2 => part[1..].to_vec(),
        _ => part.to_vec(),
    };
    let files = names.into_iter().map(str::to_owned).zip(parts.iter().enumerate().map(content));
    files.filter(|(_, bytes)| !bytes.is_empty()).collect()
}

fuzz_target!(|input: &[u8]| {
    let Ok(checkpoint) = Checkpoint::from_memory(files(input)) else { return };
    let report = checkpoint.inspect(None, |_| {});
    assert!(!report.to_string().is_empty() && report.to_json().unwrap().starts_with('{'));
    for layer in checkpoint.layers() {
        let Ok(layer) = checkpoint.layer(layer) else { continue };
        let lens = layer.buffer_lens(layer.dims.num_experts);
        let (mut w13, mut w13_block_scale) = (vec![0xff; lens.w13], vec![0xff; lens.w13_block_scale]);
        let (mut w2, mut w2_block_scale) = (vec![0xff; lens.w2], vec![0xff; lens.w2_block_scale]);
        let (mut w13_global_scale, mut w2_global_scale) =
            (vec![0.0; lens.w13_global_scale], vec![0.0; lens.w2_global_scale]);
        let buffers = LayerBuffers {
            w13: &mut w13,
            w13_block_scale: &mut w13_block_scale,
            w13_global_scale: &mut w13_global_scale,
            w2: &mut w2,
            w2_block_scale: &mut w2_block_scale,
            w2_global_scale: &mut w2_global_scale,
            w13_bias: &mut vec![0xff; lens.w13_bias],
            w2_bias: &mut vec![0xff; lens.w2_bias],
        };
        if layer.read(0, buffers).is_ok() {
            // What was accepted is what kernels may rely on.
            let scales = [&w13_block_scale[..], &w2_block_scale].concat();
            assert!(scales.iter().all(|bits| *bits < 0x7f));
            let global_scales = [&w13_global_scale[..], &w2_global_scale].concat();
            assert!(global_scales.iter().all(|scale| scale.is_finite() && *scale > 0.0));
        }
    }
});
