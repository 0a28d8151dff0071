// kernels/all_params.h in Rust, by bindgen. Made again by: UPDATE=1 cargo test --test bindings

pub const BLOCK_THREADS: u32 = 256;
pub const ROUTE_MAX_SEGMENTS: u32 = 256;
pub const ROUTE_SCAN_THREADS: u32 = 1024;
pub const ROUTE_SMALL_THREADS: u32 = 1024;
pub const ROUTE_CLUSTER_BLOCKS: u32 = 8;
pub const LINE_BYTES: u32 = 128;
pub const LINE_CODE_COLS: u32 = 256;
pub const LINE_BF16_COLS: u32 = 64;
pub const LINE_STEP_COLS: u32 = 64;
pub const LINE_STEP_BYTES: u32 = 16;
pub const LINE_BF16_SLACK: u32 = 1024;
pub const LINE_SCALE_SLACK: u32 = 512;
pub const ACTIVATION_SWIGLU: u32 = 0;
pub const ACTIVATION_SWIGLU_STEP: u32 = 1;
pub const ACTIVATION_SITU: u32 = 2;
pub const ACTIVATION_GELU_TANH: u32 = 3;
pub const ACTIVATION_RELU2: u32 = 4;
pub const ACTIVATION_SILU: u32 = 5;
pub const ACTIVATION_GELU: u32 = 6;
pub const ACTIVATION_NONE: u32 = 7;
pub const COMBINE_COLUMNS: u32 = 8;
pub const COMBINE_BLOCKS_PER_SM: u32 = 15;
pub const NO_ROW: u32 = 4294967295;
pub const ROWS_PLAIN: u32 = 0;
pub const ROWS_GATE_FIRST: u32 = 1;
pub const ROWS_UP_FIRST: u32 = 2;
pub const ROWS_INTERLEAVED: u32 = 3;
pub const PREPARE_RUN_SLABS: u32 = 4;
pub const PREPARE_THREADS: u32 = 128;
pub const GEMM_SM90_THREADS: u32 = 640;
pub const GEMM_SM90_FEW_THREADS: u32 = 384;
pub const GEMM_SM90_SHARED_BYTES: u32 = 232448;
pub const GEMM_SM90_WIDEST_ROWS: u32 = 144;
pub const GEMM_SM90_COLUMN_STEP: u32 = 16;
pub const GEMM_SM90_FEWEST_COLUMNS: u32 = 32;
pub const GEMM_SM90_TWO_TILES_ROWS: u32 = 24;
pub const GEMM_SM90_FOUR_TILES_ROWS: u32 = 16;
pub const GEMM_SM90_LINEAR_FOUR_TILES_ROWS: u32 = 80;
pub const GEMM_SM90_FP8_WIDE_ROWS: u32 = 208;
pub const GEMM_SM90_FOUR_GROUPS_ROWS: u32 = 64;
pub const FP8_LARGEST_EXPONENT: u32 = 6;
pub const FEW_TOKENS: u32 = 8;
pub const FEW_SLOTS: u32 = 64;
pub const ROUNDING_BINADES: u32 = 18;
pub const GEMM_PORTABLE_TILE: u32 = 64;
pub const GEMM_PORTABLE_THREADS: u32 = 128;
pub const GEMM_SM100_THREADS: u32 = 192;
pub const GEMM_SM100_BF16_THREADS: u32 = 448;
pub const GEMM_SM100_SHARED_BYTES: u32 = 232448;
pub const SM100_TILE_ROWS: u32 = 128;
pub const SM100_TILE_COLS: u32 = 256;
pub const SM100_TILE_BYTES: u32 = 18432;
pub const SM100_BARRIER_FULL: u32 = 0;
pub const SM100_BARRIER_EMPTY: u32 = 16;
pub const SM100_BARRIER_SUMS_FULL: u32 = 32;
pub const SM100_BARRIER_SUMS_EMPTY: u32 = 48;
pub const SM100_BARRIER_PIECE_FULL: u32 = 64;
pub const SM100_BARRIER_PIECE_EMPTY: u32 = 80;
pub const SM100_ROW_ALIGNMENT: u32 = 8;
pub const GEMM_SM120_SHARED_BYTES: u32 = 101376;
pub const GEMM_SM120_THREADS: u32 = 256;
pub const GEMM_SM120_WIDE_THREADS: u32 = 384;
pub const GEMM_SM120_WIDE_ROWS: u32 = 64;
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct DeviceStatus {
    pub saturated_blocks: u64,
    pub nonfinite_values: u64,
    pub out_of_range_ids: u64,
    pub first_bad: u64,
    pub calls: u64,
}
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct HangRecord {
    pub kernel: u32,
    pub block: u32,
    pub barrier: u16,
    pub parity: u16,
    pub milliseconds: u32,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct WaitBound {
    pub record: *mut HangRecord,
    pub nanoseconds: u64,
    pub kernel: u32,
    pub reserved: u32,
}
impl Default for WaitBound {
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
pub struct RowGroup {
    pub expert: i32,
    pub first_row: i32,
    pub num_rows: i32,
    pub first_tile: i32,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct RoutingTables {
    pub slot_to_row: *mut i32,
    pub row_to_slot: *mut i32,
    pub row_offsets: *mut i32,
    pub row_counts: *mut i32,
    pub groups: *mut RowGroup,
    pub chunk_first_token: *mut i32,
}
impl Default for RoutingTables {
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
pub struct RouteParams {
    pub tables: RoutingTables,
    pub segment_counts: *mut i32,
    pub segment_totals: *mut i32,
    pub status: *mut DeviceStatus,
    pub topk_ids: *const ::std::os::raw::c_void,
    pub topk_ids_row_stride: i64,
    pub expert_map: *const i32,
    pub topk_ids_are_i64: i32,
    pub num_tokens: i32,
    pub top_k: i32,
    pub num_experts: i32,
    pub num_local_experts: i32,
    pub first_local_expert: i32,
    pub num_segments: i32,
    pub segment_tokens: i32,
    pub chunk_slots: i32,
    pub num_chunks: i32,
    pub chunk_rows: i32,
    pub row_alignment: i32,
    pub tile_rows: i32,
    pub widest_first: i32,
}
impl Default for RouteParams {
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
pub struct RowSource {
    pub slot_to_row: *const i32,
    pub row_to_slot: *const i32,
    pub first_row_on_device: *const i32,
    pub end_row_on_device: *const i32,
    pub num_rows: i32,
    pub top_k: i32,
    pub rows_known: i32,
    pub reserved: i32,
}
impl Default for RowSource {
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
pub struct QuantizerInput {
    pub source: RowSource,
    pub status: *mut DeviceStatus,
    pub row_to_token_slot: *const i32,
    pub x: *const ::std::os::raw::c_void,
    pub x_row_stride: i64,
}
impl Default for QuantizerInput {
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
pub struct QuantizeParams {
    pub input: QuantizerInput,
    pub decoded: *mut ::std::os::raw::c_void,
    pub packed: *mut u8,
    pub block_scale: *mut u8,
    pub row_scale: *mut f32,
    pub static_scale: *const f32,
    pub next_scale: *const f32,
    pub next_scale_copy: *mut f32,
    pub num_cols: i32,
    pub line_rows: i32,
}
impl Default for QuantizeParams {
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
pub struct Activation {
    pub kind: i32,
    pub limit: f32,
    pub alpha: f32,
    pub beta: f32,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct AmaxParams {
    pub source: RowSource,
    pub x: *const ::std::os::raw::c_void,
    pub x_row_stride: i64,
    pub amax: *mut f32,
    pub num_cols: i32,
    pub reserved: i32,
}
impl Default for AmaxParams {
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
pub struct CombineParams {
    pub slot_to_row: *const i32,
    pub chunk_first_token: *const i32,
    pub y: *const ::std::os::raw::c_void,
    pub topk_weights: *const f32,
    pub topk_weights_row_stride: i64,
    pub out: *mut ::std::os::raw::c_void,
    pub out_row_stride: i64,
    pub hidden: i32,
    pub top_k: i32,
    pub shared_output: *const ::std::os::raw::c_void,
    pub shared_output_row_stride: i64,
}
impl Default for CombineParams {
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
pub struct MatrixScales {
    pub not_powers: u32,
    pub smallest: u32,
    pub largest: u32,
    pub unpaired: u32,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct CheckScalesParams {
    pub block_scale: *const u8,
    pub global_scale: *const f32,
    pub bad_scales: *mut u64,
    pub num_block_scales: i64,
    pub num_global_scales: i64,
}
impl Default for CheckScalesParams {
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
pub struct Differences {
    pub values: u32,
    pub first: u32,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct CompareParams {
    pub own: *const u16,
    pub portable: *const u16,
    pub found: *mut Differences,
    pub num_values: i64,
}
impl Default for CompareParams {
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
pub struct PrepareSource {
    pub codes: *const u8,
    pub block_scale: *const u8,
    pub expert_stride: u64,
    pub rows: i32,
    pub cols: i32,
}
impl Default for PrepareSource {
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
pub struct PrepareAlphaParams {
    pub w13_global_scale: *const f32,
    pub w2_global_scale: *const f32,
    pub alphas: *mut f32,
    pub expert_stride: u64,
    pub num_local_experts: i32,
    pub row_order: i32,
    pub factor: f32,
    pub stored_exponent: i32,
    pub w13_scales: *const MatrixScales,
    pub w2_scales: *const MatrixScales,
    pub rounded: i32,
    pub reserved: i32,
}
impl Default for PrepareAlphaParams {
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
pub struct PrepareBiasParams {
    pub bias: *const ::std::os::raw::c_void,
    pub out: *mut ::std::os::raw::c_void,
    pub expert_stride: u64,
    pub rows: i32,
    pub row_order: i32,
}
impl Default for PrepareBiasParams {
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
pub struct PrepareRowAlphaParams {
    pub global_scale: *const f32,
    pub row_alpha: *mut f32,
    pub part: i32,
    pub first_row: i32,
    pub num_rows: i32,
    pub factor: f32,
}
impl Default for PrepareRowAlphaParams {
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
pub struct TileList {
    pub groups: *const RowGroup,
    pub m_tiles: i32,
    pub num_rows: i32,
    pub tile_rows: i32,
    pub last_group: i32,
}
impl Default for TileList {
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
pub struct GemmParams {
    pub list: TileList,
    pub tiles: *const u8,
    pub expert_stride: u64,
    pub alphas: *const f32,
    pub x: *const ::std::os::raw::c_void,
    pub x_row_stride: i64,
    pub row_scale: *const f32,
    pub row_to_slot: *const i32,
    pub out: *mut ::std::os::raw::c_void,
    pub bias: *const ::std::os::raw::c_void,
    pub out_row_stride: i64,
    pub top_k: i32,
    pub k_valid: i32,
    pub num_slabs: i32,
    pub features: i32,
    pub activation: Activation,
    pub tiles_known: i32,
}
impl Default for GemmParams {
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
pub struct PrepareParams {
    pub source: PrepareSource,
    pub tiles: *mut u8,
    pub scales: *const MatrixScales,
    pub num_slabs: i32,
    pub row_order: i32,
    pub rounded: i32,
    pub reserved: i32,
}
impl Default for PrepareParams {
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
pub struct QuantizeFp8Params {
    pub input: QuantizerInput,
    pub out: *mut u8,
    pub out_row_stride: i64,
    pub row_scale: *mut f32,
    pub num_cols: i32,
    pub reserved: i32,
}
impl Default for QuantizeFp8Params {
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
pub struct FewParams {
    pub route: RouteParams,
    pub gemm1: GemmParams,
    pub gemm2: GemmParams,
    pub combine: CombineParams,
    pub arrivals: *mut u32,
    pub wait: WaitBound,
}
impl Default for FewParams {
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
pub struct MatrixScalesParams {
    pub block_scale: *const u8,
    pub matrices: *mut MatrixScales,
    pub scales_each: i64,
    pub row_scales: i64,
    pub paired_row: i64,
}
impl Default for MatrixScalesParams {
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
pub struct RoundingSums {
    pub squares: [u64; 18usize],
    pub errors: [u64; 18usize],
    pub worst_block: u64,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct RoundingParams {
    pub codes: *const u8,
    pub block_scale: *const u8,
    pub matrices: *const MatrixScales,
    pub sums: *mut RoundingSums,
    pub matrix_blocks: i64,
    pub row_blocks: i64,
}
impl Default for RoundingParams {
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
pub struct PortableGemmParams {
    pub list: TileList,
    pub codes: *const u8,
    pub block_scale: *const u8,
    pub alphas: *const f32,
    pub expert_stride: u64,
    pub x: *const ::std::os::raw::c_void,
    pub x_block_scale: *const u8,
    pub x_global_scale: *const f32,
    pub row_to_slot: *const i32,
    pub x_row_stride: i64,
    pub sums: *mut f32,
    pub out: *mut ::std::os::raw::c_void,
    pub bias: *const ::std::os::raw::c_void,
    pub out_row_stride: i64,
    pub top_k: i32,
    pub k: i32,
    pub features: i32,
    pub alpha_features: i32,
}
impl Default for PortableGemmParams {
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
pub struct ActivationParams {
    pub out: QuantizeParams,
    pub gate_up: *const f32,
    pub h: *mut ::std::os::raw::c_void,
    pub activation: Activation,
    pub projections: i32,
}
impl Default for ActivationParams {
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
pub struct PrepareSwizzledParams {
    pub source: PrepareSource,
    pub out_codes: *mut u8,
    pub out_block_scale: *mut u8,
    pub row_order: i32,
    pub reserved: i32,
}
impl Default for PrepareSwizzledParams {
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
pub struct GemmSm100Params {
    pub list: TileList,
    pub tiles: *const u8,
    pub expert_stride: u64,
    pub alphas: *const f32,
    pub bias: *const ::std::os::raw::c_void,
    pub rows: *const ::std::os::raw::c_void,
    pub block_scale: *const u8,
    pub row_scale: *const f32,
    pub row_scale_stride: i64,
    pub num_rows: i64,
    pub out: *mut ::std::os::raw::c_void,
    pub out_block_scale: *mut u8,
    pub out_scale: *const f32,
    pub status: *mut DeviceStatus,
    pub row_to_slot: *const i32,
    pub out_row_stride: i64,
    pub top_k: i32,
    pub k: i32,
    pub features: i32,
    pub alpha_by_row: i32,
    pub pad_rows: i32,
    pub activation: Activation,
    pub reserved: i32,
    pub bound: WaitBound,
}
impl Default for GemmSm100Params {
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
pub struct ArrangeSm100Params {
    pub source: RowSource,
    pub x: *const ::std::os::raw::c_void,
    pub x_row_stride: i64,
    pub out: *mut ::std::os::raw::c_void,
    pub num_rows: i64,
    pub num_cols: i32,
    pub reserved: i32,
}
impl Default for ArrangeSm100Params {
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
pub struct PrepareSm100Params {
    pub source: PrepareSource,
    pub tiles: *mut u8,
    pub num_slabs: i32,
    pub row_order: i32,
}
impl Default for PrepareSm100Params {
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
pub struct GemmSm120Params {
    pub gemm: GemmParams,
    pub x_block_scale: *const u8,
    pub h: QuantizeParams,
    pub wait: WaitBound,
}
impl Default for GemmSm120Params {
    fn default() -> Self {
        let mut s = ::std::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::std::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
