/* What Rust hands to each kernel: one struct by value. Plain C, so that bindgen makes this file the law on both sides.
 * Each pointer carries its shape; "or NULL" where that is allowed. R is the row capacity of a chunk, S the number of
 * routing segments, C the number of chunks, L, T, k as in nvfp4_moe.h. */
#ifndef NVFP4_MOE_KERNEL_PARAMS_H
#define NVFP4_MOE_KERNEL_PARAMS_H

#include <stdint.h>

/* Launch shape of every gemm_sm90 kernel: one CTA a multiprocessor, all of its shared memory. Those whose CTA has four
 * weight tiles have fewer threads, with more registers. */
#define GEMM_SM90_THREADS 640
#define GEMM_SM90_FOUR_TILES_THREADS 384
#define GEMM_SM90_SHARED_BYTES 232448

/* The widest kernel multiplies as many token rows as a tile has, in steps: fine down to where most tiles are, then
 * coarse, and no fewer than the last. */
#define GEMM_SM90_WIDEST_ROWS 144
#define GEMM_SM90_COLUMN_STEP 16
#define GEMM_SM90_COARSE_COLUMNS 112
#define GEMM_SM90_COARSE_STEP 32
#define GEMM_SM90_FEWEST_COLUMNS 48

/* A CTA multiplies one weight tile of 64 rows; from so many token rows on two; from so many on four, in a linear later. */
#define GEMM_SM90_TWO_TILES_ROWS 24
#define GEMM_SM90_FOUR_TILES_ROWS 48
#define GEMM_SM90_LINEAR_FOUR_TILES_ROWS 80

/* Counters of one device; all u64. `calls` numbers the forwards, so that "first" means first in time. */
typedef struct DeviceStatus {
  uint64_t saturated_blocks;
  uint64_t nonfinite_values;
  uint64_t out_of_range_ids;
  uint64_t first_bad; /* calls << 32 | token, the smallest so far; all ones = none */
  uint64_t calls;
} DeviceStatus;

/* The rows of an expert in a chunk, and its place among the tiles of a GEMM. */
typedef struct RowGroup {
  int32_t expert;     /* local; -1: the end of a list */
  int32_t first_row;  /* a multiple of row_alignment */
  int32_t num_rows;   /* 1 or more */
  int32_t first_tile; /* row tiles of the groups before it */
} RowGroup;

/* The routing tables of all chunks. A chunk is a contiguous range of tokens whose routed slots fit R rows. */
typedef struct RoutingTables {
  int32_t *slot_to_row;       /* [T * k] row inside the slot's chunk, -1 = unrouted */
  int32_t *row_to_slot;       /* [C, R] -1 = padding (only where row_alignment > 1) */
  int32_t *row_offsets;       /* [C, L + 1] multiples of row_alignment */
  int32_t *row_counts;        /* [C, L] */
  RowGroup *groups;           /* [C, L + 2] those with rows, by expert, or where a tile's work follows its rows wide
                                 tiles first; then two ends, so that readers may look one ahead; the last is one too */
  int32_t *chunk_first_token; /* [C + 1] */
} RoutingTables;

/* Segments of a call, at most; threads of route_scan, a multiple of 32. */
#define ROUTE_MAX_SEGMENTS 256
#define ROUTE_SCAN_THREADS 1024

typedef struct RouteParams {
  RoutingTables tables;
  int32_t *segment_counts; /* [S, L] then the rows of earlier segments of the same chunk and expert */
  int32_t *segment_totals; /* [S] then the segment's chunk */
  DeviceStatus *status;
  const void *topk_ids; /* [T, k] i32 or i64 */
  int64_t topk_ids_row_stride;
  const int32_t *expert_map; /* [E] or NULL */
  int32_t topk_ids_are_i64;
  int32_t num_tokens;
  int32_t top_k;
  int32_t num_experts;
  int32_t num_local_experts;
  int32_t first_local_expert;
  int32_t num_segments;
  int32_t segment_tokens; /* tokens of a segment */
  int32_t chunk_slots;    /* a segment goes to chunk (routed slots before it) / chunk_slots */
  int32_t num_chunks;
  int32_t chunk_rows;    /* R */
  int32_t row_alignment; /* 1, or 128 for the 128x4 layouts */
  int32_t tile_rows;     /* rows of one GEMM tile */
} RouteParams;

/* Which rows a row-wise kernel visits: all; or, with slot_to_row alone, tokens; or, with row_to_slot, grouped rows. */
typedef struct RowSource {
  const int32_t *slot_to_row; /* [T * k]: tokens with no routed slot are skipped. Beside row_to_slot it says which of a
                                 token's rows is the first, where the status counts what the token holds. Or NULL */
  const int32_t *row_to_slot; /* [R]: row r reads token row_to_slot[r] / top_k; -1 is a row of zeros. Or NULL */
  const int32_t *first_row_on_device; /* [1] or NULL: 0 */
  const int32_t *end_row_on_device;   /* [1] or NULL: num_rows */
  int32_t num_rows;
  int32_t top_k;
  int32_t rows_known; /* 1: the numbers on the device were complete before the previous kernel let this one start */
  int32_t reserved;
} RowSource;

/* What a quantiser reads. */
typedef struct QuantizerInput {
  RowSource source;
  DeviceStatus *status;
  const int32_t *row_to_token_slot; /* [R] names the token in the status when rows are gathered rows. Or NULL */
  const void *x;                    /* bf16 [rows, num_cols] */
  int64_t x_row_stride;             /* elements */
} QuantizerInput;

typedef struct QuantizeParams {
  QuantizerInput input;
  void *decoded;                    /* bf16 [rows, num_cols]: e2m1 * block_scale, exact; may be x. Or NULL */
  uint8_t *packed;                  /* e2m1x2 [rows, num_cols / 2]. Or NULL */
  uint8_t *block_scale;             /* of `packed`: e4m3, 128x4 swizzled (whole buffer), padding columns 0 */
  float *row_scale;                 /* [rows] the global scale that decodes */
  float static_scale;               /* 0 = dynamic */
  int32_t num_cols;                 /* a multiple of 16 */
} QuantizeParams;

/* The clamped SwiGLU; limit infinite = no clamp. */
typedef struct SwigluParams {
  float limit;
  float alpha;
  float beta;
} SwigluParams;

/* h = swiglu of GEMM1's sums, rounded to bf16; kept as `h`, or quantised on into `out`. */
typedef struct ActivationParams {
  QuantizeParams out; /* rows are grouped rows (row_to_slot); x is not read. packed NULL: h is written */
  const float *gate_up; /* [R, 2 * num_cols]: gate, then up */
  void *h;              /* bf16 [R, num_cols] or NULL */
  SwigluParams swiglu;
  int32_t reserved;
} ActivationParams;

typedef struct AmaxParams {
  RowSource source;
  const void *x; /* bf16 [rows, num_cols] */
  int64_t x_row_stride;
  float *amax; /* [1] largest finite magnitude so far; starts at -1 */
  int32_t num_cols;
  int32_t reserved;
} AmaxParams;

/* Columns of a thread, at a time; hidden_size is a multiple of 16. Blocks launched a multiprocessor: three rounds of the
 * five that run at once. */
#define COMBINE_COLUMNS 8
#define COMBINE_BLOCKS_PER_SM 15

typedef struct CombineParams {
  const int32_t *slot_to_row;       /* [T * k] */
  const int32_t *chunk_first_token; /* [2]: tokens of this chunk */
  const void *y;                    /* bf16 [R, hidden]: GEMM2's output */
  const float *topk_weights;        /* [T, k] or NULL = 1 */
  int64_t topk_weights_row_stride;
  void *out; /* bf16 [T, hidden] */
  int64_t out_row_stride;
  int32_t hidden;
  int32_t top_k;
} CombineParams;

/* Rows of bf16 to e4m3, each with one scale (mode fp8). */
typedef struct QuantizeFp8Params {
  QuantizerInput input;
  uint8_t *out;                     /* e4m3 [rows, num_cols padded to 64 with 0], slabs transposed
                                       (gemm_sm90/layout.cuh); may be x, each row in the place of its own start */
  int64_t out_row_stride;           /* bytes */
  float *row_scale;                 /* [rows] the scale that decodes */
  int32_t num_cols;                 /* a multiple of 16 */
  int32_t reserved;
} QuantizeFp8Params;

/* What mode fp8 asks of the block scales of a part (a matrix of an expert with an output factor of its own). */
typedef struct PartScales {
  uint32_t not_powers; /* scales that are neither 0 nor a power of two */
  uint32_t smallest;   /* e4m3, of those that are not 0; 0x7F if none */
  uint32_t largest;    /* e4m3; 0 if all are */
} PartScales;

typedef struct PartScalesParams {
  const uint8_t *block_scale; /* e4m3 [num_parts, part_scales] */
  PartScales *parts;          /* [num_parts]; starts as {0, 0x7F, 0} */
  int64_t part_scales;        /* a multiple of 16 */
} PartScalesParams;

/* prepare_tiles: slabs that a block of threads repacks. */
#define PREPARE_RUN_SLABS 4
#define PREPARE_THREADS 128

/* One matrix of checkpoint weights into the register-dequant layout (gemm_sm90/layout.cuh). */
typedef struct PrepareParams {
  const uint8_t *codes;       /* e2m1x2 [L, rows, cols / 2] */
  const uint8_t *block_scale; /* e4m3 [L, rows, cols / 16] */
  uint8_t *tiles;             /* of expert 0; tile (m, slab) at (m * num_slabs + slab) * 2304 */
  uint64_t expert_stride;     /* bytes between experts in `tiles` */
  uint64_t *bad_scales;       /* [1] count of NaN or negative block scales */
  int32_t num_local_experts;
  int32_t rows;
  int32_t cols;
  int32_t num_m_tiles;
  int32_t num_slabs;
  int32_t gated;    /* rows are gate and up halves, to be interleaved by 8 */
  int32_t up_first; /* the first half is up */
  int32_t reserved;
  const PartScales *parts; /* mode fp8: [L, 1 + gated], in the checkpoint's order. NULL: for bf16 */
} PrepareParams;

/* One matrix of checkpoint weights into the layout of Blackwell: codes as they are, block scales 128x4 swizzled. */
typedef struct PrepareSwizzledParams {
  const uint8_t *codes;       /* e2m1x2 [L, rows, cols / 2] */
  const uint8_t *block_scale; /* e4m3 [L, rows, cols / 16] */
  uint8_t *out_codes;         /* of expert 0: e2m1x2 [rows, cols / 2] */
  uint8_t *out_block_scale;   /* of expert 0: padded to 128 rows and 4 columns with 0 */
  uint64_t expert_stride;     /* bytes between experts in both outputs */
  uint64_t *bad_scales;       /* [1] count of NaN or negative block scales */
  int32_t num_local_experts;
  int32_t rows;
  int32_t cols;
  int32_t first_row; /* row r is the checkpoint's (r + first_row) % rows: gate comes first */
} PrepareSwizzledParams;

/* The output factors of each expert: f32 {gate, up, down}. */
typedef struct PrepareAlphaParams {
  const float *w13_global_scale; /* [L, 2] */
  const float *w2_global_scale;  /* [L] */
  float *alphas;                 /* of expert 0 */
  uint64_t expert_stride;        /* bytes */
  uint64_t *bad_scales;          /* [1] count of globals that are not finite and positive */
  int32_t num_local_experts;
  int32_t up_first;
  float factor; /* what the GEMM's products lack */
  int32_t reserved;
  const PartScales *w13_parts; /* mode fp8: [L, 2], in the checkpoint's order. Or NULL */
  const PartScales *w2_parts;  /* [L] */
} PrepareAlphaParams;

/* A linear's output factors, spread over its rows. */
typedef struct PrepareRowAlphaParams {
  const float *global_scale; /* [num_parts] */
  float *row_alpha;          /* [rows] */
  uint64_t *bad_scales;
  int32_t part;      /* rows first_row .. first_row + num_rows take global_scale[part] */
  int32_t first_row;
  int32_t num_rows;
  float factor; /* what the GEMM's products lack */
} PrepareRowAlphaParams;

/* The grouped rows of a GEMM, and its weight tiles. */
typedef struct TileList {
  const RowGroup *groups; /* up to an end; last_group is one, too. NULL: one expert with num_rows rows */
  int32_t m_tiles;        /* of 64 weight rows */
  int32_t num_rows;
  int32_t tile_rows; /* of a tile, at most: what first_tile counts by; the kernel's size or less */
  int32_t last_group; /* L + 1 */
} TileList;

/* out = rows x weights^T over grouped rows, in the form of each GEMM's epilogue. */
typedef struct GemmParams {
  TileList list;
  const uint8_t *tiles;   /* weights of expert 0, register-dequant layout */
  uint64_t expert_stride; /* bytes */
  const float *alphas;    /* of expert 0: gemm1 {gate, up}, gemm2 {down}; linear [features] */
  const void *x;          /* bf16 rows; *_fp8: e4m3, 16-byte aligned */
  int64_t x_row_stride;          /* of bf16 or e4m3 rows, in elements */
  const float *row_scale;     /* f32 by the index that x is read with, or NULL = 1 */
  const int32_t *row_to_slot; /* [R]: row r reads x row row_to_slot[r] / top_k. NULL: row r reads x row r */
  void *out;            /* bf16. gemm1: h [R, features]; gemm2: y, the same; linear: [T, features] */
  const void *bias;     /* linear: bf16 [features] or NULL */
  int64_t out_row_stride;
  int32_t top_k;
  int32_t k_valid;  /* columns of x, a multiple of 16; the rest up to 64 * num_slabs is 0 */
  int32_t num_slabs;
  int32_t features; /* gemm1: intermediate_size; gemm2: hidden_size; linear: out_features */
  SwigluParams swiglu;
  int32_t tiles_known; /* the routing tables were complete before the previous kernel let this one start: weights need not
                          wait */
} GemmParams;

/* out = rows x weights^T over grouped rows, by any GPU, in Blackwell's layouts. */
typedef struct PortableGemmParams {
  TileList list;
  const uint8_t *codes;       /* weights of expert 0: e2m1x2 [features, k / 2] */
  const uint8_t *block_scale; /* of expert 0: e4m3, 128x4 swizzled */
  const float *alphas;        /* of expert 0: alphas[feature / alpha_features] */
  uint64_t expert_stride;     /* bytes between experts in all three */
  const void *x;                /* bf16 rows, or e2m1x2 [rows, k / 2] */
  const uint8_t *x_block_scale; /* e4m3, 128x4 swizzled over all rows; NULL with bf16 rows */
  const float *x_global_scale;  /* f32 [rows]; NULL with bf16 rows */
  const int32_t *row_to_slot;   /* bf16: row r reads x row row_to_slot[r] / top_k. NULL: row r reads x row r */
  int64_t x_row_stride;         /* bf16: elements */
  float *sums;      /* f32 [rows, out_row_stride]. Or NULL */
  void *out;        /* bf16 [rows, out_row_stride], with bias. Or NULL */
  const void *bias; /* bf16 [features] or NULL */
  int64_t out_row_stride;
  int32_t top_k;
  int32_t k; /* a multiple of 16 */
  int32_t features;
  int32_t alpha_features; /* features that share an alpha */
} PortableGemmParams;

#endif
