// include/nvfp4_moe.h in Rust, by bindgen. Made again by: UPDATE=1 cargo test --test bindings

pub const NVFP4_MOE_VERSION_MAJOR: u32 = 0;
pub const NVFP4_MOE_VERSION_MINOR: u32 = 1;
pub const NVFP4_MOE_VERSION_PATCH: u32 = 0;
pub const NVFP4_MOE_OK: u32 = 0;
pub const NVFP4_MOE_INVALID_ARGUMENT: u32 = 1;
pub const NVFP4_MOE_UNSUPPORTED: u32 = 2;
pub const NVFP4_MOE_WORKSPACE_TOO_SMALL: u32 = 3;
pub const NVFP4_MOE_NOT_PREPARED: u32 = 4;
pub const NVFP4_MOE_CHECKPOINT: u32 = 5;
pub const NVFP4_MOE_IO: u32 = 6;
pub const NVFP4_MOE_CUDA: u32 = 7;
pub const NVFP4_MOE_INTERNAL: u32 = 8;
pub const NVFP4_MOE_OUT_OF_MEMORY: u32 = 9;
pub const NVFP4_MOE_DEVICE_CPU: u32 = 0;
pub const NVFP4_MOE_DEVICE_CUDA: u32 = 1;
pub const NVFP4_MOE_DEVICE_CUDA_PORTABLE: u32 = 2;
pub const NVFP4_MOE_MODE_DEFAULT: u32 = 0;
pub const NVFP4_MOE_MODE_BF16: u32 = 1;
pub const NVFP4_MOE_MODE_NVFP4: u32 = 2;
pub const NVFP4_MOE_MODE_FP8: u32 = 3;
pub const NVFP4_MOE_SCALE_STATIC: u32 = 0;
pub const NVFP4_MOE_SCALE_DYNAMIC: u32 = 1;
pub const NVFP4_MOE_DTYPE_I32: u32 = 0;
pub const NVFP4_MOE_DTYPE_I64: u32 = 1;
pub const NVFP4_MOE_SF_LINEAR: u32 = 0;
pub const NVFP4_MOE_SF_SWIZZLED_128X4: u32 = 1;
pub const NVFP4_MOE_TILE_ROWS_ONE_ORDER: u32 = 1;
pub const NVFP4_MOE_ACTIVATION_SWIGLU: u32 = 0;
pub const NVFP4_MOE_ACTIVATION_SWIGLU_STEP: u32 = 1;
pub const NVFP4_MOE_ACTIVATION_SITU: u32 = 2;
pub const NVFP4_MOE_ACTIVATION_GELU_TANH: u32 = 3;
pub const NVFP4_MOE_ACTIVATION_RELU2: u32 = 4;
pub const NVFP4_MOE_ACTIVATION_SILU: u32 = 5;
pub const NVFP4_MOE_ACTIVATION_GELU: u32 = 6;
pub const NVFP4_MOE_ROWS_GATE_FIRST: u32 = 0;
pub const NVFP4_MOE_ROWS_UP_FIRST: u32 = 1;
pub const NVFP4_MOE_ROWS_INTERLEAVED: u32 = 2;
pub const NVFP4_MOE_MATRIX_GATE: u32 = 0;
pub const NVFP4_MOE_MATRIX_UP: u32 = 1;
pub const NVFP4_MOE_MATRIX_DOWN: u32 = 2;
pub const NVFP4_MOE_FORMAT_MODELOPT: u32 = 1;
pub const NVFP4_MOE_FORMAT_COMPRESSED_TENSORS: u32 = 2;
pub const NVFP4_MOE_FORMAT_DEEPSEEK_V4_MIXED: u32 = 3;
pub const NVFP4_MOE_FORMAT_MXFP4: u32 = 4;
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct nvfp4_moe_layer {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct nvfp4_moe_layer_desc {
    pub struct_size: u32,
    pub device_kind: i32,
    pub device_ordinal: i32,
    pub mode: i32,
    pub scale_policy: i32,
    pub hidden_size: i32,
    pub intermediate_size: i32,
    pub num_experts: i32,
    pub num_local_experts: i32,
    pub first_local_expert: i32,
    pub top_k: i32,
    pub swiglu_limit: f32,
    pub swiglu_alpha: f32,
    pub swiglu_beta: f32,
    pub tile_rows: i32,
    pub activation: i32,
    pub has_bias: i32,
    pub fp8_max_error: f32,
    pub scale_block_size: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of nvfp4_moe_layer_desc"][::std::mem::size_of::<nvfp4_moe_layer_desc>() - 76usize];
    ["Alignment of nvfp4_moe_layer_desc"][::std::mem::align_of::<nvfp4_moe_layer_desc>() - 4usize];
    ["Offset of field: nvfp4_moe_layer_desc::struct_size"]
        [::std::mem::offset_of!(nvfp4_moe_layer_desc, struct_size) - 0usize];
    ["Offset of field: nvfp4_moe_layer_desc::device_kind"]
        [::std::mem::offset_of!(nvfp4_moe_layer_desc, device_kind) - 4usize];
    ["Offset of field: nvfp4_moe_layer_desc::device_ordinal"]
        [::std::mem::offset_of!(nvfp4_moe_layer_desc, device_ordinal) - 8usize];
    ["Offset of field: nvfp4_moe_layer_desc::mode"][::std::mem::offset_of!(nvfp4_moe_layer_desc, mode) - 12usize];
    ["Offset of field: nvfp4_moe_layer_desc::scale_policy"]
        [::std::mem::offset_of!(nvfp4_moe_layer_desc, scale_policy) - 16usize];
    ["Offset of field: nvfp4_moe_layer_desc::hidden_size"]
        [::std::mem::offset_of!(nvfp4_moe_layer_desc, hidden_size) - 20usize];
    ["Offset of field: nvfp4_moe_layer_desc::intermediate_size"]
        [::std::mem::offset_of!(nvfp4_moe_layer_desc, intermediate_size) - 24usize];
    ["Offset of field: nvfp4_moe_layer_desc::num_experts"]
        [::std::mem::offset_of!(nvfp4_moe_layer_desc, num_experts) - 28usize];
    ["Offset of field: nvfp4_moe_layer_desc::num_local_experts"]
        [::std::mem::offset_of!(nvfp4_moe_layer_desc, num_local_experts) - 32usize];
    ["Offset of field: nvfp4_moe_layer_desc::first_local_expert"]
        [::std::mem::offset_of!(nvfp4_moe_layer_desc, first_local_expert) - 36usize];
    ["Offset of field: nvfp4_moe_layer_desc::top_k"][::std::mem::offset_of!(nvfp4_moe_layer_desc, top_k) - 40usize];
    ["Offset of field: nvfp4_moe_layer_desc::swiglu_limit"]
        [::std::mem::offset_of!(nvfp4_moe_layer_desc, swiglu_limit) - 44usize];
    ["Offset of field: nvfp4_moe_layer_desc::swiglu_alpha"]
        [::std::mem::offset_of!(nvfp4_moe_layer_desc, swiglu_alpha) - 48usize];
    ["Offset of field: nvfp4_moe_layer_desc::swiglu_beta"]
        [::std::mem::offset_of!(nvfp4_moe_layer_desc, swiglu_beta) - 52usize];
    ["Offset of field: nvfp4_moe_layer_desc::tile_rows"]
        [::std::mem::offset_of!(nvfp4_moe_layer_desc, tile_rows) - 56usize];
    ["Offset of field: nvfp4_moe_layer_desc::activation"]
        [::std::mem::offset_of!(nvfp4_moe_layer_desc, activation) - 60usize];
    ["Offset of field: nvfp4_moe_layer_desc::has_bias"]
        [::std::mem::offset_of!(nvfp4_moe_layer_desc, has_bias) - 64usize];
    ["Offset of field: nvfp4_moe_layer_desc::fp8_max_error"]
        [::std::mem::offset_of!(nvfp4_moe_layer_desc, fp8_max_error) - 68usize];
    ["Offset of field: nvfp4_moe_layer_desc::scale_block_size"]
        [::std::mem::offset_of!(nvfp4_moe_layer_desc, scale_block_size) - 72usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct nvfp4_moe_layer_weights {
    pub struct_size: u32,
    pub up_first: i32,
    pub w13: *const u8,
    pub w13_block_scale: *const u8,
    pub w13_global_scale: *const f32,
    pub w2: *const u8,
    pub w2_block_scale: *const u8,
    pub w2_global_scale: *const f32,
    pub w13_input_scale: f32,
    pub w2_input_scale: f32,
    pub w13_bias: *const ::std::os::raw::c_void,
    pub w2_bias: *const ::std::os::raw::c_void,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of nvfp4_moe_layer_weights"][::std::mem::size_of::<nvfp4_moe_layer_weights>() - 80usize];
    ["Alignment of nvfp4_moe_layer_weights"][::std::mem::align_of::<nvfp4_moe_layer_weights>() - 8usize];
    ["Offset of field: nvfp4_moe_layer_weights::struct_size"]
        [::std::mem::offset_of!(nvfp4_moe_layer_weights, struct_size) - 0usize];
    ["Offset of field: nvfp4_moe_layer_weights::up_first"]
        [::std::mem::offset_of!(nvfp4_moe_layer_weights, up_first) - 4usize];
    ["Offset of field: nvfp4_moe_layer_weights::w13"][::std::mem::offset_of!(nvfp4_moe_layer_weights, w13) - 8usize];
    ["Offset of field: nvfp4_moe_layer_weights::w13_block_scale"]
        [::std::mem::offset_of!(nvfp4_moe_layer_weights, w13_block_scale) - 16usize];
    ["Offset of field: nvfp4_moe_layer_weights::w13_global_scale"]
        [::std::mem::offset_of!(nvfp4_moe_layer_weights, w13_global_scale) - 24usize];
    ["Offset of field: nvfp4_moe_layer_weights::w2"][::std::mem::offset_of!(nvfp4_moe_layer_weights, w2) - 32usize];
    ["Offset of field: nvfp4_moe_layer_weights::w2_block_scale"]
        [::std::mem::offset_of!(nvfp4_moe_layer_weights, w2_block_scale) - 40usize];
    ["Offset of field: nvfp4_moe_layer_weights::w2_global_scale"]
        [::std::mem::offset_of!(nvfp4_moe_layer_weights, w2_global_scale) - 48usize];
    ["Offset of field: nvfp4_moe_layer_weights::w13_input_scale"]
        [::std::mem::offset_of!(nvfp4_moe_layer_weights, w13_input_scale) - 56usize];
    ["Offset of field: nvfp4_moe_layer_weights::w2_input_scale"]
        [::std::mem::offset_of!(nvfp4_moe_layer_weights, w2_input_scale) - 60usize];
    ["Offset of field: nvfp4_moe_layer_weights::w13_bias"]
        [::std::mem::offset_of!(nvfp4_moe_layer_weights, w13_bias) - 64usize];
    ["Offset of field: nvfp4_moe_layer_weights::w2_bias"]
        [::std::mem::offset_of!(nvfp4_moe_layer_weights, w2_bias) - 72usize];
};
impl Default for nvfp4_moe_layer_weights {
    fn default() -> Self {
        let mut s = ::std::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::std::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct nvfp4_moe_layer_args {
    pub struct_size: u32,
    pub num_tokens: i32,
    pub x: *const ::std::os::raw::c_void,
    pub x_row_stride: i64,
    pub topk_ids: *const ::std::os::raw::c_void,
    pub topk_ids_row_stride: i64,
    pub topk_ids_dtype: i32,
    pub num_experts_mapped: i32,
    pub topk_weights: *const f32,
    pub topk_weights_row_stride: i64,
    pub expert_map: *const i32,
    pub out: *mut ::std::os::raw::c_void,
    pub out_row_stride: i64,
    pub workspace: *mut ::std::os::raw::c_void,
    pub workspace_size: u64,
    pub shared_output: *const ::std::os::raw::c_void,
    pub shared_output_row_stride: i64,
    pub shared_output_ready: *mut CUevent_st,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of nvfp4_moe_layer_args"][::std::mem::size_of::<nvfp4_moe_layer_args>() - 128usize];
    ["Alignment of nvfp4_moe_layer_args"][::std::mem::align_of::<nvfp4_moe_layer_args>() - 8usize];
    ["Offset of field: nvfp4_moe_layer_args::struct_size"]
        [::std::mem::offset_of!(nvfp4_moe_layer_args, struct_size) - 0usize];
    ["Offset of field: nvfp4_moe_layer_args::num_tokens"]
        [::std::mem::offset_of!(nvfp4_moe_layer_args, num_tokens) - 4usize];
    ["Offset of field: nvfp4_moe_layer_args::x"][::std::mem::offset_of!(nvfp4_moe_layer_args, x) - 8usize];
    ["Offset of field: nvfp4_moe_layer_args::x_row_stride"]
        [::std::mem::offset_of!(nvfp4_moe_layer_args, x_row_stride) - 16usize];
    ["Offset of field: nvfp4_moe_layer_args::topk_ids"]
        [::std::mem::offset_of!(nvfp4_moe_layer_args, topk_ids) - 24usize];
    ["Offset of field: nvfp4_moe_layer_args::topk_ids_row_stride"]
        [::std::mem::offset_of!(nvfp4_moe_layer_args, topk_ids_row_stride) - 32usize];
    ["Offset of field: nvfp4_moe_layer_args::topk_ids_dtype"]
        [::std::mem::offset_of!(nvfp4_moe_layer_args, topk_ids_dtype) - 40usize];
    ["Offset of field: nvfp4_moe_layer_args::num_experts_mapped"]
        [::std::mem::offset_of!(nvfp4_moe_layer_args, num_experts_mapped) - 44usize];
    ["Offset of field: nvfp4_moe_layer_args::topk_weights"]
        [::std::mem::offset_of!(nvfp4_moe_layer_args, topk_weights) - 48usize];
    ["Offset of field: nvfp4_moe_layer_args::topk_weights_row_stride"]
        [::std::mem::offset_of!(nvfp4_moe_layer_args, topk_weights_row_stride) - 56usize];
    ["Offset of field: nvfp4_moe_layer_args::expert_map"]
        [::std::mem::offset_of!(nvfp4_moe_layer_args, expert_map) - 64usize];
    ["Offset of field: nvfp4_moe_layer_args::out"][::std::mem::offset_of!(nvfp4_moe_layer_args, out) - 72usize];
    ["Offset of field: nvfp4_moe_layer_args::out_row_stride"]
        [::std::mem::offset_of!(nvfp4_moe_layer_args, out_row_stride) - 80usize];
    ["Offset of field: nvfp4_moe_layer_args::workspace"]
        [::std::mem::offset_of!(nvfp4_moe_layer_args, workspace) - 88usize];
    ["Offset of field: nvfp4_moe_layer_args::workspace_size"]
        [::std::mem::offset_of!(nvfp4_moe_layer_args, workspace_size) - 96usize];
    ["Offset of field: nvfp4_moe_layer_args::shared_output"]
        [::std::mem::offset_of!(nvfp4_moe_layer_args, shared_output) - 104usize];
    ["Offset of field: nvfp4_moe_layer_args::shared_output_row_stride"]
        [::std::mem::offset_of!(nvfp4_moe_layer_args, shared_output_row_stride) - 112usize];
    ["Offset of field: nvfp4_moe_layer_args::shared_output_ready"]
        [::std::mem::offset_of!(nvfp4_moe_layer_args, shared_output_ready) - 120usize];
};
impl Default for nvfp4_moe_layer_args {
    fn default() -> Self {
        let mut s = ::std::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::std::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct nvfp4_moe_weight_error {
    pub struct_size: u32,
    pub rel_l2: f32,
    pub expert: i32,
    pub matrix: i32,
    pub block_rel_l2: f32,
    pub block_expert: i32,
    pub block_matrix: i32,
    pub block_row: i32,
    pub block: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of nvfp4_moe_weight_error"][::std::mem::size_of::<nvfp4_moe_weight_error>() - 36usize];
    ["Alignment of nvfp4_moe_weight_error"][::std::mem::align_of::<nvfp4_moe_weight_error>() - 4usize];
    ["Offset of field: nvfp4_moe_weight_error::struct_size"]
        [::std::mem::offset_of!(nvfp4_moe_weight_error, struct_size) - 0usize];
    ["Offset of field: nvfp4_moe_weight_error::rel_l2"]
        [::std::mem::offset_of!(nvfp4_moe_weight_error, rel_l2) - 4usize];
    ["Offset of field: nvfp4_moe_weight_error::expert"]
        [::std::mem::offset_of!(nvfp4_moe_weight_error, expert) - 8usize];
    ["Offset of field: nvfp4_moe_weight_error::matrix"]
        [::std::mem::offset_of!(nvfp4_moe_weight_error, matrix) - 12usize];
    ["Offset of field: nvfp4_moe_weight_error::block_rel_l2"]
        [::std::mem::offset_of!(nvfp4_moe_weight_error, block_rel_l2) - 16usize];
    ["Offset of field: nvfp4_moe_weight_error::block_expert"]
        [::std::mem::offset_of!(nvfp4_moe_weight_error, block_expert) - 20usize];
    ["Offset of field: nvfp4_moe_weight_error::block_matrix"]
        [::std::mem::offset_of!(nvfp4_moe_weight_error, block_matrix) - 24usize];
    ["Offset of field: nvfp4_moe_weight_error::block_row"]
        [::std::mem::offset_of!(nvfp4_moe_weight_error, block_row) - 28usize];
    ["Offset of field: nvfp4_moe_weight_error::block"][::std::mem::offset_of!(nvfp4_moe_weight_error, block) - 32usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct nvfp4_moe_linear {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct nvfp4_moe_linear_desc {
    pub struct_size: u32,
    pub device_kind: i32,
    pub device_ordinal: i32,
    pub mode: i32,
    pub scale_policy: i32,
    pub in_features: i32,
    pub out_features: i32,
    pub num_parts: i32,
    pub tile_rows: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of nvfp4_moe_linear_desc"][::std::mem::size_of::<nvfp4_moe_linear_desc>() - 36usize];
    ["Alignment of nvfp4_moe_linear_desc"][::std::mem::align_of::<nvfp4_moe_linear_desc>() - 4usize];
    ["Offset of field: nvfp4_moe_linear_desc::struct_size"]
        [::std::mem::offset_of!(nvfp4_moe_linear_desc, struct_size) - 0usize];
    ["Offset of field: nvfp4_moe_linear_desc::device_kind"]
        [::std::mem::offset_of!(nvfp4_moe_linear_desc, device_kind) - 4usize];
    ["Offset of field: nvfp4_moe_linear_desc::device_ordinal"]
        [::std::mem::offset_of!(nvfp4_moe_linear_desc, device_ordinal) - 8usize];
    ["Offset of field: nvfp4_moe_linear_desc::mode"][::std::mem::offset_of!(nvfp4_moe_linear_desc, mode) - 12usize];
    ["Offset of field: nvfp4_moe_linear_desc::scale_policy"]
        [::std::mem::offset_of!(nvfp4_moe_linear_desc, scale_policy) - 16usize];
    ["Offset of field: nvfp4_moe_linear_desc::in_features"]
        [::std::mem::offset_of!(nvfp4_moe_linear_desc, in_features) - 20usize];
    ["Offset of field: nvfp4_moe_linear_desc::out_features"]
        [::std::mem::offset_of!(nvfp4_moe_linear_desc, out_features) - 24usize];
    ["Offset of field: nvfp4_moe_linear_desc::num_parts"]
        [::std::mem::offset_of!(nvfp4_moe_linear_desc, num_parts) - 28usize];
    ["Offset of field: nvfp4_moe_linear_desc::tile_rows"]
        [::std::mem::offset_of!(nvfp4_moe_linear_desc, tile_rows) - 32usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct nvfp4_moe_linear_weights {
    pub struct_size: u32,
    pub input_scale: f32,
    pub weight: *const u8,
    pub block_scale: *const u8,
    pub global_scale: *const f32,
    pub part_rows: *const i32,
    pub bias: *const ::std::os::raw::c_void,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of nvfp4_moe_linear_weights"][::std::mem::size_of::<nvfp4_moe_linear_weights>() - 48usize];
    ["Alignment of nvfp4_moe_linear_weights"][::std::mem::align_of::<nvfp4_moe_linear_weights>() - 8usize];
    ["Offset of field: nvfp4_moe_linear_weights::struct_size"]
        [::std::mem::offset_of!(nvfp4_moe_linear_weights, struct_size) - 0usize];
    ["Offset of field: nvfp4_moe_linear_weights::input_scale"]
        [::std::mem::offset_of!(nvfp4_moe_linear_weights, input_scale) - 4usize];
    ["Offset of field: nvfp4_moe_linear_weights::weight"]
        [::std::mem::offset_of!(nvfp4_moe_linear_weights, weight) - 8usize];
    ["Offset of field: nvfp4_moe_linear_weights::block_scale"]
        [::std::mem::offset_of!(nvfp4_moe_linear_weights, block_scale) - 16usize];
    ["Offset of field: nvfp4_moe_linear_weights::global_scale"]
        [::std::mem::offset_of!(nvfp4_moe_linear_weights, global_scale) - 24usize];
    ["Offset of field: nvfp4_moe_linear_weights::part_rows"]
        [::std::mem::offset_of!(nvfp4_moe_linear_weights, part_rows) - 32usize];
    ["Offset of field: nvfp4_moe_linear_weights::bias"]
        [::std::mem::offset_of!(nvfp4_moe_linear_weights, bias) - 40usize];
};
impl Default for nvfp4_moe_linear_weights {
    fn default() -> Self {
        let mut s = ::std::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::std::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct nvfp4_moe_linear_args {
    pub struct_size: u32,
    pub num_tokens: i32,
    pub x: *const ::std::os::raw::c_void,
    pub x_row_stride: i64,
    pub out: *mut ::std::os::raw::c_void,
    pub out_row_stride: i64,
    pub workspace: *mut ::std::os::raw::c_void,
    pub workspace_size: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of nvfp4_moe_linear_args"][::std::mem::size_of::<nvfp4_moe_linear_args>() - 56usize];
    ["Alignment of nvfp4_moe_linear_args"][::std::mem::align_of::<nvfp4_moe_linear_args>() - 8usize];
    ["Offset of field: nvfp4_moe_linear_args::struct_size"]
        [::std::mem::offset_of!(nvfp4_moe_linear_args, struct_size) - 0usize];
    ["Offset of field: nvfp4_moe_linear_args::num_tokens"]
        [::std::mem::offset_of!(nvfp4_moe_linear_args, num_tokens) - 4usize];
    ["Offset of field: nvfp4_moe_linear_args::x"][::std::mem::offset_of!(nvfp4_moe_linear_args, x) - 8usize];
    ["Offset of field: nvfp4_moe_linear_args::x_row_stride"]
        [::std::mem::offset_of!(nvfp4_moe_linear_args, x_row_stride) - 16usize];
    ["Offset of field: nvfp4_moe_linear_args::out"][::std::mem::offset_of!(nvfp4_moe_linear_args, out) - 24usize];
    ["Offset of field: nvfp4_moe_linear_args::out_row_stride"]
        [::std::mem::offset_of!(nvfp4_moe_linear_args, out_row_stride) - 32usize];
    ["Offset of field: nvfp4_moe_linear_args::workspace"]
        [::std::mem::offset_of!(nvfp4_moe_linear_args, workspace) - 40usize];
    ["Offset of field: nvfp4_moe_linear_args::workspace_size"]
        [::std::mem::offset_of!(nvfp4_moe_linear_args, workspace_size) - 48usize];
};
impl Default for nvfp4_moe_linear_args {
    fn default() -> Self {
        let mut s = ::std::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::std::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct nvfp4_moe_device_status {
    pub struct_size: u32,
    pub reserved: i32,
    pub saturated_blocks: u64,
    pub nonfinite_values: u64,
    pub out_of_range_ids: u64,
    pub first_bad_token: i64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of nvfp4_moe_device_status"][::std::mem::size_of::<nvfp4_moe_device_status>() - 40usize];
    ["Alignment of nvfp4_moe_device_status"][::std::mem::align_of::<nvfp4_moe_device_status>() - 8usize];
    ["Offset of field: nvfp4_moe_device_status::struct_size"]
        [::std::mem::offset_of!(nvfp4_moe_device_status, struct_size) - 0usize];
    ["Offset of field: nvfp4_moe_device_status::reserved"]
        [::std::mem::offset_of!(nvfp4_moe_device_status, reserved) - 4usize];
    ["Offset of field: nvfp4_moe_device_status::saturated_blocks"]
        [::std::mem::offset_of!(nvfp4_moe_device_status, saturated_blocks) - 8usize];
    ["Offset of field: nvfp4_moe_device_status::nonfinite_values"]
        [::std::mem::offset_of!(nvfp4_moe_device_status, nonfinite_values) - 16usize];
    ["Offset of field: nvfp4_moe_device_status::out_of_range_ids"]
        [::std::mem::offset_of!(nvfp4_moe_device_status, out_of_range_ids) - 24usize];
    ["Offset of field: nvfp4_moe_device_status::first_bad_token"]
        [::std::mem::offset_of!(nvfp4_moe_device_status, first_bad_token) - 32usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct nvfp4_moe_quantize_args {
    pub struct_size: u32,
    pub scale_policy: i32,
    pub num_rows: i64,
    pub num_cols: i64,
    pub x: *const ::std::os::raw::c_void,
    pub x_row_stride: i64,
    pub packed: *mut u8,
    pub block_scale: *mut u8,
    pub global_scale: *mut f32,
    pub sf_layout: i32,
    pub reserved: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of nvfp4_moe_quantize_args"][::std::mem::size_of::<nvfp4_moe_quantize_args>() - 72usize];
    ["Alignment of nvfp4_moe_quantize_args"][::std::mem::align_of::<nvfp4_moe_quantize_args>() - 8usize];
    ["Offset of field: nvfp4_moe_quantize_args::struct_size"]
        [::std::mem::offset_of!(nvfp4_moe_quantize_args, struct_size) - 0usize];
    ["Offset of field: nvfp4_moe_quantize_args::scale_policy"]
        [::std::mem::offset_of!(nvfp4_moe_quantize_args, scale_policy) - 4usize];
    ["Offset of field: nvfp4_moe_quantize_args::num_rows"]
        [::std::mem::offset_of!(nvfp4_moe_quantize_args, num_rows) - 8usize];
    ["Offset of field: nvfp4_moe_quantize_args::num_cols"]
        [::std::mem::offset_of!(nvfp4_moe_quantize_args, num_cols) - 16usize];
    ["Offset of field: nvfp4_moe_quantize_args::x"][::std::mem::offset_of!(nvfp4_moe_quantize_args, x) - 24usize];
    ["Offset of field: nvfp4_moe_quantize_args::x_row_stride"]
        [::std::mem::offset_of!(nvfp4_moe_quantize_args, x_row_stride) - 32usize];
    ["Offset of field: nvfp4_moe_quantize_args::packed"]
        [::std::mem::offset_of!(nvfp4_moe_quantize_args, packed) - 40usize];
    ["Offset of field: nvfp4_moe_quantize_args::block_scale"]
        [::std::mem::offset_of!(nvfp4_moe_quantize_args, block_scale) - 48usize];
    ["Offset of field: nvfp4_moe_quantize_args::global_scale"]
        [::std::mem::offset_of!(nvfp4_moe_quantize_args, global_scale) - 56usize];
    ["Offset of field: nvfp4_moe_quantize_args::sf_layout"]
        [::std::mem::offset_of!(nvfp4_moe_quantize_args, sf_layout) - 64usize];
    ["Offset of field: nvfp4_moe_quantize_args::reserved"]
        [::std::mem::offset_of!(nvfp4_moe_quantize_args, reserved) - 68usize];
};
impl Default for nvfp4_moe_quantize_args {
    fn default() -> Self {
        let mut s = ::std::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::std::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct nvfp4_moe_checkpoint {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct nvfp4_moe_checkpoint_layer_info {
    pub struct_size: u32,
    pub format: i32,
    pub hidden_size: i32,
    pub intermediate_size: i32,
    pub num_experts: i32,
    pub top_k: i32,
    pub swiglu_limit: f32,
    pub routed_scaling_factor: f32,
    pub lossless_cast: i32,
    pub reserved: i32,
    pub w13_input_scale: f32,
    pub w2_input_scale: f32,
    pub swiglu_alpha: f32,
    pub swiglu_beta: f32,
    pub any_activation: i32,
    pub reserved_2: i32,
    pub activation: i32,
    pub has_bias: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of nvfp4_moe_checkpoint_layer_info"][::std::mem::size_of::<nvfp4_moe_checkpoint_layer_info>() - 72usize];
    ["Alignment of nvfp4_moe_checkpoint_layer_info"]
        [::std::mem::align_of::<nvfp4_moe_checkpoint_layer_info>() - 4usize];
    ["Offset of field: nvfp4_moe_checkpoint_layer_info::struct_size"]
        [::std::mem::offset_of!(nvfp4_moe_checkpoint_layer_info, struct_size) - 0usize];
    ["Offset of field: nvfp4_moe_checkpoint_layer_info::format"]
        [::std::mem::offset_of!(nvfp4_moe_checkpoint_layer_info, format) - 4usize];
    ["Offset of field: nvfp4_moe_checkpoint_layer_info::hidden_size"]
        [::std::mem::offset_of!(nvfp4_moe_checkpoint_layer_info, hidden_size) - 8usize];
    ["Offset of field: nvfp4_moe_checkpoint_layer_info::intermediate_size"]
        [::std::mem::offset_of!(nvfp4_moe_checkpoint_layer_info, intermediate_size) - 12usize];
    ["Offset of field: nvfp4_moe_checkpoint_layer_info::num_experts"]
        [::std::mem::offset_of!(nvfp4_moe_checkpoint_layer_info, num_experts) - 16usize];
    ["Offset of field: nvfp4_moe_checkpoint_layer_info::top_k"]
        [::std::mem::offset_of!(nvfp4_moe_checkpoint_layer_info, top_k) - 20usize];
    ["Offset of field: nvfp4_moe_checkpoint_layer_info::swiglu_limit"]
        [::std::mem::offset_of!(nvfp4_moe_checkpoint_layer_info, swiglu_limit) - 24usize];
    ["Offset of field: nvfp4_moe_checkpoint_layer_info::routed_scaling_factor"]
        [::std::mem::offset_of!(nvfp4_moe_checkpoint_layer_info, routed_scaling_factor) - 28usize];
    ["Offset of field: nvfp4_moe_checkpoint_layer_info::lossless_cast"]
        [::std::mem::offset_of!(nvfp4_moe_checkpoint_layer_info, lossless_cast) - 32usize];
    ["Offset of field: nvfp4_moe_checkpoint_layer_info::reserved"]
        [::std::mem::offset_of!(nvfp4_moe_checkpoint_layer_info, reserved) - 36usize];
    ["Offset of field: nvfp4_moe_checkpoint_layer_info::w13_input_scale"]
        [::std::mem::offset_of!(nvfp4_moe_checkpoint_layer_info, w13_input_scale) - 40usize];
    ["Offset of field: nvfp4_moe_checkpoint_layer_info::w2_input_scale"]
        [::std::mem::offset_of!(nvfp4_moe_checkpoint_layer_info, w2_input_scale) - 44usize];
    ["Offset of field: nvfp4_moe_checkpoint_layer_info::swiglu_alpha"]
        [::std::mem::offset_of!(nvfp4_moe_checkpoint_layer_info, swiglu_alpha) - 48usize];
    ["Offset of field: nvfp4_moe_checkpoint_layer_info::swiglu_beta"]
        [::std::mem::offset_of!(nvfp4_moe_checkpoint_layer_info, swiglu_beta) - 52usize];
    ["Offset of field: nvfp4_moe_checkpoint_layer_info::any_activation"]
        [::std::mem::offset_of!(nvfp4_moe_checkpoint_layer_info, any_activation) - 56usize];
    ["Offset of field: nvfp4_moe_checkpoint_layer_info::reserved_2"]
        [::std::mem::offset_of!(nvfp4_moe_checkpoint_layer_info, reserved_2) - 60usize];
    ["Offset of field: nvfp4_moe_checkpoint_layer_info::activation"]
        [::std::mem::offset_of!(nvfp4_moe_checkpoint_layer_info, activation) - 64usize];
    ["Offset of field: nvfp4_moe_checkpoint_layer_info::has_bias"]
        [::std::mem::offset_of!(nvfp4_moe_checkpoint_layer_info, has_bias) - 68usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct nvfp4_moe_checkpoint_buffers {
    pub struct_size: u32,
    pub first_expert: i32,
    pub num_experts: i32,
    pub reserved: i32,
    pub w13: *mut u8,
    pub w13_block_scale: *mut u8,
    pub w13_global_scale: *mut f32,
    pub w2: *mut u8,
    pub w2_block_scale: *mut u8,
    pub w2_global_scale: *mut f32,
    pub w13_bias: *mut ::std::os::raw::c_void,
    pub w2_bias: *mut ::std::os::raw::c_void,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of nvfp4_moe_checkpoint_buffers"][::std::mem::size_of::<nvfp4_moe_checkpoint_buffers>() - 80usize];
    ["Alignment of nvfp4_moe_checkpoint_buffers"][::std::mem::align_of::<nvfp4_moe_checkpoint_buffers>() - 8usize];
    ["Offset of field: nvfp4_moe_checkpoint_buffers::struct_size"]
        [::std::mem::offset_of!(nvfp4_moe_checkpoint_buffers, struct_size) - 0usize];
    ["Offset of field: nvfp4_moe_checkpoint_buffers::first_expert"]
        [::std::mem::offset_of!(nvfp4_moe_checkpoint_buffers, first_expert) - 4usize];
    ["Offset of field: nvfp4_moe_checkpoint_buffers::num_experts"]
        [::std::mem::offset_of!(nvfp4_moe_checkpoint_buffers, num_experts) - 8usize];
    ["Offset of field: nvfp4_moe_checkpoint_buffers::reserved"]
        [::std::mem::offset_of!(nvfp4_moe_checkpoint_buffers, reserved) - 12usize];
    ["Offset of field: nvfp4_moe_checkpoint_buffers::w13"]
        [::std::mem::offset_of!(nvfp4_moe_checkpoint_buffers, w13) - 16usize];
    ["Offset of field: nvfp4_moe_checkpoint_buffers::w13_block_scale"]
        [::std::mem::offset_of!(nvfp4_moe_checkpoint_buffers, w13_block_scale) - 24usize];
    ["Offset of field: nvfp4_moe_checkpoint_buffers::w13_global_scale"]
        [::std::mem::offset_of!(nvfp4_moe_checkpoint_buffers, w13_global_scale) - 32usize];
    ["Offset of field: nvfp4_moe_checkpoint_buffers::w2"]
        [::std::mem::offset_of!(nvfp4_moe_checkpoint_buffers, w2) - 40usize];
    ["Offset of field: nvfp4_moe_checkpoint_buffers::w2_block_scale"]
        [::std::mem::offset_of!(nvfp4_moe_checkpoint_buffers, w2_block_scale) - 48usize];
    ["Offset of field: nvfp4_moe_checkpoint_buffers::w2_global_scale"]
        [::std::mem::offset_of!(nvfp4_moe_checkpoint_buffers, w2_global_scale) - 56usize];
    ["Offset of field: nvfp4_moe_checkpoint_buffers::w13_bias"]
        [::std::mem::offset_of!(nvfp4_moe_checkpoint_buffers, w13_bias) - 64usize];
    ["Offset of field: nvfp4_moe_checkpoint_buffers::w2_bias"]
        [::std::mem::offset_of!(nvfp4_moe_checkpoint_buffers, w2_bias) - 72usize];
};
impl Default for nvfp4_moe_checkpoint_buffers {
    fn default() -> Self {
        let mut s = ::std::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::std::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
