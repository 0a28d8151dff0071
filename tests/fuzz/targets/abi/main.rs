// SPDX-License-Identifier: Apache-2.0
//! Arguments of every ABI function, within the header's contract: a pointer is NULL or valid for exactly the
//! documented size (the sanitizer sees the first byte past it), everything else is anything. Every call must return a
//! clean status, never INTERNAL; a failure has a text and leaves `out` alone.

#![no_main]

mod checkpoint;
mod source;

use libfuzzer_sys::fuzz_target;
use nvfp4_moe::abi::{exports::*, header::*};
use source::{Source, Tensor, struct_of};
use std::ptr::{null, null_mut};

/// Values that a size may have: small and right, small and wrong, and the ends.
const SIZES: &[i32] = &[16, 32, 48, 64, 16, 32, 0, 1, 17, -16, 1 << 20, i32::MAX - 15, i32::MAX, i32::MIN];
const COUNTS: &[i32] = &[1, 2, 3, 4, 8, 0, -1, 1 << 16, i32::MAX, i32::MIN];
const TOKENS: &[i32] = &[1, 2, 3, 5, 17, 0, -1, 1 << 20, i32::MAX, i32::MIN];
const CHOICES: &[i32] = &[0, 1, 2, 3, -1, 77];
/// Elements that a call may make us allocate.
const MAX_ELEMENTS: i64 = 1 << 20;

/// The status is one that the header names, and not a bug; a failure explains itself.
fn check(status: i32) -> bool {
    assert!(status != NVFP4_MOE_INTERNAL as i32, "{}", last_error());
    assert!((0..=NVFP4_MOE_OUT_OF_MEMORY as i32).contains(&status), "status {status}: {}", last_error());
    if status != NVFP4_MOE_OK as i32 {
        let text = last_error();
        assert!(text.contains("; ") && text.ends_with('.'), "{text}");
    }
    status == NVFP4_MOE_OK as i32
}

fn last_error() -> String {
    let mut buf = vec![0u8; 4096];
    // SAFETY: buf is as long as is said.
    let len = unsafe { nvfp4_moe_last_error(buf.as_mut_ptr().cast(), buf.len()) };
    String::from_utf8_lossy(&buf[..len.min(buf.len() - 1)]).into_owned()
}

/// `rows` rows of `width` elements at a stride as the header reads it, or None where that is no honest amount.
fn elements(rows: i32, width: i32, stride: i64) -> Option<i64> {
    let stride = if stride == 0 { i64::from(width) } else { stride };
    let (rows, width) = (i64::from(rows), i64::from(width));
    if rows <= 0 || width <= 0 || stride < width {
        return Some(0); // refused before a pointer is read
    }
    let needed = i128::from(rows - 1) * i128::from(stride) + i128::from(width);
    (needed <= i128::from(MAX_ELEMENTS)).then_some(needed as i64)
}

/// Run `call` and see that what it should not have written stays.
fn call_with_out(out: &mut Tensor, call: impl FnOnce() -> i32) {
    out.bytes().fill(0xa5);
    if !check(call()) {
        assert!(out.bytes().iter().all(|byte| *byte == 0xa5), "a failing call wrote its output: {}", last_error());
    }
}

fn layer(source: &mut Source) {
    let desc = nvfp4_moe_layer_desc {
        struct_size: size_of::<nvfp4_moe_layer_desc>() as u32,
        device_kind: source.rarely(0, CHOICES),
        device_ordinal: source.rarely(0, CHOICES),
        mode: source.pick(CHOICES),
        scale_policy: source.rarely(1, CHOICES),
        hidden_size: source.pick(SIZES),
        intermediate_size: source.pick(SIZES),
        num_experts: source.pick(COUNTS),
        num_local_experts: source.pick(COUNTS),
        first_local_expert: source.rarely(0, COUNTS),
        top_k: source.pick(COUNTS),
        swiglu_limit: source.float(),
        swiglu_alpha: source.float(),
        swiglu_beta: source.float(),
        activation: source.rarely(0, CHOICES),
        has_bias: source.rarely(0, CHOICES),
        ..Default::default()
    };
    let mut layer: *mut nvfp4_moe_layer = null_mut();
    let desc_memory = struct_of(source, &desc);
    // SAFETY (here and below): pointers are NULL or as the header wants them; Tensors outlive the calls.
    if !check(unsafe { nvfp4_moe_layer_create(desc_memory.pointer(), &mut layer) }) {
        assert!(layer.is_null());
        return;
    }
    let mut tensors = Vec::new(); // weights must outlive the layer
    for _ in 0..8 {
        match source.byte() % 8 {
            0 | 1 => layer_prepare(source, layer, &desc, &mut tensors),
            2..=4 => layer_forward(source, layer, &desc),
            5 => {
                let (mut w13, mut w2) = (0.0, 0.0);
                let w13_pointer = if source.byte() == 0 { null_mut() } else { &raw mut w13 };
                check(unsafe { nvfp4_moe_layer_calibrated_scales(layer, w13_pointer, &mut w2) });
            }
            6 => {
                check(unsafe { nvfp4_moe_layer_set_input_scales(layer, source.float(), source.float()) });
            }
            _ => {
                let mut bytes = 0;
                check(unsafe { nvfp4_moe_layer_workspace_size(layer, source.pick(TOKENS), &mut bytes) });
                check(unsafe { nvfp4_moe_layer_storage_size(layer, &mut bytes) });
            }
        }
    }
    unsafe { nvfp4_moe_layer_destroy(layer) };
}

fn layer_prepare(source: &mut Source, layer: *mut nvfp4_moe_layer, d: &nvfp4_moe_layer_desc, keep: &mut Vec<Tensor>) {
    let experts = i64::from(d.num_local_experts);
    let values = i128::from(d.hidden_size) * i128::from(d.intermediate_size) * i128::from(experts);
    let values = if values <= i128::from(MAX_ELEMENTS) { Some(values as i64) } else { None };
    let bytes = |source: &mut Source, per: i64| Tensor::bytes_or_null(source, values.map(|v| v * 2 / per));
    let w13 = bytes(source, 2);
    let w13_block_scale = Tensor::scales(source, values.map(|v| v / 8));
    let w13_global_scale = Tensor::floats(source, values.map(|_| experts * 2));
    let w2 = bytes(source, 4);
    let w2_block_scale = Tensor::scales(source, values.map(|v| v / 16));
    let w2_global_scale = Tensor::floats(source, values.map(|_| experts));
    let w13_bias = Tensor::bytes_or_null(source, values.map(|_| experts * 4 * i64::from(d.intermediate_size)));
    let weights = nvfp4_moe_layer_weights {
        struct_size: size_of::<nvfp4_moe_layer_weights>() as u32,
        up_first: source.rarely(1, CHOICES),
        w13: w13.pointer(),
        w13_block_scale: w13_block_scale.pointer(),
        w13_global_scale: w13_global_scale.pointer(),
        w2: w2.pointer(),
        w2_block_scale: w2_block_scale.pointer(),
        w2_global_scale: w2_global_scale.pointer(),
        w13_input_scale: source.float(),
        w2_input_scale: source.float(),
        w13_bias: w13_bias.pointer(),
        w2_bias: null(),
    };
    let memory = struct_of(source, &weights);
    let layer = if source.byte() == 0 { null_mut() } else { layer };
    check(unsafe { nvfp4_moe_layer_prepare(layer, memory.pointer(), null_mut(), source.size(), null_mut()) });
    keep.extend([w13, w13_block_scale, w13_global_scale, w2, w2_block_scale, w2_global_scale, w13_bias]);
}

fn layer_forward(source: &mut Source, layer: *mut nvfp4_moe_layer, d: &nvfp4_moe_layer_desc) {
    let num_tokens = source.pick(TOKENS);
    let (x_stride, ids_stride) = (source.stride(d.hidden_size), source.stride(d.top_k));
    let (weights_stride, out_stride) = (source.stride(d.top_k), source.stride(d.hidden_size));
    let dtype = source.rarely(0, CHOICES);
    let x = Tensor::bytes_or_null(source, elements(num_tokens, d.hidden_size, x_stride).map(|n| n * 2));
    let ids_bytes = if dtype == NVFP4_MOE_DTYPE_I64 as i32 { 8 } else { 4 };
    let ids = Tensor::ids(source, elements(num_tokens, d.top_k, ids_stride), ids_bytes, d.num_experts);
    let topk_weights = Tensor::floats(source, elements(num_tokens, d.top_k, weights_stride));
    let expert_map = if source.byte() % 2 == 0 && i64::from(d.num_experts) <= MAX_ELEMENTS {
        Tensor::ids(source, Some(i64::from(d.num_experts)), 4, d.num_local_experts)
    } else {
        Tensor::null()
    };
    let mut out = Tensor::bytes_or_null(source, elements(num_tokens, d.hidden_size, out_stride).map(|n| n * 2));
    let shared_stride = source.stride(d.hidden_size);
    let shared = Tensor::bytes_or_null(source, elements(num_tokens, d.hidden_size, shared_stride).map(|n| n * 2));
    let mut needed = 0;
    let known = unsafe { nvfp4_moe_layer_workspace_size(layer, num_tokens, &mut needed) } == NVFP4_MOE_OK as i32;
    let workspace = Tensor::workspace(source, if known { needed } else { 0 });
    let mapped = if expert_map.is_null() { 0 } else { d.num_experts };
    let args = nvfp4_moe_layer_args {
        struct_size: size_of::<nvfp4_moe_layer_args>() as u32,
        num_tokens,
        x: x.pointer(),
        x_row_stride: x_stride,
        topk_ids: ids.pointer(),
        topk_ids_row_stride: ids_stride,
        topk_ids_dtype: dtype,
        num_experts_mapped: source.rarely(mapped, COUNTS),
        topk_weights: topk_weights.pointer(),
        topk_weights_row_stride: weights_stride,
        expert_map: expert_map.pointer(),
        out: out.pointer(),
        out_row_stride: out_stride,
        workspace: workspace.pointer(),
        workspace_size: workspace.len(),
        shared_output: shared.pointer(),
        shared_output_row_stride: shared_stride,
        shared_output_ready: null_mut(),
    };
    let memory = struct_of(source, &args);
    let layer = if source.byte() == 0 { null_mut() } else { layer };
    let calibrate = source.byte() % 4 == 0;
    call_with_out(&mut out, || unsafe {
        if calibrate {
            nvfp4_moe_layer_calibrate(layer, memory.pointer(), null_mut())
        } else {
            nvfp4_moe_layer_forward(layer, memory.pointer(), null_mut())
        }
    });
}

fn linear(source: &mut Source) {
    let d = nvfp4_moe_linear_desc {
        struct_size: size_of::<nvfp4_moe_linear_desc>() as u32,
        device_kind: source.rarely(0, CHOICES),
        device_ordinal: source.rarely(0, CHOICES),
        mode: source.pick(CHOICES),
        scale_policy: source.rarely(1, CHOICES),
        in_features: source.pick(SIZES),
        out_features: source.pick(SIZES),
        num_parts: source.pick(COUNTS),
        tile_rows: source.rarely(0, CHOICES),
    };
    let mut linear: *mut nvfp4_moe_linear = null_mut();
    let memory = struct_of(source, &d);
    if !check(unsafe { nvfp4_moe_linear_create(memory.pointer(), &mut linear) }) {
        return assert!(linear.is_null());
    }
    let values = i64::from(d.in_features) * i64::from(d.out_features);
    let values = (values <= MAX_ELEMENTS).then_some(values);
    let parts = i64::from(d.num_parts.max(1));
    let tensors = [
        Tensor::bytes_or_null(source, values.map(|v| v / 2)),
        Tensor::scales(source, values.map(|v| v / 16)),
        Tensor::floats(source, values.map(|_| parts)),
        Tensor::parts(source, values.map(|_| parts), d.out_features),
        Tensor::bytes_or_null(source, values.map(|_| i64::from(d.out_features) * 2)),
    ];
    let weights = nvfp4_moe_linear_weights {
        struct_size: size_of::<nvfp4_moe_linear_weights>() as u32,
        input_scale: source.float(),
        weight: tensors[0].pointer(),
        block_scale: tensors[1].pointer(),
        global_scale: tensors[2].pointer(),
        part_rows: tensors[3].pointer(),
        bias: tensors[4].pointer(),
    };
    let memory = struct_of(source, &weights);
    check(unsafe { nvfp4_moe_linear_prepare(linear, memory.pointer(), null_mut(), source.size(), null_mut()) });
    for _ in 0..4 {
        let (num_tokens, mut needed, mut scale) = (source.pick(TOKENS), 0, 0.0);
        let known = check(unsafe { nvfp4_moe_linear_workspace_size(linear, num_tokens, &mut needed) });
        check(unsafe { nvfp4_moe_linear_storage_size(linear, &mut 0) });
        let (x_stride, out_stride) = (source.stride(d.in_features), source.stride(d.out_features));
        let x = Tensor::bytes_or_null(source, elements(num_tokens, d.in_features, x_stride).map(|n| n * 2));
        let mut out = Tensor::bytes_or_null(source, elements(num_tokens, d.out_features, out_stride).map(|n| n * 2));
        let workspace = Tensor::workspace(source, if known { needed } else { 0 });
        let args = nvfp4_moe_linear_args {
            struct_size: size_of::<nvfp4_moe_linear_args>() as u32,
            num_tokens,
            x: x.pointer(),
            x_row_stride: x_stride,
            out: out.pointer(),
            out_row_stride: out_stride,
            workspace: workspace.pointer(),
            workspace_size: workspace.len(),
        };
        let memory = struct_of(source, &args);
        let calibrate = source.byte() % 4 == 0;
        call_with_out(&mut out, || unsafe {
            if calibrate {
                nvfp4_moe_linear_calibrate(linear, memory.pointer(), null_mut())
            } else {
                nvfp4_moe_linear_forward(linear, memory.pointer(), null_mut())
            }
        });
        match source.byte() % 4 {
            0 => check(unsafe { nvfp4_moe_linear_calibrated_scale(linear, &mut scale) }),
            1 => check(unsafe { nvfp4_moe_linear_set_input_scale(linear, source.float()) }),
            _ => true,
        };
    }
    unsafe { nvfp4_moe_linear_destroy(linear) };
}

fn format(source: &mut Source) {
    let (rows, cols) = (source.pick(TOKENS), source.pick(SIZES));
    let stride = source.stride(cols);
    let (policy, layout) = (source.pick(CHOICES), source.pick(CHOICES));
    let dense = elements(rows, cols, 0);
    let x = Tensor::bytes_or_null(source, elements(rows, cols, stride).map(|n| n * 2));
    let sf_cols = cols.max(0) as u64 / 16;
    let scale_bytes = match layout {
        1 => dense.map(|_| nvfp4_moe_sf_size(rows.max(0) as u64, sf_cols) as i64),
        _ => dense.map(|n| n / 16),
    };
    let (mut packed, block_scale) =
        (Tensor::bytes_or_null(source, dense.map(|n| n / 2)), Tensor::bytes_or_null(source, scale_bytes));
    let num_scales = if policy == 1 { i64::from(rows.max(0)) } else { 1 };
    let global_scale = Tensor::floats(source, dense.map(|_| num_scales).filter(|n| *n <= MAX_ELEMENTS));
    let args = nvfp4_moe_quantize_args {
        struct_size: size_of::<nvfp4_moe_quantize_args>() as u32,
        scale_policy: policy,
        num_rows: i64::from(rows),
        num_cols: i64::from(cols),
        x: x.pointer(),
        x_row_stride: stride,
        packed: packed.pointer(),
        block_scale: block_scale.pointer(),
        global_scale: global_scale.pointer(),
        sf_layout: layout,
        reserved: source.rarely(0, CHOICES),
    };
    let memory = struct_of(source, &args);
    call_with_out(&mut packed, || unsafe { nvfp4_moe_quantize(memory.pointer()) });

    let scales = Tensor::bytes_or_null(source, dense.map(|n| n / 16));
    let mut out = Tensor::bytes_or_null(source, dense.map(|n| n * 4));
    let (rows, cols, scale, floats) = (i64::from(rows), i64::from(cols), source.float(), out.pointer());
    call_with_out(&mut out, || unsafe {
        nvfp4_moe_dequantize(packed.pointer(), scales.pointer(), scale, rows, cols, floats)
    });
    let e8m0 = Tensor::bytes_or_null(source, dense.map(|n| n / 32));
    let mut cast = Tensor::bytes_or_null(source, dense.map(|n| n / 16));
    let factor = Tensor::floats(source, Some(1));
    let (block_scale, global_scale) = (cast.pointer(), factor.pointer());
    call_with_out(&mut cast, || unsafe {
        nvfp4_moe_cast_mxfp4(packed.pointer(), e8m0.pointer(), rows, cols, block_scale, global_scale)
    });
    let (a, b, c) = (source.size(), source.size(), source.size());
    nvfp4_moe_sf_size(a, b);
    nvfp4_moe_sf_offset(a, b, c);
}

fn library(source: &mut Source) {
    let (kind, ordinal) = (source.pick(CHOICES), source.rarely(0, CHOICES));
    let status =
        nvfp4_moe_device_status { struct_size: size_of::<nvfp4_moe_device_status>() as u32, ..Default::default() };
    let memory = struct_of(source, &status);
    check(unsafe { nvfp4_moe_device_status_read(kind, ordinal, memory.pointer(), null_mut()) });
    check(nvfp4_moe_device_status_reset(kind, ordinal, null_mut()));
    check(nvfp4_moe_set_num_threads(if source.byte() == 0 { -1 } else { 2 }));
    let buf = Tensor::bytes_or_null(source, Some(40));
    let size = if buf.is_null() { 0 } else { usize::from(source.byte()) % 41 };
    unsafe {
        nvfp4_moe_last_error(buf.pointer(), size);
        nvfp4_moe_cpu_isa(buf.pointer(), size);
        nvfp4_moe_build_info(buf.pointer(), size);
    }
    nvfp4_moe_version();
}

fuzz_target!(|data: &[u8]| {
    let mut source = Source::new(data);
    match source.byte() % 8 {
        0..=2 => layer(&mut source),
        3 | 4 => linear(&mut source),
        5 => format(&mut source),
        6 => checkpoint::fuzz(&mut source),
        _ => library(&mut source),
    }
});
