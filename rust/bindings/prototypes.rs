// include/nvfp4_moe.h in Rust, by bindgen. Made again by: UPDATE=1 cargo test --test bindings

unsafe extern "C" {
    pub fn nvfp4_moe_version() -> u32;
}
unsafe extern "C" {
    pub fn nvfp4_moe_last_error(buf: *mut ::std::os::raw::c_char, size: usize) -> usize;
}
unsafe extern "C" {
    pub fn nvfp4_moe_set_num_threads(num_threads: i32) -> i32;
}
unsafe extern "C" {
    pub fn nvfp4_moe_cpu_isa(buf: *mut ::std::os::raw::c_char, size: usize) -> usize;
}
unsafe extern "C" {
    pub fn nvfp4_moe_build_info(buf: *mut ::std::os::raw::c_char, size: usize) -> usize;
}
unsafe extern "C" {
    pub fn nvfp4_moe_layer_create(desc: *const nvfp4_moe_layer_desc, out: *mut *mut nvfp4_moe_layer) -> i32;
}
unsafe extern "C" {
    pub fn nvfp4_moe_layer_destroy(layer: *mut nvfp4_moe_layer);
}
unsafe extern "C" {
    pub fn nvfp4_moe_layer_storage_size(layer: *const nvfp4_moe_layer, out: *mut u64) -> i32;
}
unsafe extern "C" {
    pub fn nvfp4_moe_layer_prepare(
        layer: *mut nvfp4_moe_layer,
        weights: *const nvfp4_moe_layer_weights,
        storage: *mut ::std::os::raw::c_void,
        storage_size: u64,
        stream: *mut CUstream_st,
    ) -> i32;
}
unsafe extern "C" {
    pub fn nvfp4_moe_layer_weight_error(layer: *const nvfp4_moe_layer, out: *mut nvfp4_moe_weight_error) -> i32;
}
unsafe extern "C" {
    pub fn nvfp4_moe_layer_workspace_size(layer: *const nvfp4_moe_layer, max_tokens: i32, out: *mut u64) -> i32;
}
unsafe extern "C" {
    pub fn nvfp4_moe_layer_forward(
        layer: *const nvfp4_moe_layer,
        args: *const nvfp4_moe_layer_args,
        stream: *mut CUstream_st,
    ) -> i32;
}
unsafe extern "C" {
    pub fn nvfp4_moe_layer_calibrate(
        layer: *mut nvfp4_moe_layer,
        args: *const nvfp4_moe_layer_args,
        stream: *mut CUstream_st,
    ) -> i32;
}
unsafe extern "C" {
    pub fn nvfp4_moe_layer_calibrated_scales(
        layer: *mut nvfp4_moe_layer,
        w13_input_scale: *mut f32,
        w2_input_scale: *mut f32,
    ) -> i32;
}
unsafe extern "C" {
    pub fn nvfp4_moe_layer_set_input_scales(
        layer: *mut nvfp4_moe_layer,
        w13_input_scale: f32,
        w2_input_scale: f32,
    ) -> i32;
}
unsafe extern "C" {
    pub fn nvfp4_moe_linear_create(desc: *const nvfp4_moe_linear_desc, out: *mut *mut nvfp4_moe_linear) -> i32;
}
unsafe extern "C" {
    pub fn nvfp4_moe_linear_destroy(linear: *mut nvfp4_moe_linear);
}
unsafe extern "C" {
    pub fn nvfp4_moe_linear_storage_size(linear: *const nvfp4_moe_linear, out: *mut u64) -> i32;
}
unsafe extern "C" {
    pub fn nvfp4_moe_linear_prepare(
        linear: *mut nvfp4_moe_linear,
        weights: *const nvfp4_moe_linear_weights,
        storage: *mut ::std::os::raw::c_void,
        storage_size: u64,
        stream: *mut CUstream_st,
    ) -> i32;
}
unsafe extern "C" {
    pub fn nvfp4_moe_linear_workspace_size(linear: *const nvfp4_moe_linear, max_tokens: i32, out: *mut u64) -> i32;
}
unsafe extern "C" {
    pub fn nvfp4_moe_linear_forward(
        linear: *const nvfp4_moe_linear,
        args: *const nvfp4_moe_linear_args,
        stream: *mut CUstream_st,
    ) -> i32;
}
unsafe extern "C" {
    pub fn nvfp4_moe_linear_calibrate(
        linear: *mut nvfp4_moe_linear,
        args: *const nvfp4_moe_linear_args,
        stream: *mut CUstream_st,
    ) -> i32;
}
unsafe extern "C" {
    pub fn nvfp4_moe_linear_calibrated_scale(linear: *mut nvfp4_moe_linear, input_scale: *mut f32) -> i32;
}
unsafe extern "C" {
    pub fn nvfp4_moe_linear_set_input_scale(linear: *mut nvfp4_moe_linear, input_scale: f32) -> i32;
}
unsafe extern "C" {
    pub fn nvfp4_moe_device_status_read(
        device_kind: i32,
        device_ordinal: i32,
        out: *mut nvfp4_moe_device_status,
        stream: *mut CUstream_st,
    ) -> i32;
}
unsafe extern "C" {
    pub fn nvfp4_moe_device_status_reset(device_kind: i32, device_ordinal: i32, stream: *mut CUstream_st) -> i32;
}
unsafe extern "C" {
    pub fn nvfp4_moe_quantize(args: *const nvfp4_moe_quantize_args) -> i32;
}
unsafe extern "C" {
    pub fn nvfp4_moe_dequantize(
        packed: *const u8,
        block_scale: *const u8,
        global_scale: f32,
        num_rows: i64,
        num_cols: i64,
        out: *mut f32,
    ) -> i32;
}
unsafe extern "C" {
    pub fn nvfp4_moe_cast_mxfp4(
        packed: *const u8,
        e8m0_scale: *const u8,
        num_rows: i64,
        num_cols: i64,
        block_scale: *mut u8,
        global_scale: *mut f32,
    ) -> i32;
}
unsafe extern "C" {
    pub fn nvfp4_moe_sf_size(num_rows: u64, num_sf_cols: u64) -> u64;
}
unsafe extern "C" {
    pub fn nvfp4_moe_sf_offset(row: u64, sf_col: u64, num_sf_cols: u64) -> u64;
}
unsafe extern "C" {
    pub fn nvfp4_moe_checkpoint_open(
        directory: *const ::std::os::raw::c_char,
        out: *mut *mut nvfp4_moe_checkpoint,
    ) -> i32;
}
unsafe extern "C" {
    pub fn nvfp4_moe_checkpoint_open_prefix(
        directory: *const ::std::os::raw::c_char,
        prefix: *const ::std::os::raw::c_char,
        out: *mut *mut nvfp4_moe_checkpoint,
    ) -> i32;
}
unsafe extern "C" {
    pub fn nvfp4_moe_checkpoint_destroy(checkpoint: *mut nvfp4_moe_checkpoint);
}
unsafe extern "C" {
    pub fn nvfp4_moe_checkpoint_layer_info_read(
        checkpoint: *const nvfp4_moe_checkpoint,
        layer: i32,
        out: *mut nvfp4_moe_checkpoint_layer_info,
    ) -> i32;
}
unsafe extern "C" {
    pub fn nvfp4_moe_checkpoint_read_layer(
        checkpoint: *const nvfp4_moe_checkpoint,
        layer: i32,
        buffers: *const nvfp4_moe_checkpoint_buffers,
    ) -> i32;
}
unsafe extern "C" {
    pub fn nvfp4_moe_checkpoint_inspect(
        checkpoint: *const nvfp4_moe_checkpoint,
        as_json: i32,
        buf: *mut ::std::os::raw::c_char,
        size: usize,
        full_length: *mut usize,
    ) -> i32;
}
