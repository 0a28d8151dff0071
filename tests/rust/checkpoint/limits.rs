// SPDX-License-Identifier: Apache-2.0
//! Memory that the system refuses is a status, in every call that allocates by what it was given; never an abort.

use crate::made::{Spec, write};
use nvfp4_moe::abi::exports::*;
use nvfp4_moe::abi::header::*;
use std::ffi::CString;
use std::path::Path;
use std::process::Command;
use std::ptr::null_mut;

const DIRECTORY: &str = "NVFP4_MOE_TEST_LIMITS";
const EXPERTS: usize = 4000;
const HIDDEN: usize = 8192;
const INTER: usize = 16;
const TOKENS: usize = 1024;

#[test]
fn memory_that_the_system_refuses_is_a_status() {
    let directory = tempfile::tempdir().unwrap();
    let spec = Spec { experts: EXPERTS, hidden: 16, intermediate: 16, ..Spec::default() };
    write(directory.path(), &spec.made().sharded());
    // A process of its own: its address space is limited, and an abort would end it.
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "limits::call_everything_with_little_memory", "--ignored", "--nocapture"]);
    let done = child.env(DIRECTORY, directory.path()).output().unwrap();
    let text = [done.stdout, done.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(done.status.success(), "{}: {text}", done.status);
}

#[test]
#[ignore = "run by memory_that_the_system_refuses_is_a_status"]
fn call_everything_with_little_memory() {
    let directory = std::env::var_os(DIRECTORY).unwrap();
    reads(Path::new(&directory));
    computes();
}

/// Call with ever more address space beside what the process has: done at last.
///
/// Returns the first status. An allocator has up to 64 MB that it keeps for a thread, so small needs may be met at once.
fn sweep(what: &str, mut call: impl FnMut() -> i32) -> u32 {
    let mut seen = Vec::new();
    for extra in [0, 200 << 10, 3 << 20, 20 << 20, 60 << 20, 2 << 30] {
        let status = limited(extra, &mut call) as u32;
        if status == NVFP4_MOE_OUT_OF_MEMORY {
            let text = last_error();
            assert!(text.contains("bytes of host memory, which the system refused"), "{what}: {text}");
        } else {
            assert_eq!(status, NVFP4_MOE_OK, "{what} with {extra} bytes: {}", last_error());
        }
        seen.push(status);
    }
    println!("{what}: {seen:?}");
    assert_eq!(seen[seen.len() - 1], NVFP4_MOE_OK, "{what}: {seen:?}");
    seen[0]
}

fn limited<R>(extra: u64, call: impl FnOnce() -> R) -> R {
    const RLIMIT_AS: i32 = 9;
    unsafe extern "C" {
        fn setrlimit(resource: i32, soft_and_hard: *const [u64; 2]) -> i32;
        fn malloc_trim(kept: usize) -> i32;
    }
    // SAFETY: gives back what earlier calls freed, which would serve this one.
    unsafe { malloc_trim(0) };
    // SAFETY: two integers that setrlimit reads.
    let set = |soft: u64| assert_eq!(unsafe { setrlimit(RLIMIT_AS, &[soft, u64::MAX]) }, 0);
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    set(pages.split(' ').next().unwrap().parse::<u64>().unwrap() * 4096 + extra);
    let result = call();
    set(u64::MAX);
    result
}

fn last_error() -> String {
    let mut text = vec![0u8; 4096];
    // SAFETY: writable for its length.
    let len = unsafe { nvfp4_moe_last_error(text.as_mut_ptr().cast(), text.len()) };
    String::from_utf8_lossy(&text[..len.min(text.len() - 1)]).into_owned()
}

fn reads(directory: &Path) {
    let path = CString::new(directory.to_str().unwrap()).unwrap();
    let mut checkpoint = null_mut();
    // SAFETY: live pointers; the last handle stays open, and buffers are as long as the layer needs, in all of this.
    unsafe {
        let first = sweep("open", || {
            nvfp4_moe_checkpoint_destroy(checkpoint);
            checkpoint = null_mut();
            nvfp4_moe_checkpoint_open(path.as_ptr(), &mut checkpoint)
        });
        assert_eq!(first, NVFP4_MOE_OUT_OF_MEMORY);
        let mut info = nvfp4_moe_checkpoint_layer_info {
            struct_size: size_of::<nvfp4_moe_checkpoint_layer_info>() as u32,
            ..Default::default()
        };
        sweep("layer_info_read", || nvfp4_moe_checkpoint_layer_info_read(checkpoint, 0, &mut info));
        let mut bytes = vec![0u8; EXPERTS * 16 * 16 * 2];
        let mut globals = vec![0f32; EXPERTS * 2];
        let (bytes, globals) = (bytes.as_mut_ptr(), globals.as_mut_ptr());
        let buffers = nvfp4_moe_checkpoint_buffers {
            struct_size: size_of::<nvfp4_moe_checkpoint_buffers>() as u32,
            first_expert: 0,
            num_experts: EXPERTS as i32,
            reserved: 0,
            w13: bytes,
            w13_block_scale: bytes.add(EXPERTS * 256),
            w13_global_scale: globals,
            w2: bytes.add(EXPERTS * 288),
            w2_block_scale: bytes.add(EXPERTS * 416),
            w2_global_scale: Box::leak(vec![0f32; EXPERTS].into_boxed_slice()).as_mut_ptr(),
            w13_bias: null_mut(),
            w2_bias: null_mut(),
        };
        sweep("read_layer", || nvfp4_moe_checkpoint_read_layer(checkpoint, 0, &buffers));
        for as_json in 0..3 {
            let mut length = 0;
            let inspect = || nvfp4_moe_checkpoint_inspect(checkpoint, as_json, null_mut(), 0, &mut length);
            sweep("inspect", inspect);
        }
    }
}

fn computes() {
    let (codes, scales, globals) = (vec![0x22u8; HIDDEN * INTER * 2], vec![0x38u8; HIDDEN * INTER / 4], [1f32; 4]);
    let (x, ids, mut out) = (vec![0u16; TOKENS * HIDDEN], [0i32; TOKENS], vec![0u16; TOKENS * HIDDEN]);
    let desc = nvfp4_moe_layer_desc {
        struct_size: size_of::<nvfp4_moe_layer_desc>() as u32,
        mode: NVFP4_MOE_MODE_NVFP4 as i32,
        scale_policy: NVFP4_MOE_SCALE_DYNAMIC as i32,
        hidden_size: HIDDEN as i32,
        intermediate_size: INTER as i32,
        num_experts: 2,
        num_local_experts: 2,
        top_k: 1,
        ..Default::default()
    };
    let weights = nvfp4_moe_layer_weights {
        struct_size: size_of::<nvfp4_moe_layer_weights>() as u32,
        w13: codes.as_ptr(),
        w13_block_scale: scales.as_ptr(),
        w13_global_scale: globals.as_ptr(),
        w2: codes.as_ptr(),
        w2_block_scale: scales.as_ptr(),
        w2_global_scale: globals.as_ptr(),
        ..Default::default()
    };
    let args = nvfp4_moe_layer_args {
        struct_size: size_of::<nvfp4_moe_layer_args>() as u32,
        num_tokens: TOKENS as i32,
        x: x.as_ptr().cast(),
        topk_ids: ids.as_ptr().cast(),
        out: out.as_mut_ptr().cast(),
        ..Default::default()
    };
    let (mut packed, mut block_scale) = (vec![0u8; 1 << 21], vec![0u8; 1 << 18]);
    let mut global_scale = 0f32;
    let quantize = nvfp4_moe_quantize_args {
        struct_size: size_of::<nvfp4_moe_quantize_args>() as u32,
        scale_policy: NVFP4_MOE_SCALE_DYNAMIC as i32,
        num_rows: 1,
        num_cols: (1 << 22) - 16,
        x: x.as_ptr().cast(),
        packed: packed.as_mut_ptr(),
        block_scale: block_scale.as_mut_ptr(),
        global_scale: &mut global_scale,
        ..Default::default()
    };
    let mut layer = null_mut();
    // SAFETY: complete structs; what they point to outlives the layer.
    unsafe {
        assert_eq!(nvfp4_moe_layer_create(&desc, &mut layer), 0, "{}", last_error());
        assert_eq!(nvfp4_moe_layer_prepare(layer, &weights, null_mut(), 0, null_mut()), 0, "{}", last_error());
        let first = sweep("forward", || nvfp4_moe_layer_forward(layer, &args, null_mut()));
        assert_eq!(first, NVFP4_MOE_OUT_OF_MEMORY);
        sweep("calibrate", || nvfp4_moe_layer_calibrate(layer, &args, null_mut()));
        sweep("quantize", || nvfp4_moe_quantize(&quantize));
        nvfp4_moe_layer_destroy(layer);
    }
}
