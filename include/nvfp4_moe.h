// SPDX-License-Identifier: Apache-2.0
/* nvfp4_moe.h: the NVFP4 mixture-of-experts layer and the NVFP4 linear, as a C library.
 *
 * This header is the manual. It needs no CUDA headers and compiles as C11 and as C++17.
 * `nvfp4_moe.hpp` wraps the handles in RAII.
 *
 * One layer, start to end
 * -----------------------
 *   nvfp4_moe_layer_desc desc = {.struct_size = sizeof desc, .hidden_size = 4096, ...};
 *   nvfp4_moe_layer *layer = NULL;
 *   nvfp4_moe_layer_create(&desc, &layer);
 *   nvfp4_moe_layer_storage_size(layer, &storage_bytes);        // 0 on the CPU: weights are used in place
 *   nvfp4_moe_layer_prepare(layer, &weights, storage, storage_bytes, stream);
 *   nvfp4_moe_layer_workspace_size(layer, max_tokens, &workspace_bytes);
 *   nvfp4_moe_layer_forward(layer, &args, stream);              // as often as wanted
 *   nvfp4_moe_layer_destroy(layer);
 *
 * Rules that hold for every function
 * ----------------------------------
 * Status     int32_t, NVFP4_MOE_OK is 0; codes are only ever appended. On failure outputs are untouched and
 *            nvfp4_moe_last_error() says what had which value, which rule that breaks, and what to do.
 * Structs    start with `struct_size = sizeof(the struct)`, at most 4096. Fields are only appended; a field that an
 *            older caller does not know is 0, and 0 means "as before". A longer struct is accepted if its tail is 0.
 *            A function that fills a struct writes no byte past its struct_size.
 * Handles    opaque. A `const` handle may be used by many threads at once; any other use is exclusive.
 *            *_create and *_open write *out only on success. *_destroy(NULL) does nothing. A destroyed handle, or
 *            one of another kind, is refused where it can be told, which is not always: never use one.
 * Pointers   in weights and args live on the device that the handle was created for, unless marked "host". They are
 *            multiples of their element's size.
 * Streams    `struct CUstream_st *` (a CUstream or cudaStream_t). On the CPU pass NULL: the call returns when
 *            the work is done. On CUDA, OK from forward and calibrate means ENQUEUED: with a workspace of the
 *            caller's they allocate nothing, synchronise nothing, read no device data on the host, and may be
 *            captured in a graph. What else takes a stream waits for it.
 * Data       ids are data, not configuration: a slot whose id is out of range is unrouted and counted in the
 *            device status; it is never an error and never an out-of-bounds read.
 * ABI        From release 0.1.0 on, a compiled program runs with every newer library of SONAME libnvfp4_moe.so.0.
 * Library    prints nothing and reads no environment variable. A Rust panic (a bug) does not leave it: the call gives
 *            INTERNAL. A forked child may use its parent's CPU and checkpoint handles; CUDA is refused there.
 *
 * Words
 * -----
 * e2m1          FP4: 0 .5 1 1.5 2 3 4 6 and negatives. Two in a byte (e2m1x2), the even index in the LOW nibble.
 * block scale   one e4m3 ("fn": no infinity) for 16 neighbours along the reduction dimension.
 * global scale  f32 multiplier that DECODES: value = e2m1 * block_scale * global_scale. (compressed-tensors
 *               files store the reciprocal; the checkpoint reader inverts it once.)
 * slot          one (token, k) pair: token * top_k + k.
 * T, k, E, L    tokens, top_k, experts of the whole layer (num_experts), experts held here (num_local_experts).
 * H, I          hidden_size, intermediate_size.
 */
#ifndef NVFP4_MOE_H
#define NVFP4_MOE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define NVFP4_MOE_VERSION_MAJOR 0
#define NVFP4_MOE_VERSION_MINOR 1
#define NVFP4_MOE_VERSION_PATCH 0

struct CUstream_st;
struct CUevent_st;

/* ---- Status --------------------------------------------------------------------------------------------- */

#define NVFP4_MOE_OK 0
#define NVFP4_MOE_INVALID_ARGUMENT 1    /* a value breaks a rule of this header */
#define NVFP4_MOE_UNSUPPORTED 2         /* valid, but not on this device or in this build */
#define NVFP4_MOE_WORKSPACE_TOO_SMALL 3 /* workspace or storage is smaller than its size query says */
#define NVFP4_MOE_NOT_PREPARED 4        /* forward before prepare, or static scales that were never given */
#define NVFP4_MOE_CHECKPOINT 5          /* the files were read, and are wrong */
#define NVFP4_MOE_IO 6                  /* the files could not be read */
#define NVFP4_MOE_CUDA 7                /* the driver refused; the text names call, kernel and device */
#define NVFP4_MOE_INTERNAL 8            /* a bug in this library (the text is the panic's) */
#define NVFP4_MOE_OUT_OF_MEMORY 9       /* host memory that the system refused */

/* Version of the loaded library: major * 10000 + minor * 100 + patch. */
uint32_t nvfp4_moe_version(void);

/* Copy the calling thread's last error, NUL-terminated and cut to `size` at a UTF-8 character, into host `buf`, which
 * may be NULL. Returns the full length without the NUL; 0 if this thread never failed. Successes do not clear it. */
size_t nvfp4_moe_last_error(char *buf, size_t size);

/* ---- Choices -------------------------------------------------------------------------------------------- */

#define NVFP4_MOE_DEVICE_CPU 0
#define NVFP4_MOE_DEVICE_CUDA 1          /* the GPU's own kernels: compute capability 9.0, 10.x or 12.x, else UNSUPPORTED */
#define NVFP4_MOE_DEVICE_CUDA_PORTABLE 2 /* kernels for any GPU from 8.0 on, in Blackwell's layouts: not fast */

/* How activations enter the GEMMs. Never switched silently. */
#define NVFP4_MOE_MODE_DEFAULT 0 /* BF16 */
#define NVFP4_MOE_MODE_BF16 1    /* W4A16: weights exact, activations bf16, input scales unused */
#define NVFP4_MOE_MODE_NVFP4 2   /* W4A4: activations quantised to e2m1 blocks of 16 */
#define NVFP4_MOE_MODE_FP8 3     /* W4A8: activations e4m3, one dynamic scale a row. MoE layers, not CUDA_PORTABLE */

/* Mode FP8 quantises a row (of x, and of h rounded to bf16) by its largest finite |value|:
 *   scale = max(amax / 448, 2^-110), or 1 for a row of zeros;  code = e4m3(x * (1 / scale)), ties to even, saturating;
 * every operation rounded once to f32; NaN stays NaN; NaN and infinities are counted. It ignores the scale policy and
 * input scales. Weights must be exact in e4m3 with a power of two taken out: prepare refuses those whose nonzero block
 * scales, in the gate, the up or the down matrix of an expert, are not all powers of two within a factor of 2^11.
 * Where fp8_max_error of nvfp4_moe_layer_desc is not 0 any weights are taken, and rounded to e4m3. The floor of such a
 * matrix is its largest block scale's power of two / 2^10, or / 2^11 where that scale is 1 or 1.125 times it.
 *   block scale >= floor: e2m1 * block scale has 4 significant bits, to nearest, ties to even: 1.5, 3 and 6 may change;
 *   block scale < floor: floor * e2m1(e2m1 * block scale / floor), to nearest, ties to even.
 * prepare refuses a layer where that moves a matrix by more than fp8_max_error of its norm (global scale left out). What
 * is taken without rounding stays exact. With scale_block_size 32, where sizes divide by it, CUDA takes less storage and time. */

/* Where mode NVFP4 takes the global scale of the activations from. */
#define NVFP4_MOE_SCALE_STATIC 0  /* the checkpoint's input_scale, or one set by nvfp4_moe_*_set_input_scale(s) */
#define NVFP4_MOE_SCALE_DYNAMIC 1 /* per row, from its own amax: max(amax / (6 * 448), 2^-110) */

#define NVFP4_MOE_DTYPE_I32 0
#define NVFP4_MOE_DTYPE_I64 1
#define NVFP4_MOE_SF_LINEAR 0         /* block scales row-major */
#define NVFP4_MOE_SF_SWIZZLED_128X4 1 /* "32_4_4" tiles of 128 rows x 4 scales, 512 bytes each */
#define NVFP4_MOE_TILE_ROWS_ONE_ORDER 1 /* the library's choice of those that give a token the same bits in any batch */

/* What makes h of GEMM1's outputs, g (gate) and u (up), or x where a kind has no gate. L, a and b are swiglu_limit, _alpha
 * and _beta of nvfp4_moe_layer_desc; those that a kind lacks are 0 (a may be 1). */
#define NVFP4_MOE_ACTIVATION_SWIGLU 0      /* g * sigmoid(a * g) * (u + b), g = min(g, L), u = clamp(u, -L, L) BEFORE it */
#define NVFP4_MOE_ACTIVATION_SWIGLU_STEP 1 /* min(g * sigmoid(g), L) * clamp(u, -L, L): clamped AFTER the sigmoid */
#define NVFP4_MOE_ACTIVATION_SITU 2        /* b * tanh(g / b) * sigmoid(g) * L * tanh(u / L); b = 0 is 1, L = 0: ... * u */
#define NVFP4_MOE_ACTIVATION_GELU_TANH 3   /* g * (1 + tanh(sqrt(2 / pi) * (g + 0.044715 * g^3))) / 2 * u */
#define NVFP4_MOE_ACTIVATION_RELU2 4       /* max(x, 0)^2: no gate */
#define NVFP4_MOE_ACTIVATION_SILU 5        /* x * sigmoid(x): no gate */
#define NVFP4_MOE_ACTIVATION_GELU 6        /* g * (1 + erf(g / sqrt(2))) / 2 * u */

/* The order of w13's rows, which their scales and biases follow. */
#define NVFP4_MOE_ROWS_GATE_FIRST 0  /* rows 0..I-1 are gate, I..2I-1 are up; or there is no gate */
#define NVFP4_MOE_ROWS_UP_FIRST 1    /* the other way round */
#define NVFP4_MOE_ROWS_INTERLEAVED 2 /* rows 2i are gate, 2i+1 are up */

/* Limit this library's CPU worker threads, to 1 .. 1024; 0 = one for each core (the default). Results never depend
 * on it. Takes effect at the next call that computes; where the system gives no thread, that is its caller's. */
int32_t nvfp4_moe_set_num_threads(int32_t num_threads);

/* The CPU instructions in use: "avx512vnni", "avx512bf16", "avx512", "avx2" or "portable". Host buf as in last_error. */
size_t nvfp4_moe_cpu_isa(char *buf, size_t size);

/* What is built in: "cpu", or "cpu hopper portable sm100 sm120" with the CUDA kernels. Host buf as in last_error. */
size_t nvfp4_moe_build_info(char *buf, size_t size);

/* ---- The MoE layer -------------------------------------------------------------------------------------- */

typedef struct nvfp4_moe_layer nvfp4_moe_layer;
typedef struct nvfp4_moe_layer_desc {
  uint32_t struct_size;
  int32_t device_kind;        /* NVFP4_MOE_DEVICE_* */
  int32_t device_ordinal;     /* CUDA device index; 0 on the CPU */
  int32_t mode;               /* NVFP4_MOE_MODE_* */
  int32_t scale_policy;       /* NVFP4_MOE_SCALE_*, used in mode NVFP4 */
  int32_t hidden_size;        /* H, a multiple of 16 up to 2^20 */
  int32_t intermediate_size;  /* I, a multiple of 16 up to 2^20: of ONE of gate and up */
  int32_t num_experts;        /* E, up to 2^20: ids in topk_ids are 0 .. E-1 */
  int32_t num_local_experts;  /* L: experts whose weights are here; on CUDA up to 40960, or a quarter of a block's shared memory */
  int32_t first_local_expert; /* global id of local expert 0, used when forward gets no expert_map */
  int32_t top_k;              /* k, 1 .. E */
  float swiglu_limit; /* L of the activation; 0 = none */
  float swiglu_alpha; /* 0 means 1 */
  float swiglu_beta;
  int32_t tile_rows;  /* 0: the library chooses; NVFP4_MOE_TILE_ROWS_ONE_ORDER; not on the CPU: so many, for benchmarks */
  int32_t activation; /* NVFP4_MOE_ACTIVATION_* */
  int32_t has_bias;   /* 1: weights may have biases, for which every slice of the storage has room */
  float fp8_max_error; /* mode FP8: 0 refuses weights that are not exact; up to 1: rounds them, if that is all it costs */
  int32_t scale_block_size; /* mode FP8: 16, as 0; or 32: scales 2i and 2i + 1 of each row are equal, as in MXFP4, else refused */
} nvfp4_moe_layer_desc;

/* Checkpoint tensors, stacked over local experts, contiguous, block scales linear. Without a gate 2I is I, and 2 is 1. */
typedef struct nvfp4_moe_layer_weights {
  uint32_t struct_size;
  int32_t up_first;               /* NVFP4_MOE_ROWS_* */
  const uint8_t *w13;             /* e2m1x2 [L, 2I, H/2] */
  const uint8_t *w13_block_scale; /* e4m3   [L, 2I, H/16], finite and not negative */
  const float *w13_global_scale;  /* f32    [L, 2]: of gate and up, of up and gate if UP_FIRST; they may differ. Positive, on
                                     CUDA below 2^120. */
  const uint8_t *w2;              /* e2m1x2 [L, H, I/2] */
  const uint8_t *w2_block_scale;  /* e4m3   [L, H, I/16] */
  const float *w2_global_scale;   /* f32    [L], as w13's */
  /* Decode the inputs of GEMM1 and of GEMM2: each the maximum over ALL experts of the layer, local or not. 0 = the
   * checkpoint has none, which forward refuses by its name where static scales need it. */
  float w13_input_scale;
  float w2_input_scale;
  /* Added to f32 sums: before the activation, and before results are weighted. NULL = none, as where has_bias is 0. */
  const void *w13_bias; /* bf16 [L, 2I] */
  const void *w2_bias;  /* bf16 [L, H] */
} nvfp4_moe_layer_weights;

typedef struct nvfp4_moe_layer_args {
  uint32_t struct_size;
  int32_t num_tokens;              /* T; 0 is a no-op; T * k must be less than 2^31 */
  const void *x;                   /* bf16 [T, H] */
  int64_t x_row_stride;            /* elements from a row to the next, as every row stride; 0 = H, else H .. 2^40 */
  const void *topk_ids;            /* [T, k], global ids; any value may appear, -1 is padding */
  int64_t topk_ids_row_stride;     /* 0 = k */
  int32_t topk_ids_dtype;          /* NVFP4_MOE_DTYPE_* */
  int32_t num_experts_mapped;      /* length of expert_map; must equal E when expert_map is given, else 0 */
  const float *topk_weights;       /* f32 [T, k], applied once, in combine; NULL = 1 (already applied) */
  int64_t topk_weights_row_stride; /* 0 = k */
  const int32_t *expert_map;       /* i32 [E] global -> local id, -1 = not here; NULL = first_local_expert */
  void *out;                       /* bf16 [T, H], all written; overlaps nothing, but may be other columns of x's rows */
  int64_t out_row_stride;          /* 0 = H; what lies between rows is not written */
  void *workspace;                 /* 256-byte aligned scratch that overlaps nothing, or NULL: the library's */
  uint64_t workspace_size;         /* bytes, >= workspace_size(T); ignored when workspace is NULL */
  const void *shared_output;              /* bf16 [T, H] that sums begin with, apart from out and workspace; NULL = 0 */
  int64_t shared_output_row_stride;       /* 0 = H */
  struct CUevent_st *shared_output_ready; /* on CUDA: what combine waits for before it reads them; NULL = nothing */
} nvfp4_moe_layer_args;

/* Check the description and make a layer without weights. The first rule that fails is named with both numbers.
 * destroy frees it, on CUDA once its work is done and beside any capture; graphs captured of it may not run again.
 * Memory that the driver does not free then is freed with a later allocation or free, and last_error says so. */
int32_t nvfp4_moe_layer_create(const nvfp4_moe_layer_desc *desc, nvfp4_moe_layer **out);
void nvfp4_moe_layer_destroy(nvfp4_moe_layer *layer);

/* Bytes of device storage that prepare fills with the kernels' own weight layout.
 * 0 (the CPU): the weights are used in place and must outlive the layer. Otherwise: the storage must outlive
 * the layer, and the checkpoint's tensors may be freed once `stream` has passed prepare. It is num_local_experts slices
 * of equal size, one an expert: a slice may be moved to another place, or to another rank's equal layer, by a copy. */
int32_t nvfp4_moe_layer_storage_size(const nvfp4_moe_layer *layer, uint64_t *out);

/* Take the weights: check their scales, and bring them into kernel layout. May be called again with new ones. A refusal
 * writes nothing and leaves those that the layer has; where the driver fails later it has none, and forward is
 * NOT_PREPARED until the next prepare. What calibrate saw goes with its weights. Storage is 256-byte aligned. On CUDA
 * waits for the stream: not capturable. Graphs captured before take the new weights if the storage is the same, and the
 * new input scales in any case. What reads the storage elsewhere, graphs too, ends before it or begins after. */
int32_t nvfp4_moe_layer_prepare(nvfp4_moe_layer *layer, const nvfp4_moe_layer_weights *weights, void *storage,
                                uint64_t storage_size, struct CUstream_st *stream);

#define NVFP4_MOE_MATRIX_GATE 0
#define NVFP4_MOE_MATRIX_UP 1 /* also where there is no gate */
#define NVFP4_MOE_MATRIX_DOWN 2

/* What rounding to e4m3 did to weights: |rounded - exact| / |exact|, L2 norms, global scales left out. */
typedef struct nvfp4_moe_weight_error {
  uint32_t struct_size;
  float rel_l2;         /* of the matrix that it cost most; 0: no weight changed */
  int32_t expert;       /* that matrix: a local expert */
  int32_t matrix;       /* NVFP4_MOE_MATRIX_* */
  float block_rel_l2;   /* of the block of 16 that it cost most, to 2^-20 of itself */
  int32_t block_expert; /* where that block is */
  int32_t block_matrix;
  int32_t block_row;    /* in w13 or w2 of its expert, as they were given */
  int32_t block;        /* in that row */
} nvfp4_moe_weight_error;

/* Read what prepare measured into host `out`; its struct_size must be set. Of what is equal the first is named: by expert,
 * then in the order of w13's rows, w2 last. All 0 where fp8_max_error is. NOT_PREPARED before prepare. */
int32_t nvfp4_moe_layer_weight_error(const nvfp4_moe_layer *layer, nvfp4_moe_weight_error *out);

/* Scratch bytes that forward and calibrate need for up to max_tokens tokens, whatever the routing. Never decreases
 * with max_tokens; max_tokens * top_k must be less than 2^31, as in forward. The contents mean nothing before and after
 * a call and need not be cleared. Calls without a workspace take the library's. The CPU keeps as many as calls ran at
 * once. On CUDA each stream has one, and captures on it have another. It grows to twice its size or more, even during a
 * capture. What it outgrew is freed, unless a capture has used it: kept is less than its own size. Of streams without
 * captures the last 16 keep theirs. Graphs captured on one stream share a workspace, and may not run at once. A
 * caller's workspace serves one call at a time: two at once may spoil each other's numbers. */
int32_t nvfp4_moe_layer_workspace_size(const nvfp4_moe_layer *layer, int32_t max_tokens, uint64_t *out);

/* out[t] = sum over k of topk_weights[t, k] * expert(topk_ids[t, k])(x[t]), over the experts that are here;
 * f32 sums in order of k, on CUDA of results that were rounded to bf16; rows of tokens with no expert here become 0. A
 * NaN row stays in its row. Each sum begins with shared_output[t], so that all is rounded once. */
int32_t nvfp4_moe_layer_forward(const nvfp4_moe_layer *layer, const nvfp4_moe_layer_args *args,
                                struct CUstream_st *stream);

/* Forward in mode BF16 that also remembers the largest finite |input| of GEMM1 and of GEMM2 over all calls. UNSUPPORTED
 * in mode FP8, which takes no input scales. */
int32_t nvfp4_moe_layer_calibrate(nvfp4_moe_layer *layer, const nvfp4_moe_layer_args *args,
                                  struct CUstream_st *stream);

/* Turn what calibrate saw into input scales, max(amax / (6 * 448), 2^-110), and forget it. Host pointers. Fails with
 * NOT_PREPARED when calibrate saw no routed row. The scales are returned, not applied: save or reduce them
 * over ranks, then set them. Synchronises on CUDA. */
int32_t nvfp4_moe_layer_calibrated_scales(nvfp4_moe_layer *layer, float *w13_input_scale, float *w2_input_scale);

/* Use these input scales instead of the checkpoint's, until the next prepare. Each is finite and at least 2^-110. On
 * CUDA waits for no stream, and may happen during a capture: what begins on the device after it returned takes them,
 * graphs captured before included; what was enqueued earlier may take either. */
int32_t nvfp4_moe_layer_set_input_scales(nvfp4_moe_layer *layer, float w13_input_scale, float w2_input_scale);

/* ---- The linear ----------------------------------------------------------------------------------------- */

typedef struct nvfp4_moe_linear nvfp4_moe_linear;
typedef struct nvfp4_moe_linear_desc {
  uint32_t struct_size;
  int32_t device_kind;    /* as in nvfp4_moe_layer_desc */
  int32_t device_ordinal;
  int32_t mode;           /* not FP8, which is UNSUPPORTED */
  int32_t scale_policy;
  int32_t in_features;  /* a multiple of 16 up to 2^20 */
  int32_t out_features; /* 1 or more; on CUDA up to what a launch can prepare, which is 4194240 or more */
  int32_t num_parts;    /* fused projections: row groups that have a global scale each; 0 means 1; up to out_features */
  int32_t tile_rows; /* as in nvfp4_moe_layer_desc; ONE_ORDER on the CPU alone */
} nvfp4_moe_linear_desc;

typedef struct nvfp4_moe_linear_weights {
  uint32_t struct_size;
  float input_scale;          /* decodes the input; 0 = the checkpoint has none */
  const uint8_t *weight;      /* e2m1x2 [out_features, in_features/2] */
  const uint8_t *block_scale; /* e4m3   [out_features, in_features/16], linear order */
  const float *global_scale;  /* f32    [num_parts], as in nvfp4_moe_layer_weights */
  const int32_t *part_rows;   /* host i32 [num_parts], sums to out_features; may be NULL if num_parts is 1 */
  const void *bias;           /* bf16   [out_features], or NULL */
} nvfp4_moe_linear_weights;

typedef struct nvfp4_moe_linear_args {
  uint32_t struct_size;
  int32_t num_tokens;     /* T; 0 is a no-op */
  const void *x;          /* bf16 [T, in_features] */
  int64_t x_row_stride;   /* 0 = in_features */
  void *out;              /* bf16 [T, out_features], as in nvfp4_moe_layer_args */
  int64_t out_row_stride; /* 0 = out_features */
  void *workspace; /* as in nvfp4_moe_layer_args */
  uint64_t workspace_size;
} nvfp4_moe_linear_args;

/* Each as the layer's. */
int32_t nvfp4_moe_linear_create(const nvfp4_moe_linear_desc *desc, nvfp4_moe_linear **out);
void nvfp4_moe_linear_destroy(nvfp4_moe_linear *linear);

/* As the layer's, and only prepare may write it: on CUDA forward may read it beside the kernel before it on the stream. */
int32_t nvfp4_moe_linear_storage_size(const nvfp4_moe_linear *linear, uint64_t *out);
int32_t nvfp4_moe_linear_prepare(nvfp4_moe_linear *linear, const nvfp4_moe_linear_weights *weights, void *storage,
                                 uint64_t storage_size, struct CUstream_st *stream);
int32_t nvfp4_moe_linear_workspace_size(const nvfp4_moe_linear *linear, int32_t max_tokens, uint64_t *out);

/* out = x * weight^T + bias, f32 sums, rounded once to bf16; x as the mode has it. */
int32_t nvfp4_moe_linear_forward(const nvfp4_moe_linear *linear, const nvfp4_moe_linear_args *args,
                                 struct CUstream_st *stream);

/* Each as the layer's, for the one input. */
int32_t nvfp4_moe_linear_calibrate(nvfp4_moe_linear *linear, const nvfp4_moe_linear_args *args,
                                   struct CUstream_st *stream);
int32_t nvfp4_moe_linear_calibrated_scale(nvfp4_moe_linear *linear, float *input_scale);
int32_t nvfp4_moe_linear_set_input_scale(nvfp4_moe_linear *linear, float input_scale);

/* ---- What the kernels saw ------------------------------------------------------------------------------- */

/* Counters of one device since the last reset, over all layers and linears. */
typedef struct nvfp4_moe_device_status {
  uint32_t struct_size;
  int32_t reserved;           /* 0 */
  uint64_t saturated_blocks;  /* activation blocks whose scale passed 448 and was held there: input_scale too small */
  uint64_t nonfinite_values;  /* NaN or infinite activations met by the quantiser */
  uint64_t out_of_range_ids;  /* topk_ids below -1 or >= E, and expert_map entries below -1 or >= L */
  int64_t first_bad_token;    /* token (in its call) of the first such event since reset; -1 = none */
} nvfp4_moe_device_status;

/* Read the counters into host `out`; its struct_size must be set. On CUDA both wait for `stream`: not capturable. */
int32_t nvfp4_moe_device_status_read(int32_t device_kind, int32_t device_ordinal, nvfp4_moe_device_status *out,
                                     struct CUstream_st *stream);
int32_t nvfp4_moe_device_status_reset(int32_t device_kind, int32_t device_ordinal, struct CUstream_st *stream);

/* ---- The format itself (host memory; the law that every kernel matches bit for bit) ------------------------ */

typedef struct nvfp4_moe_quantize_args {
  uint32_t struct_size;
  int32_t scale_policy;  /* STATIC: global_scale is read. DYNAMIC: global_scale is written, one for each row. */
  int64_t num_rows;      /* below 2^40 */
  int64_t num_cols;      /* a multiple of 16 below 2^22 */
  const void *x;         /* bf16 [num_rows, num_cols] */
  int64_t x_row_stride;  /* 0 = num_cols */
  uint8_t *packed;       /* e2m1x2 [num_rows, num_cols/2] */
  uint8_t *block_scale;  /* e4m3; LINEAR: [num_rows, num_cols/16]. SWIZZLED: nvfp4_moe_sf_size() bytes, padding 0. */
  float *global_scale;   /* f32 [1] (STATIC) or [num_rows] (DYNAMIC) */
  int32_t sf_layout;     /* NVFP4_MOE_SF_* */
  int32_t reserved;      /* 0 */
} nvfp4_moe_quantize_args;

/* Quantise rows of bf16 to NVFP4. With g the row's global scale, per block of 16:
 *   scale = e4m3(amax * ((1 / g) / 6)), saturating at 448;  code = e2m1(x * ((1 / g) / scale)), ties to even;
 * every operation rounded once to f32. A block that holds a NaN gets scale NaN. Counted in the CPU's status. */
int32_t nvfp4_moe_quantize(const nvfp4_moe_quantize_args *args);

/* Decode rows of linear-order NVFP4 to f32 [num_rows, num_cols]: e2m1 * block_scale, exact, then * global_scale. */
int32_t nvfp4_moe_dequantize(const uint8_t *packed, const uint8_t *block_scale, float global_scale, int64_t num_rows,
                             int64_t num_cols, float *out);

/* Cast MXFP4 (one e8m0 scale, 2^(byte - 127), for 32 neighbours) to NVFP4 of the same codes and values. With g the
 * exponent of the largest scale not of 32 zeros, less 8, but -126 at the least (0 if all are): *global_scale = 2^g; both
 * block scales = 2^(byte - 127 - g), or 0 of zeros. Refused: NaN (255); scales, not of zeros, a factor of more than 2^17
 * apart (e4m3 has no more). Shapes as in dequantize; e8m0_scale [num_rows, num_cols/32], num_cols a multiple of 32. */
int32_t nvfp4_moe_cast_mxfp4(const uint8_t *packed, const uint8_t *e8m0_scale, int64_t num_rows, int64_t num_cols,
                             uint8_t *block_scale, float *global_scale);

/* Bytes of a swizzled block-scale buffer: rows padded to 128, columns (of scales) to 4. This and the next function
 * give UINT64_MAX for what no memory holds: past 2^40 rows or 2^20 columns. */
uint64_t nvfp4_moe_sf_size(uint64_t num_rows, uint64_t num_sf_cols);

/* Where scale (row, sf_col) lies in it: tile * 512 + row % 32 * 16 + row % 128 / 32 * 4 + sf_col % 4, tiles along K
 * first. Source: PTX ISA, tcgen05, scale-factor layout for scale_vec::4X. */
uint64_t nvfp4_moe_sf_offset(uint64_t row, uint64_t sf_col, uint64_t num_sf_cols);

#ifdef __cplusplus
}
#endif
#include "nvfp4_moe_checkpoint.h"
#endif /* NVFP4_MOE_H */
