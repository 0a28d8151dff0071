// SPDX-License-Identifier: Apache-2.0
/* What Rust hands to each kernel: one struct by value. Plain C, so that bindgen makes these files the law on both sides
 * (all_params.h names them all). This one is of the kernels that every family shares; hopper/params.h and
 * portable/params.h are theirs.
 * Each pointer carries its shape; "or NULL" where that is allowed. R is the row capacity of a chunk, S the number of
 * routing segments, C the number of chunks, L, T, k as in nvfp4_moe.h. */
#ifndef NVFP4_MOE_KERNEL_PARAMS_H
#define NVFP4_MOE_KERNEL_PARAMS_H

#include <stdint.h>

/* Threads of a block of the kernels that go by rows, blocks of 16 or segments; those of routing may have fewer. */
#define BLOCK_THREADS 256

/* Counters of one device; all u64. `calls` numbers the forwards, so that "first" means first in time. */
typedef struct DeviceStatus {
  uint64_t saturated_blocks;
  uint64_t nonfinite_values;
  uint64_t out_of_range_ids;
  uint64_t first_bad; /* calls << 32 | token, the smallest so far; all ones = none */
  uint64_t calls;
} DeviceStatus;

/* What a kernel leaves before it traps, because a barrier that it waited for did not come. It lies in the host's memory:
 * after a trap no memory of the device can be read. 16 bytes, written by one store, so that no two records mix. */
typedef struct HangRecord {
  uint32_t kernel; /* WaitBound's; 0: no kernel hanged */
  uint32_t block;  /* blockIdx.x */
  uint16_t barrier;
  uint16_t parity;
  uint32_t milliseconds; /* that it waited */
} HangRecord;

/* How long a kernel waits for a barrier at most, and where it says that it did not come (common/wait.cuh). */
typedef struct WaitBound {
  HangRecord *record;
  uint64_t nanoseconds;
  uint32_t kernel; /* its number in the record, not 0 */
  uint32_t reserved;
} WaitBound;

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
  RowGroup *groups;           /* [C, L + 2] experts that have rows, then two end marks (a reader may look one ahead);
                                 entry L + 1 is always an end mark. By expert, or by width if widest_first */
  int32_t *chunk_first_token; /* [C + 1] */
} RoutingTables;

/* Segments of a call, at most; threads of route_scan and, at most, of route_small, multiples of 32. */
#define ROUTE_MAX_SEGMENTS 256
#define ROUTE_SCAN_THREADS 1024
#define ROUTE_SMALL_THREADS 1024
/* Blocks of route_cluster, one cluster; a warp takes a segment. */
#define ROUTE_CLUSTER_BLOCKS 8

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
  int32_t widest_first;  /* 1: groups whose tiles have most rows come first, so that narrow ones even out the end; for a
                            GEMM whose work follows its rows. tile_rows is kWidestTile then (common/tiles.cuh) */
} RouteParams;

/* Which rows a row-wise kernel visits. With neither table: all. With slot_to_row alone: rows are tokens, and those with
 * no routed slot are skipped. With row_to_slot: rows are grouped rows, each of which reads its token's; slot_to_row then
 * only says which of a token's rows is the first, the one whose values the status counts. */
typedef struct RowSource {
  const int32_t *slot_to_row;         /* [T * k] or NULL */
  const int32_t *row_to_slot;         /* [R] row r reads token row_to_slot[r] / top_k; -1 is a row of zeros. Or NULL */
  const int32_t *first_row_on_device; /* [1] or NULL: 0 */
  const int32_t *end_row_on_device;   /* [1] or NULL: num_rows */
  int32_t num_rows;
  int32_t top_k;
  int32_t rows_known; /* 1: the numbers on the device are final when this kernel starts; 0: when the previous one ends */
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

/* Rows in lines (common/lines.cuh): bytes of a line; its columns of e2m1, or of bf16; columns of a step of scales, and a
 * row's bytes there. A GEMM's tile may read so many bytes past the last row of bf16, or of scales. */
#define LINE_BYTES 128
#define LINE_CODE_COLS 256
#define LINE_BF16_COLS 64
#define LINE_STEP_COLS 64
#define LINE_STEP_BYTES 16
#define LINE_BF16_SLACK 1024
#define LINE_SCALE_SLACK 512

typedef struct QuantizeParams {
  QuantizerInput input;
  void *decoded;        /* bf16 [rows, num_cols]: e2m1 * block_scale, exact; may be x. Or NULL */
  uint8_t *packed;      /* e2m1x2 [rows, num_cols / 2]. Or NULL */
  uint8_t *block_scale; /* of `packed`: e4m3, 128x4 swizzled (whole buffer), padding columns 0 */
  float *row_scale;     /* [rows] the global scale that decodes */
  const float *static_scale; /* [1] the global scale of every row, or NULL: each row's own. On the device, so that a graph
                                computes with what is set when it runs */
  const float *next_scale;   /* [1] of the values that come of these, or NULL. It is copied for the kernels that need it, */
  float *next_scale_copy;    /* [1] which so agree on it, should the host set it meanwhile */
  int32_t num_cols;          /* a multiple of 16 */
  int32_t line_rows; /* 0; else `packed` and `block_scale` are lines (common/lines.cuh), so many rows from one to the next */
} QuantizeParams;

/* What lies between the GEMMs, as rust/activation.rs has it; each kind reads the numbers that it knows. */
#define ACTIVATION_SWIGLU 0      /* limit (infinite: no clamp), alpha, beta */
#define ACTIVATION_SWIGLU_STEP 1 /* limit */
#define ACTIVATION_SITU 2        /* limit of up (infinite: none), beta */
#define ACTIVATION_GELU_TANH 3
#define ACTIVATION_RELU2 4 /* no gate */
#define ACTIVATION_SILU 5  /* no gate */
#define ACTIVATION_GELU 6
#define ACTIVATION_NONE 7  /* what GEMM2's results go through */

typedef struct Activation {
  int32_t kind;
  float limit;
  float alpha;
  float beta;
} Activation;

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
  const void *shared_output; /* bf16 [T, hidden], of combine_shared */
  int64_t shared_output_row_stride;
} CombineParams;

#define NO_ROW 0xFFFFFFFFu

/* The block scales of one matrix that has an output factor of its own: gate, up or down of an expert. Mode fp8 stores
 * them relative to the largest. */
typedef struct MatrixScales {
  uint32_t not_powers; /* scales that are neither 0 nor a power of two */
  uint32_t smallest;   /* e4m3, of those that are not 0; 0x7F if none */
  uint32_t largest;    /* e4m3; 0 if all are */
  uint32_t unpaired;   /* the first row with scales 2 i and 2 i + 1 that differ; NO_ROW: none, or nobody asked */
} MatrixScales;

/* Counts what prepare refuses, before it writes anything. */
typedef struct CheckScalesParams {
  const uint8_t *block_scale; /* e4m3 [num_block_scales], from any byte on: finite and not negative */
  const float *global_scale;  /* [num_global_scales]: positive and below 2^120, so that the output factor is finite */
  uint64_t *bad_scales;       /* [1] */
  int64_t num_block_scales;
  int64_t num_global_scales;
} CheckScalesParams;

/* Where two buffers differ; starts as zeros. */
typedef struct Differences {
  uint32_t values;
  uint32_t first; /* num_values - the index of the first; 0: none */
} Differences;

/* The self-test: what a family's own kernels computed, beside what the portable ones did. */
typedef struct CompareParams {
  const uint16_t *own; /* [num_values] */
  const uint16_t *portable;
  Differences *found;
  int64_t num_values; /* below 2^31 */
} CompareParams;

/* The order of the rows of a checkpoint's matrix: one projection; all of gate, then all of up; the other way round; both in
 * turn. */
#define ROWS_PLAIN 0
#define ROWS_GATE_FIRST 1
#define ROWS_UP_FIRST 2
#define ROWS_INTERLEAVED 3

/* What every family's preparing of one matrix reads: checkpoint tensors, which may start at any byte. */
typedef struct PrepareSource {
  const uint8_t *codes;       /* e2m1x2 [L, rows, cols / 2] */
  const uint8_t *block_scale; /* e4m3 [L, rows, cols / 16], which check_scales has seen */
  uint64_t expert_stride;     /* bytes between experts in what is written */
  int32_t rows;
  int32_t cols;
} PrepareSource;

/* The output factors of each expert: f32 {gate, up, down}; {up, down} where rows are plain, and 2 is 1 below. */
typedef struct PrepareAlphaParams {
  const float *w13_global_scale; /* [L, 2] */
  const float *w2_global_scale;  /* [L] */
  float *alphas;                 /* of expert 0 */
  uint64_t expert_stride;        /* bytes */
  int32_t num_local_experts;
  int32_t row_order; /* ROWS_* of w13 */
  float factor;                   /* what the GEMM's products lack */
  int32_t stored_exponent;        /* of two, of a matrix's largest block scale as it is stored. Read with w13_scales */
  const MatrixScales *w13_scales; /* [L, 2], in the checkpoint's order, where scales are stored relative to the
                                     largest, which the output factor then holds. Or NULL */
  const MatrixScales *w2_scales;  /* [L] */
  int32_t rounded; /* 1: mode fp8 for any scales, of which a largest of 1.25 or more times a power of two is stored with
                      one exponent less */
  int32_t reserved;
} PrepareAlphaParams;

/* The biases of one matrix. */
typedef struct PrepareBiasParams {
  const void *bias;       /* bf16 [L, rows]. NULL: 0 */
  void *out;              /* of expert 0: bf16 [rows], gate first */
  uint64_t expert_stride; /* bytes */
  int32_t rows;
  int32_t row_order; /* ROWS_* */
} PrepareBiasParams;

/* A linear's output factors, spread over its rows. */
typedef struct PrepareRowAlphaParams {
  const float *global_scale; /* [num_parts] */
  float *row_alpha;          /* [rows] */
  int32_t part;      /* rows first_row .. first_row + num_rows take global_scale[part] */
  int32_t first_row;
  int32_t num_rows;
  float factor; /* what the GEMM's products lack */
} PrepareRowAlphaParams;

/* The grouped rows of a GEMM, and its weight tiles. */
typedef struct TileList {
  const RowGroup *groups; /* up to an end mark; groups[last_group] is one too. NULL: one expert with num_rows rows */
  int32_t m_tiles;        /* of 64 weight rows */
  int32_t num_rows;
  int32_t tile_rows;      /* of a tile, at most: what first_tile counts by; the kernel's size or less */
  int32_t last_group;     /* L + 1 */
} TileList;

#endif
