// SPDX-License-Identifier: Apache-2.0
//! The MoE layer through the C ABI, against float64; and the safe door for Rust programs.

#![allow(missing_docs)]

mod host;
mod support;

use nvfp4_moe::abi::exports::*;
use nvfp4_moe::abi::header::*;
use rayon::prelude::*;
use support::*;

fn layer(shape: Shape, weights: &Weights, change: impl FnOnce(&mut nvfp4_moe_layer_desc)) -> Handle {
    let mut desc = desc(shape);
    change(&mut desc);
    let mut handle = std::ptr::null_mut();
    // SAFETY: the structs are complete, and weights outlive the handle in every test.
    unsafe {
        check(nvfp4_moe_layer_create(&desc, &mut handle));
        check(nvfp4_moe_layer_prepare(handle, &weights.as_struct(), std::ptr::null_mut(), 0, std::ptr::null_mut()));
    }
    Handle(handle)
}

type Call<'a> = &'a mut dyn FnMut(&nvfp4_moe_layer_args) -> i32;

fn run(shape: Shape, layer: &Handle, x: &[u16], ids: &[i64], weights: &[f32], call: Call) -> Vec<u16> {
    let tokens = ids.len() / shape.top_k;
    let mut size = 0;
    // SAFETY: a live handle.
    unsafe { check(nvfp4_moe_layer_workspace_size(layer.0, tokens as i32, &mut size)) };
    let mut workspace = vec![0xffu8; size as usize + 255]; // NaN in every format
    let aligned = workspace.as_mut_ptr().wrapping_add(workspace.as_ptr().align_offset(256));
    let mut out = vec![0xffffu16; tokens * shape.hidden];
    let args = nvfp4_moe_layer_args {
        struct_size: size_of::<nvfp4_moe_layer_args>() as u32,
        num_tokens: tokens as i32,
        x: x.as_ptr().cast(),
        topk_ids: ids.as_ptr().cast(),
        topk_ids_dtype: NVFP4_MOE_DTYPE_I64 as i32,
        topk_weights: weights.as_ptr(),
        out: out.as_mut_ptr().cast(),
        workspace: aligned.cast(),
        workspace_size: size,
        ..Default::default()
    };
    check(call(&args));
    out
}

fn forward(shape: Shape, layer: &Handle, x: &[u16], ids: &[i64], weights: &[f32]) -> Vec<u16> {
    // SAFETY: `run` passes pointers that are valid for the sizes it states.
    run(shape, layer, x, ids, weights, &mut |args| unsafe {
        nvfp4_moe_layer_forward(layer.0, args, std::ptr::null_mut())
    })
}

fn random_ids(shape: Shape, tokens: usize, random: &mut Random) -> Vec<i64> {
    (0..tokens * shape.top_k).map(|_| random.below(shape.experts as u64) as i64).collect()
}

#[test]
fn bf16_mode_agrees_with_float64_over_shapes_and_ranks() {
    let mut random = Random::new(1);
    for (hidden, inter, experts, local, first, top_k, tokens) in [
        (256, 128, 8, 8, 0, 2, 1),
        (256, 128, 8, 3, 5, 3, 33),
        (48, 16, 4, 2, 1, 1, 7),
        (304, 144, 5, 5, 0, 4, 50),
        (1040, 272, 3, 1, 2, 2, 120),
        (64, 32, 2, 2, 0, 1, 2100),
    ] {
        let shape = Shape { hidden, inter, experts, local, first, top_k };
        let weights = Weights::random(shape, &mut random);
        let layer = layer(shape, &weights, |_| {});
        let x = random.bf16s(tokens * hidden);
        let ids = random_ids(shape, tokens, &mut random);
        let topk_weights: Vec<f32> = (0..ids.len()).map(|_| random.uniform()).collect();
        let got = forward(shape, &layer, &x, &ids, &topk_weights);
        let want = weights.reference(&x, &ids, &topk_weights, 10.0);
        let error = rel_l2(&got, &want);
        assert!(error < 3e-3, "{shape:?} {tokens} tokens: rel-L2 {error}");
    }
}

#[test]
fn quantised_activations_stay_near_the_unquantised_layer() {
    let mut random = Random::new(2);
    let shape = Shape { hidden: 512, inter: 256, experts: 4, local: 4, first: 0, top_k: 2 };
    let weights = Weights::random(shape, &mut random);
    let x = random.bf16s(20 * shape.hidden);
    let ids = random_ids(shape, 20, &mut random);
    let topk_weights = vec![0.5; ids.len()];
    let want = weights.reference(&x, &ids, &topk_weights, 10.0);
    for policy in [NVFP4_MOE_SCALE_STATIC, NVFP4_MOE_SCALE_DYNAMIC] {
        let layer = layer(shape, &weights, |desc| {
            desc.mode = NVFP4_MOE_MODE_NVFP4 as i32;
            desc.scale_policy = policy as i32;
        });
        if policy == NVFP4_MOE_SCALE_STATIC {
            // SAFETY: a live handle, and `run` passes valid pointers.
            unsafe {
                let (mut w13, mut w2) = (0.0, 0.0);
                assert_ne!(nvfp4_moe_layer_calibrated_scales(layer.0, &mut w13, &mut w2), 0, "nothing seen yet");
                let calibrate = &mut |args: &_| nvfp4_moe_layer_calibrate(layer.0, args, std::ptr::null_mut());
                let calibrated = run(shape, &layer, &x, &ids, &topk_weights, calibrate);
                assert!(rel_l2(&calibrated, &want) < 3e-3, "calibrate computes in mode bf16");
                check(nvfp4_moe_layer_calibrated_scales(layer.0, &mut w13, &mut w2));
                let x_amax = x.iter().map(|b| half::bf16::from_bits(*b).to_f32().abs()).fold(0.0, f32::max);
                assert_eq!(w13, x_amax / 2688.0);
                check(nvfp4_moe_layer_set_input_scales(layer.0, w13, w2));
            }
        }
        let error = rel_l2(&forward(shape, &layer, &x, &ids, &topk_weights), &want);
        assert!(error > 1e-2 && error < 0.2, "policy {policy}: rel-L2 {error} is not what 4 bits give");
    }
}

#[test]
fn bits_depend_neither_on_threads_nor_on_the_rest_of_the_batch() {
    let mut random = Random::new(3);
    let shape = Shape { hidden: 512, inter: 256, experts: 4, local: 4, first: 0, top_k: 2 };
    let weights = Weights::random(shape, &mut random);
    let layer = layer(shape, &weights, |_| {});
    let x = random.bf16s(100 * shape.hidden);
    let ids = random_ids(shape, 100, &mut random);
    let topk_weights: Vec<f32> = (0..ids.len()).map(|_| random.uniform()).collect();
    let whole = forward(shape, &layer, &x, &ids, &topk_weights);
    for threads in [1, 3, 0] {
        check(nvfp4_moe_set_num_threads(threads));
        assert_eq!(forward(shape, &layer, &x, &ids, &topk_weights), whole, "{threads} threads");
    }
    for token in 0..100 {
        let alone = forward(
            shape,
            &layer,
            &x[token * shape.hidden..][..shape.hidden],
            &ids[token * 2..][..2],
            &topk_weights[token * 2..][..2],
        );
        assert_eq!(alone, whole[token * shape.hidden..][..shape.hidden], "token {token} alone");
    }
}

#[test]
fn hostile_ids_are_unrouted_and_counted_and_nan_stays_in_its_row() {
    let mut random = Random::new(4);
    let shape = Shape { hidden: 64, inter: 32, experts: 4, local: 2, first: 1, top_k: 2 };
    let weights = Weights::random(shape, &mut random);
    let layer = layer(shape, &weights, |desc| {
        desc.mode = NVFP4_MOE_MODE_NVFP4 as i32;
        desc.scale_policy = NVFP4_MOE_SCALE_DYNAMIC as i32;
    });
    let mut x = random.bf16s(5 * shape.hidden);
    x[3 * shape.hidden + 9] = 0x7fc0; // NaN in token 3
    let ids = [i64::MIN, -1, 4, i64::from(i32::MAX), 1, 2, 2, 1, 0, 3];
    // SAFETY: reads and resets process-wide counters.
    unsafe {
        check(nvfp4_moe_device_status_reset(0, 0, std::ptr::null_mut()));
        let out = forward(shape, &layer, &x, &ids, &[1.0; 10]);
        let rows: Vec<_> = out.chunks(shape.hidden).collect();
        assert!(rows[0].iter().chain(rows[1]).chain(rows[4]).all(|v| *v == 0), "no expert here: zeros");
        assert!(rows[2].iter().all(|v| half::bf16::from_bits(*v).is_finite()));
        assert!(rows[3].iter().all(|v| half::bf16::from_bits(*v).is_nan()));
        let mut status = nvfp4_moe_device_status { struct_size: 40, ..Default::default() };
        check(nvfp4_moe_device_status_read(0, 0, &mut status, std::ptr::null_mut()));
        assert_eq!(status.out_of_range_ids, 3);
        assert!(status.nonfinite_values >= 1);
        assert_eq!(status.first_bad_token, 0);
    }
}

#[test]
fn mode_fp8_takes_weights_that_are_exact_in_e4m3_and_no_others() {
    let mut random = Random::new(5);
    let shape = Shape { hidden: 256, inter: 128, experts: 4, local: 3, first: 1, top_k: 2 };
    let mut weights = Weights::random(shape, &mut random);
    // The widest span: 2^-9 to 2^2 in one part, 2^-3 to 2^8 in another; zeros between.
    let choose = |from: &[u8], random: &mut Random| from[random.below(from.len() as u64) as usize];
    let (low, high) = ([0x01, 0x02, 0x04, 0x08, 0x48, 0], [0x20, 0x40, 0x78, 0]);
    weights.w13_block_scale.iter_mut().for_each(|bits| *bits = choose(&high, &mut random));
    weights.w2_block_scale.iter_mut().for_each(|bits| *bits = choose(&low, &mut random));
    weights.w13_global_scale.iter_mut().for_each(|scale| *scale /= 64.0);
    let x = random.bf16s(20 * shape.hidden);
    let ids = random_ids(shape, 20, &mut random);
    let topk_weights = vec![0.5; ids.len()];
    let want = weights.reference(&x, &ids, &topk_weights, 10.0);
    let handle = layer(shape, &weights, |desc| desc.mode = NVFP4_MOE_MODE_FP8 as i32);
    let error = rel_l2(&forward(shape, &handle, &x, &ids, &topk_weights), &want);
    assert!(error > 1e-2 && error < 6e-2, "rel-L2 {error} is not what e4m3 gives");

    // One block scale that is none, in each part of the last expert.
    let part = shape.hidden * shape.inter / 16;
    let refusal = |weights: &Weights, up_first: i32| {
        let weights = nvfp4_moe_layer_weights { up_first, ..weights.as_struct() };
        // SAFETY: complete structs, and a live handle; refused weights are not kept.
        let status =
            unsafe { nvfp4_moe_layer_prepare(handle.0, &weights, std::ptr::null_mut(), 0, std::ptr::null_mut()) };
        assert_eq!(status, NVFP4_MOE_INVALID_ARGUMENT as i32);
        last_error()
    };
    weights.w13_block_scale[6 * part - 1] = 0x39;
    assert!(refusal(&weights, 0).starts_with(&format!("w13_block_scale[2] (up) is no power of two in 1 of {part} ")));
    assert!(refusal(&weights, 1).starts_with("w13_block_scale[2] (gate) is no power of two in 1 of "));
    // Interleaved, the last row is up and the one before it gate.
    assert!(refusal(&weights, 2).starts_with(&format!("w13_block_scale[2] (up) is no power of two in 1 of {part} ")));
    weights.w13_block_scale.swap(6 * part - 1, 6 * part - 1 - shape.hidden / 16);
    assert!(refusal(&weights, 2).starts_with(&format!("w13_block_scale[2] (gate) is no power of two in 1 of {part} ")));
    weights.w13_block_scale.swap(6 * part - 1, 6 * part - 1 - shape.hidden / 16);
    weights.w13_block_scale[6 * part - 1] = 0x01;
    assert!(refusal(&weights, 0).starts_with("w13_block_scale[2] (up) is 2^-9 to 2^8, a factor of 2^17; "));
    weights.w13_block_scale[6 * part - 1] = 0;
    weights.w2_block_scale[2 * part] = 0x50;
    assert!(refusal(&weights, 0).starts_with("w2_block_scale[2] is 2^-9 to 2^3, a factor of 2^12; "));
}

/// A call in this workspace, NULL for none of its own; what it writes.
fn forward_in(shape: Shape, layer: &Handle, x: &[u16], ids: &[i64], workspace: (*mut u8, u64)) -> Vec<u16> {
    let mut out = vec![0xffffu16; x.len()];
    let args = nvfp4_moe_layer_args {
        struct_size: size_of::<nvfp4_moe_layer_args>() as u32,
        num_tokens: (ids.len() / shape.top_k) as i32,
        x: x.as_ptr().cast(),
        topk_ids: ids.as_ptr().cast(),
        topk_ids_dtype: NVFP4_MOE_DTYPE_I64 as i32,
        out: out.as_mut_ptr().cast(),
        workspace: workspace.0.cast(),
        workspace_size: workspace.1,
        ..Default::default()
    };
    // SAFETY: the layer is alive, and the pointers are valid for what the sizes say.
    check(unsafe { nvfp4_moe_layer_forward(layer.0, &args, std::ptr::null_mut()) });
    out
}

/// A handle may be used by many threads.
struct Shared<T>(T);
// SAFETY: forward takes a const handle, which the header lets many threads use; memory outlives them.
unsafe impl<T> Sync for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Send for Shared<T> {}

const SMALL: Shape = Shape { hidden: 128, inter: 64, experts: 8, local: 8, first: 0, top_k: 2 };

/// Once a deadlock: a thread of the host's rayon pool that waits for ours is given another of the host's calls to run, and
/// that one waited for the workspace which the first held.
#[test]
fn calls_out_of_a_rayon_pool_of_the_hosts_wait_for_no_other() {
    let mut random = Random::new(61);
    let weights = Weights::random(SMALL, &mut random);
    let layer = Shared(layer(SMALL, &weights, |_| {}));
    let (x, ids) = (random.bf16s(64 * SMALL.hidden), random_ids(SMALL, 64, &mut random));
    let want = forward_in(SMALL, &layer.0, &x, &ids, (std::ptr::null_mut(), 0));
    std::thread::scope(|scope| {
        let (done, finished) = std::sync::mpsc::channel();
        let (layer, x, ids, want) = (&layer, &x, &ids, &want);
        scope.spawn(move || {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
            let call = |_| forward_in(SMALL, &layer.0, x, ids, (std::ptr::null_mut(), 0)) == *want;
            done.send(pool.install(|| (0..64).into_par_iter().all(call))).unwrap();
        });
        match finished.recv_timeout(std::time::Duration::from_secs(60)) {
            Ok(all_equal) => assert!(all_equal),
            // The scope would wait for threads that wait for each other.
            Err(_) => std::process::abort(),
        }
    });
}

/// Once a wild access: routing tables lay in the workspace.
#[test]
fn one_workspace_in_two_calls_at_once_spoils_numbers_alone() {
    let mut random = Random::new(62);
    let weights = Weights::random(SMALL, &mut random);
    let layer = Shared(layer(SMALL, &weights, |_| {}));
    let mut size = 0;
    // SAFETY: a live handle.
    unsafe { check(nvfp4_moe_layer_workspace_size(layer.0.0, 200, &mut size)) };
    let mut memory = vec![0xffu8; size as usize + 255];
    let workspace = Shared((memory.as_mut_ptr().wrapping_add(memory.as_ptr().align_offset(256)), size));
    let x = random.bf16s(200 * SMALL.hidden);
    // All to one expert, and spread: tables of one call would lead the other out of its rows.
    let ids = [vec![7; 200 * SMALL.top_k], random_ids(SMALL, 150, &mut random), random_ids(SMALL, 1, &mut random)];
    std::thread::scope(|scope| {
        for ids in &ids {
            let (layer, workspace, x) = (&layer, &workspace, &x);
            scope.spawn(move || {
                for _ in 0..100 {
                    let x = &x[..ids.len() / SMALL.top_k * SMALL.hidden];
                    forward_in(SMALL, &layer.0, x, ids, workspace.0);
                }
            });
        }
    });
}
