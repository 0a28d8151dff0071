// SPDX-License-Identifier: Apache-2.0
/* nvfp4_moe_checkpoint.h: reading checkpoints, a part of nvfp4_moe.h, which includes it. */
#ifndef NVFP4_MOE_CHECKPOINT_H
#define NVFP4_MOE_CHECKPOINT_H

#include "nvfp4_moe.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Checkpoints (host memory) -------------------------------------------------------------------------- */

typedef struct nvfp4_moe_checkpoint nvfp4_moe_checkpoint;

/* Naming and scale convention of the files. */
#define NVFP4_MOE_FORMAT_MODELOPT 1           /* weight, weight_scale, weight_scale_2, input_scale */
#define NVFP4_MOE_FORMAT_COMPRESSED_TENSORS 2 /* weight_packed, weight_global_scale (inverse), ... */
#define NVFP4_MOE_FORMAT_DEEPSEEK_V4_MIXED 3  /* quant_method fp8 with moe_quant_algo NVFP4 */
#define NVFP4_MOE_FORMAT_MXFP4 4              /* any naming of MXFP4; read_layer casts it as nvfp4_moe_cast_mxfp4 does */

typedef struct nvfp4_moe_checkpoint_layer_info {
  uint32_t struct_size;
  int32_t format; /* NVFP4_MOE_FORMAT_* */
  int32_t hidden_size;
  int32_t intermediate_size;
  int32_t num_experts;
  int32_t top_k;              /* from config.json; 0 if it does not say */
  float swiglu_limit;         /* from config.json; 0 if none */
  float routed_scaling_factor; /* from config.json; 0 if none. The engine folds it into topk_weights. */
  int32_t lossless_cast;      /* 1: every block scale is a power of two, equal for neighbouring blocks (MXFP4 cast) */
  int32_t reserved;           /* 0 */
  float w13_input_scale;      /* maximum over all experts, decoding; 0 if the checkpoint has none */
  float w2_input_scale;
  float swiglu_alpha;         /* from config.json, as in nvfp4_moe_layer_desc; 1 for SiLU */
  float swiglu_beta;
  int32_t any_activation;     /* in: 1 = the caller brings the activation: one that this library lacks is no refusal, and
                                 the three swiglu fields are 0 */
  int32_t reserved_2;         /* 0 */
  int32_t activation;         /* NVFP4_MOE_ACTIVATION_*; of one that is no refusal: SWIGLU, or RELU2 without a gate */
  int32_t has_bias;           /* 1: there are biases */
} nvfp4_moe_checkpoint_layer_info;

/* Where read_layer puts the tensors of experts [first_expert, first_expert + num_experts): host buffers of the
 * caller, shaped as in nvfp4_moe_layer_weights. */
typedef struct nvfp4_moe_checkpoint_buffers {
  uint32_t struct_size;
  int32_t first_expert;
  int32_t num_experts;
  int32_t reserved; /* 0 */
  uint8_t *w13;
  uint8_t *w13_block_scale;
  float *w13_global_scale;
  uint8_t *w2;
  uint8_t *w2_block_scale;
  float *w2_global_scale;
  void *w13_bias; /* bf16, of a matrix without bias 0; both NULL where has_bias is 0 */
  void *w2_bias;
} nvfp4_moe_checkpoint_buffers;

/* Open a directory of safetensors files (sharded or not) with its config.json. Reads no tensor's data. */
int32_t nvfp4_moe_checkpoint_open(const char *directory, nvfp4_moe_checkpoint **out);

/* The same for tensors whose names begin with `prefix`: one tower of a model that has layers of one number in several. */
int32_t nvfp4_moe_checkpoint_open_prefix(const char *directory, const char *prefix, nvfp4_moe_checkpoint **out);
void nvfp4_moe_checkpoint_destroy(nvfp4_moe_checkpoint *checkpoint);

/* Describe MoE layer `layer` (its index in the model). Checks names, shapes, dtypes and every scale of the layer.
 * UNSUPPORTED, with the key of config.json, if its experts' activation is none that nvfp4_moe_layer_desc can ask for. */
int32_t nvfp4_moe_checkpoint_layer_info_read(const nvfp4_moe_checkpoint *checkpoint, int32_t layer,
                                             nvfp4_moe_checkpoint_layer_info *out);

/* Copy a range of experts out of the files. Global scales are written in decode direction. Everything is checked before
 * the first byte is written; only where a file cannot be read to its end, or changes meanwhile, are the buffers left
 * partly written. */
int32_t nvfp4_moe_checkpoint_read_layer(const nvfp4_moe_checkpoint *checkpoint, int32_t layer,
                                        const nvfp4_moe_checkpoint_buffers *buffers);

/* The report of `nvfp4-moe inspect`: as_json 0 a table, 1 JSON, 2 JSON out of headers and single scales, without reading
 * every block scale. Host buf as in nvfp4_moe_last_error; the full length without the NUL goes to host *full_length.
 * Returns a status. */
int32_t nvfp4_moe_checkpoint_inspect(const nvfp4_moe_checkpoint *checkpoint, int32_t as_json, char *buf, size_t size,
                                     size_t *full_length);

#ifdef __cplusplus
}
#endif
#endif /* NVFP4_MOE_CHECKPOINT_H */
