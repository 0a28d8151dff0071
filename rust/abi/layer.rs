// SPDX-License-Identifier: Apache-2.0
//! Exports of the MoE layer.

use super::header::*;
use super::{
    Opaque, Rows, Span, aligned, aligned_or_null, apart, create, destroy, device_of, exclusive, exports, guard,
    mode_of, no_overlap, not_null_mut, null_error, policy_of, process_of, read_struct, shared, size_of_field, stride,
    tile_rows_of, write_struct,
};
use crate::activation::{Activation, ActivationKind};
use crate::call::{InputScales, LayerArgs, LayerWeights, SharedOutput, Storage, Tensor, TopkIds, Workspace};
use crate::config::{Device, LayerConfig};
use crate::error::{Error, Result};
use crate::format::{BLOCK_SIZE, Part, WeightError};
use crate::layer::Layer;
use crate::shape::RowOrder;

// Numbers of kinds are the header's.
const _: () = {
    assert!(ActivationKind::Swiglu as u32 == NVFP4_MOE_ACTIVATION_SWIGLU);
    assert!(ActivationKind::SwigluStep as u32 == NVFP4_MOE_ACTIVATION_SWIGLU_STEP);
    assert!(ActivationKind::Situ as u32 == NVFP4_MOE_ACTIVATION_SITU);
    assert!(ActivationKind::GeluTanh as u32 == NVFP4_MOE_ACTIVATION_GELU_TANH);
    assert!(ActivationKind::Relu2 as u32 == NVFP4_MOE_ACTIVATION_RELU2);
    assert!(ActivationKind::Silu as u32 == NVFP4_MOE_ACTIVATION_SILU);
    assert!(ActivationKind::Gelu as u32 == NVFP4_MOE_ACTIVATION_GELU);
    assert!(Part::Gate as u32 == NVFP4_MOE_MATRIX_GATE && Part::Up as u32 == NVFP4_MOE_MATRIX_UP);
    assert!(Part::Down as u32 == NVFP4_MOE_MATRIX_DOWN);
};

impl Opaque for nvfp4_moe_layer {
    type Inside = Layer;
    const NAME: &'static str = "layer";
    const MARK: u64 = u64::from_le_bytes(*b"moelayer");

    fn check_process(layer: &Self::Inside) -> Result<()> {
        process_of(layer.config().device)
    }

    fn close(layer: &mut Self::Inside) -> Result<()> {
        layer.close()
    }
}

fn config(desc: &nvfp4_moe_layer_desc) -> Result<LayerConfig> {
    let device = device_of(desc.device_kind, desc.device_ordinal)?;
    Ok(LayerConfig {
        device,
        mode: mode_of(device, desc.mode)?,
        scale_policy: policy_of(desc.scale_policy)?,
        hidden_size: size_of_field("hidden_size", desc.hidden_size)?,
        intermediate_size: size_of_field("intermediate_size", desc.intermediate_size)?,
        num_experts: size_of_field("num_experts", desc.num_experts)?,
        num_local_experts: size_of_field("num_local_experts", desc.num_local_experts)?,
        first_local_expert: size_of_field("first_local_expert", desc.first_local_expert)?,
        top_k: size_of_field("top_k", desc.top_k)?,
        activation: activation(desc)?,
        has_bias: flag("has_bias", desc.has_bias)?,
        tile_rows: tile_rows_of(device, desc.tile_rows)?,
        fp8_max_error: desc.fp8_max_error,
        scale_block_size: match desc.scale_block_size {
            0 => BLOCK_SIZE,
            size => size_of_field("scale_block_size", size)?,
        },
    })
}

fn activation(desc: &nvfp4_moe_layer_desc) -> Result<Activation> {
    let kind = ActivationKind::ALL.into_iter().find(|kind| *kind as i32 == desc.activation).ok_or_else(|| {
        let rule = format!("it must be 0 to {}", ActivationKind::ALL.len() - 1);
        Error::argument("activation", desc.activation, rule, "Pass one of NVFP4_MOE_ACTIVATION_*.")
    })?;
    Activation::new(kind, desc.swiglu_limit, desc.swiglu_alpha, desc.swiglu_beta)
}

fn flag(name: &str, value: i32) -> Result<bool> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Error::argument(name, value, "it must be 0 or 1", "Zero the struct first.")),
    }
}

fn row_order(activation: Activation, up_first: i32) -> Result<RowOrder> {
    match (activation.projections(), up_first as u32) {
        (1, NVFP4_MOE_ROWS_GATE_FIRST) => Ok(RowOrder::Plain),
        (2, NVFP4_MOE_ROWS_GATE_FIRST) => Ok(RowOrder::GateFirst),
        (2, NVFP4_MOE_ROWS_UP_FIRST) => Ok(RowOrder::UpFirst),
        (2, NVFP4_MOE_ROWS_INTERLEAVED) => Ok(RowOrder::Interleaved),
        (projections, _) => {
            let rule = if projections == 1 { "it must be 0, because there is no gate" } else { "it must be 0, 1 or 2" };
            Err(Error::argument("up_first", up_first, rule, "Pass 0 if gate rows come first."))
        }
    }
}

/// A bias, which only a layer that was described with one has.
fn bias(config: &LayerConfig, name: &str, pointer: *const std::ffi::c_void, len: usize) -> Result<Option<Tensor<u16>>> {
    if pointer.is_null() {
        return Ok(None);
    }
    if !config.has_bias {
        let rule = "it must be NULL where has_bias of nvfp4_moe_layer_desc is 0";
        return Err(Error::argument(name, "given", rule, "Set has_bias to 1."));
    }
    tensor(name, pointer.cast(), len).map(Some)
}

fn tensor<T>(name: &str, pointer: *const T, len: usize) -> Result<Tensor<T>> {
    Ok(Tensor { pointer: aligned(name, pointer, size_of::<T>())?, len })
}

fn weights(config: &LayerConfig, w: &nvfp4_moe_layer_weights) -> Result<LayerWeights> {
    let shape = config.shape();
    Ok(LayerWeights {
        row_order: row_order(config.activation, w.up_first)?,
        w13: tensor("w13", w.w13, shape.w13())?,
        w13_block_scale: tensor("w13_block_scale", w.w13_block_scale, shape.w13_block_scale())?,
        w13_global_scale: tensor("w13_global_scale", w.w13_global_scale, shape.w13_global_scale())?,
        w2: tensor("w2", w.w2, shape.w2())?,
        w2_block_scale: tensor("w2_block_scale", w.w2_block_scale, shape.w2_block_scale())?,
        w2_global_scale: tensor("w2_global_scale", w.w2_global_scale, shape.w2_global_scale())?,
        w13_bias: bias(config, "w13_bias", w.w13_bias, shape.w13_bias())?,
        w2_bias: bias(config, "w2_bias", w.w2_bias, shape.w2_bias())?,
        input_scales: InputScales { w13: w.w13_input_scale, w2: w.w2_input_scale },
    })
}

/// With places as numbers; 0 where nothing changed.
fn weight_error(error: WeightError) -> nvfp4_moe_weight_error {
    let (none, whole) = (error.block_rel_l2 == 0.0, |value: usize| value as i32);
    nvfp4_moe_weight_error {
        struct_size: 0, // the caller's stays
        rel_l2: error.rel_l2,
        expert: whole(error.matrix.expert),
        matrix: if none { 0 } else { error.matrix.part as i32 },
        block_rel_l2: error.block_rel_l2,
        block_expert: whole(error.block_matrix.expert),
        block_matrix: if none { 0 } else { error.block_matrix.part as i32 },
        block_row: whole(error.block_row),
        block: whole(error.block),
    }
}

fn args(config: &LayerConfig, a: &nvfp4_moe_layer_args) -> Result<Option<LayerArgs>> {
    let num_tokens = size_of_field("num_tokens", a.num_tokens)?;
    let is_i64 = ids_are_i64(a.topk_ids_dtype)?;
    check_map_len(config, a)?;
    if num_tokens == 0 {
        return Ok(None);
    }
    let topk_ids = match is_i64 {
        false => TopkIds::I32(aligned("topk_ids", a.topk_ids.cast(), 4)?),
        true => TopkIds::I64(aligned("topk_ids", a.topk_ids.cast(), 8)?),
    };
    let (hidden, top_k) = (config.hidden_size, config.top_k);
    let checked = LayerArgs {
        num_tokens,
        x: aligned("x", a.x.cast(), 2)?,
        x_row_stride: stride("x_row_stride", a.x_row_stride, "hidden_size", hidden)?,
        topk_ids,
        topk_ids_row_stride: stride("topk_ids_row_stride", a.topk_ids_row_stride, "top_k", top_k)?,
        topk_weights: aligned_or_null("topk_weights", a.topk_weights, 4)?,
        topk_weights_row_stride: stride("topk_weights_row_stride", a.topk_weights_row_stride, "top_k", top_k)?,
        expert_map: aligned_or_null("expert_map", a.expert_map, 4)?,
        out: aligned("out", a.out.cast::<u16>().cast_const(), 2)?.cast_mut(),
        out_row_stride: stride("out_row_stride", a.out_row_stride, "hidden_size", hidden)?,
        workspace: Workspace { pointer: a.workspace.cast(), size: a.workspace_size },
        shared: shared_output(config, a)?,
    };
    let x = Rows { first: checked.x, stride: checked.x_row_stride, width: hidden };
    let out = Rows { first: checked.out, stride: checked.out_row_stride, width: hidden };
    no_overlap(num_tokens, x, out)?;
    check_spans(config, a, &checked, [x.span("x", num_tokens), out.span("out", num_tokens)])?;
    Ok(Some(checked))
}

/// What sums begin with: rows, and what goes with them only.
fn shared_output(config: &LayerConfig, a: &nvfp4_moe_layer_args) -> Result<SharedOutput> {
    let hidden = config.hidden_size;
    if a.shared_output.is_null() && (a.shared_output_row_stride, a.shared_output_ready) != (0, std::ptr::null_mut()) {
        return Err(null_error("shared_output"));
    }
    if config.device == Device::Cpu && !a.shared_output_ready.is_null() {
        let (value, rule) = (format!("{:p}", a.shared_output_ready), "it must be NULL on the CPU, which has no events");
        return Err(Error::argument("shared_output_ready", value, rule, "Compute shared_output before the call."));
    }
    Ok(SharedOutput {
        rows: aligned_or_null("shared_output", a.shared_output.cast(), 2)?,
        row_stride: stride("shared_output_row_stride", a.shared_output_row_stride, "hidden_size", hidden)?,
        ready: a.shared_output_ready.cast(),
    })
}

/// What is written lies apart from all else that the call reads; x and out were looked at by their rows.
fn check_spans(config: &LayerConfig, a: &nvfp4_moe_layer_args, args: &LayerArgs, [x, out]: [Span; 2]) -> Result<()> {
    let (tokens, top_k) = (args.num_tokens, config.top_k);
    if tokens > i32::MAX as usize / top_k {
        return Ok(()); // refused by that number, which no memory has either
    }
    let id_size = if matches!(args.topk_ids, TopkIds::I32(_)) { 4 } else { 8 };
    let weights = [tokens, args.topk_weights_row_stride, top_k];
    let routing = [
        Span::of_rows("topk_ids", a.topk_ids, id_size, [tokens, args.topk_ids_row_stride, top_k]),
        Span::of_rows("topk_weights", args.topk_weights, 4, weights),
        Span::new("expert_map", args.expert_map, 4 * config.num_experts),
    ];
    let shared = Rows { first: args.shared.rows, stride: args.shared.row_stride, width: config.hidden_size };
    let shared = shared.span("shared_output", tokens);
    apart(out, &routing)?;
    apart(out, &[shared])?;
    let workspace = Span::of_workspace(args.workspace);
    apart(workspace, &[x, out, shared])?;
    apart(workspace, &routing)
}

fn ids_are_i64(dtype: i32) -> Result<bool> {
    match dtype as u32 {
        NVFP4_MOE_DTYPE_I32 => Ok(false),
        NVFP4_MOE_DTYPE_I64 => Ok(true),
        _ => {
            let rule = "it must be 0 (int32) or 1 (int64)";
            Err(Error::argument("topk_ids_dtype", dtype, rule, "Convert the ids."))
        }
    }
}

fn check_map_len(config: &LayerConfig, a: &nvfp4_moe_layer_args) -> Result<()> {
    let mapped = if a.expert_map.is_null() { 0 } else { config.num_experts };
    if usize::try_from(a.num_experts_mapped) == Ok(mapped) {
        return Ok(());
    }
    let rule = format!("it must be {mapped}: num_experts where expert_map is given, else 0");
    Err(Error::argument("num_experts_mapped", a.num_experts_mapped, rule, "Pass the map's length."))
}

exports! {
    fn nvfp4_moe_layer_create(desc: *const nvfp4_moe_layer_desc, out: *mut *mut nvfp4_moe_layer) {
        create(out, || Layer::new(config(&read_struct(desc)?)?))
    }

    fn nvfp4_moe_layer_storage_size(layer: *const nvfp4_moe_layer, out: *mut u64) {
        let layer = shared(layer)?;
        *not_null_mut("out", out)? = layer.storage_size();
        Ok(())
    }

    fn nvfp4_moe_layer_prepare(
        layer: *mut nvfp4_moe_layer,
        weights_struct: *const nvfp4_moe_layer_weights,
        storage: *mut std::ffi::c_void,
        storage_size: u64,
        stream: *mut CUstream_st,
    ) {
        let layer = exclusive(layer)?;
        let weights = weights(layer.config(), &read_struct(weights_struct)?)?;
        layer.prepare(weights, Storage { pointer: storage.cast(), size: storage_size }, stream.cast())
    }

    fn nvfp4_moe_layer_weight_error(layer: *const nvfp4_moe_layer, out: *mut nvfp4_moe_weight_error) {
        let layer = shared(layer)?;
        read_struct(out.cast_const())?;
        write_struct(out, weight_error(layer.weight_error()?));
        Ok(())
    }

    fn nvfp4_moe_layer_workspace_size(layer: *const nvfp4_moe_layer, max_tokens: i32, out: *mut u64) {
        let layer = shared(layer)?;
        let out = not_null_mut("out", out)?;
        *out = layer.workspace_size(size_of_field("max_tokens", max_tokens)?)?;
        Ok(())
    }

    fn nvfp4_moe_layer_forward(
        layer: *const nvfp4_moe_layer,
        args_struct: *const nvfp4_moe_layer_args,
        stream: *mut CUstream_st,
    ) {
        let layer = shared(layer)?;
        match args(layer.config(), &read_struct(args_struct)?)? {
            Some(args) => layer.forward(&args, stream.cast()),
            None => Ok(()),
        }
    }

    fn nvfp4_moe_layer_calibrate(
        layer: *mut nvfp4_moe_layer,
        args_struct: *const nvfp4_moe_layer_args,
        stream: *mut CUstream_st,
    ) {
        let layer = exclusive(layer)?;
        match args(layer.config(), &read_struct(args_struct)?)? {
            Some(args) => layer.calibrate(&args, stream.cast()),
            None => Ok(()),
        }
    }

    fn nvfp4_moe_layer_calibrated_scales(
        layer: *mut nvfp4_moe_layer,
        w13_input_scale: *mut f32,
        w2_input_scale: *mut f32,
    ) {
        let layer = exclusive(layer)?;
        let w13 = not_null_mut("w13_input_scale", w13_input_scale)?;
        let w2 = not_null_mut("w2_input_scale", w2_input_scale)?;
        InputScales { w13: *w13, w2: *w2 } = layer.calibrated_scales()?;
        Ok(())
    }

    fn nvfp4_moe_layer_set_input_scales(layer: *mut nvfp4_moe_layer, w13_input_scale: f32, w2_input_scale: f32) {
        exclusive(layer)?.set_input_scales(InputScales { w13: w13_input_scale, w2: w2_input_scale })
    }
}

/// Frees the layer, not what it was lent.
///
/// # Safety
/// `layer` must be NULL or alive, and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvfp4_moe_layer_destroy(layer: *mut nvfp4_moe_layer) {
    // SAFETY: NULL or alive, and not used again.
    guard(|| unsafe { destroy(layer) });
}
