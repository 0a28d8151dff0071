// SPDX-License-Identifier: Apache-2.0
//! Arguments that the fuzz target `abi` or a review found to be answered badly; each stays answered well.

use nvfp4_moe::abi::{exports::*, header::*};
use std::ffi::CString;
use std::io::Write;
use std::ptr::{null, null_mut, without_provenance, without_provenance_mut};
use std::time::{Duration, Instant};

fn last_error() -> String {
    let mut buf = [0u8; 1024];
    // SAFETY: buf is as long as is said.
    let len = unsafe { nvfp4_moe_last_error(buf.as_mut_ptr().cast(), buf.len()) };
    String::from_utf8_lossy(&buf[..len]).into_owned()
}

/// More experts than any index could count: once an overflow in prepare, reached before its NULLs were seen.
#[test]
fn a_layer_with_two_billion_experts_is_refused() {
    let desc = nvfp4_moe_layer_desc {
        struct_size: size_of::<nvfp4_moe_layer_desc>() as u32,
        hidden_size: 1 << 20,
        intermediate_size: 1 << 20,
        num_experts: i32::MAX,
        num_local_experts: i32::MAX,
        top_k: 1,
        ..Default::default()
    };
    let mut layer = null_mut();
    // SAFETY: both pointers are valid.
    let status = unsafe { nvfp4_moe_layer_create(&desc, &mut layer) };
    assert_eq!(status, NVFP4_MOE_INVALID_ARGUMENT as i32);
    assert!(last_error().starts_with("num_experts is 2147483647; it must be at most 1048576."), "{}", last_error());
    assert!(layer.is_null());
}

/// The largest layer that is accepted computes its sizes without overflow, and still sees a NULL.
#[test]
fn the_largest_layer_answers_its_queries() {
    let desc = nvfp4_moe_layer_desc {
        struct_size: size_of::<nvfp4_moe_layer_desc>() as u32,
        hidden_size: 1 << 20,
        intermediate_size: 1 << 20,
        num_experts: 1 << 20,
        num_local_experts: 1 << 20,
        top_k: 1 << 20,
        ..Default::default()
    };
    let weights =
        nvfp4_moe_layer_weights { struct_size: size_of::<nvfp4_moe_layer_weights>() as u32, ..Default::default() };
    let (mut layer, mut bytes) = (null_mut(), 0);
    // SAFETY: NULL or valid, as the header wants it.
    unsafe {
        assert_eq!(nvfp4_moe_layer_create(&desc, &mut layer), 0);
        assert_eq!(nvfp4_moe_layer_workspace_size(layer, 2047, &mut bytes), 0);
        assert!(bytes > 1 << 50);
        let status = nvfp4_moe_layer_prepare(layer, &weights, null_mut(), 0, null_mut());
        assert_eq!(status, NVFP4_MOE_INVALID_ARGUMENT as i32);
        assert!(last_error().starts_with("w13 is NULL; "), "{}", last_error());
        assert_eq!(nvfp4_moe_layer_prepare(layer, null(), null_mut(), 0, null_mut()), status);
        nvfp4_moe_layer_destroy(layer);
    }
}

/// Strides whose rows span more than 64 bits count: once an overflow, after which x and out seemed to lie apart.
#[test]
fn rows_that_no_memory_holds_are_refused() {
    let desc = nvfp4_moe_linear_desc {
        struct_size: size_of::<nvfp4_moe_linear_desc>() as u32,
        in_features: 16,
        out_features: 16,
        ..Default::default()
    };
    let args = nvfp4_moe_linear_args {
        struct_size: size_of::<nvfp4_moe_linear_args>() as u32,
        num_tokens: i32::MAX,
        x: without_provenance(1 << 12),
        x_row_stride: 1 << 40,
        out: without_provenance_mut(1 << 20),
        out_row_stride: 1 << 39,
        ..Default::default()
    };
    let mut linear = null_mut();
    // SAFETY: complete structs; what is refused is not read.
    unsafe {
        assert_eq!(nvfp4_moe_linear_create(&desc, &mut linear), 0);
        let status = nvfp4_moe_linear_forward(linear, &args, null_mut());
        assert_eq!(status, NVFP4_MOE_INVALID_ARGUMENT as i32, "{}", last_error());
        assert!(last_error().contains("must not overlap"), "{}", last_error());
        nvfp4_moe_linear_destroy(linear);
    }
}

/// Harmless or refused: no result may depend on what overlaps what.
#[test]
fn what_is_written_lies_apart_from_what_is_read() {
    let desc = nvfp4_moe_layer_desc {
        struct_size: size_of::<nvfp4_moe_layer_desc>() as u32,
        hidden_size: 16,
        intermediate_size: 16,
        num_experts: 4,
        num_local_experts: 4,
        top_k: 1,
        ..Default::default()
    };
    // Two tokens: 64 bytes of x and of out, 8 of ids and of weights, 16 of the map; a workspace of 4096.
    let at = |offset: usize| without_provenance_mut::<std::ffi::c_void>((1 << 20) + offset);
    let args = nvfp4_moe_layer_args {
        struct_size: size_of::<nvfp4_moe_layer_args>() as u32,
        num_tokens: 2,
        x: at(0),
        topk_ids: at(64),
        topk_weights: at(72).cast(),
        expert_map: at(80).cast(),
        num_experts_mapped: 4,
        out: at(96),
        workspace: at(256),
        workspace_size: 4096,
        ..Default::default()
    };
    type Move = fn(&mut nvfp4_moe_layer_args, *mut std::ffi::c_void);
    let moves: [(Move, usize, &str); 11] = [
        (|_, _| (), 0, "0 prepared weights"),
        (|a, to| a.out = to, 4, "out is 0x100004; its 64 bytes must not overlap the 64 bytes of x"),
        (|a, to| a.out = to, 64, "the 8 bytes of topk_ids"),
        (|a, to| a.out = to, 76, "the 8 bytes of topk_weights"),
        (|a, to| a.out = to, 92, "the 16 bytes of expert_map"),
        (
            |a, to| a.x = to,
            4288,
            "workspace is 0x100100; its 4096 bytes must not overlap the 64 bytes of x at 0x1010c0",
        ),
        (|a, to| a.out = to, 256, "the 64 bytes of out"),
        (|a, to| a.topk_ids = to, 4348, "the 8 bytes of topk_ids"),
        (
            |a, to| a.shared_output = to,
            158,
            "out is 0x100060; its 64 bytes must not overlap the 64 bytes of shared_output",
        ),
        (|a, to| a.shared_output = to, 4350, "its 4096 bytes must not overlap the 64 bytes of shared_output"),
        (|a, to| a.x = to, 4352, "0 prepared weights"),
    ];
    let mut layer = null_mut();
    // SAFETY: complete structs; a layer without weights reads nothing.
    unsafe {
        assert_eq!(nvfp4_moe_layer_create(&desc, &mut layer), 0, "{}", last_error());
        for (change, to, text) in moves {
            let mut args = args;
            change(&mut args, at(to));
            assert_ne!(nvfp4_moe_layer_forward(layer, &args, null_mut()), 0);
            assert!(last_error().contains(text), "{text}: {}", last_error());
        }
        nvfp4_moe_layer_destroy(layer);
    }
}

/// Coordinates that overflow 64 bits: once a panic, which cannot leave a C function, so it ended the process.
#[test]
fn scale_layouts_that_no_memory_holds_are_answered() {
    for (rows, cols) in [(u64::MAX, u64::MAX), (u64::MAX, 1), (1, u64::MAX), (1 << 60, 1 << 10)] {
        assert_eq!(nvfp4_moe_sf_size(rows, cols), u64::MAX);
        assert_eq!(nvfp4_moe_sf_offset(rows, cols, 4), u64::MAX);
        assert_eq!(nvfp4_moe_sf_offset(rows, 0, cols), u64::MAX);
    }
    assert_eq!(nvfp4_moe_sf_size(1 << 40, 1 << 20), 1 << 60);
}

/// A file that says a terabyte of tensors, and has holes for them: to read it would take minutes.
#[test]
fn opening_a_checkpoint_reads_no_data() {
    const BYTES: u64 = 1 << 40;
    let directory = tempfile::tempdir().unwrap();
    let header = format!(r#"{{"lm_head.weight":{{"dtype":"U8","shape":[{BYTES}],"data_offsets":[0,{BYTES}]}}}}"#);
    let mut file = std::fs::File::create(directory.path().join("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len(8 + header.len() as u64 + BYTES).unwrap();
    std::fs::write(directory.path().join("config.json"), "{}").unwrap();
    let path = CString::new(directory.path().to_str().unwrap()).unwrap();
    let (mut checkpoint, started) = (null_mut(), Instant::now());
    // SAFETY: a path, and a local to write to.
    unsafe {
        assert_eq!(nvfp4_moe_checkpoint_open(path.as_ptr(), &mut checkpoint), 0, "{}", last_error());
        nvfp4_moe_checkpoint_destroy(checkpoint);
    }
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}
