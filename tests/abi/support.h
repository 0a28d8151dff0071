// SPDX-License-Identifier: Apache-2.0
/* What the C and C++ programs share: CHECK, random weights, and a naive float64 oracle that knows nothing of the
 * library but the format. C11 and C++17. */
#ifndef SUPPORT_H
#define SUPPORT_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nvfp4_moe.h"

/* ---- Checks ------------------------------------------------------------------------------------------------ */

static int checks_passed, checks_failed;

static inline void check(int holds, const char* text, const char* file, int line) {
  if (holds) {
    checks_passed++;
    return;
  }
  char error[512];
  nvfp4_moe_last_error(error, sizeof error);
  checks_failed++;
  printf("%s:%d: %s does not hold; last error: %s\n", file, line, text, error);
}
#define CHECK(condition) check((condition) ? 1 : 0, #condition, __FILE__, __LINE__)

/* The status is `code`, and on failure the last error says `part`. */
static inline void check_status(int32_t status, int32_t code, const char* part, const char* text, const char* file,
                                int line) {
  char error[1024];
  nvfp4_moe_last_error(error, sizeof error);
  const int as_wanted = status == code && (code == NVFP4_MOE_OK || strstr(error, part) != NULL);
  if (!as_wanted) printf("wanted status %d with \"%s\", got status %d\n", (int)code, part, (int)status);
  check(as_wanted, text, file, line);
}
#define CHECK_OK(call) check_status((call), NVFP4_MOE_OK, "", #call, __FILE__, __LINE__)
#define CHECK_FAILS(code, part, call) check_status((call), (code), (part), #call, __FILE__, __LINE__)

static inline int closing_line(const char* program) {
  printf("%s: %d checks passed, %d failed\n", program, checks_passed, checks_failed);
  return checks_failed != 0 || checks_passed == 0;
}

/* ---- Numbers ----------------------------------------------------------------------------------------------- */

static uint32_t random_state = 1;

static inline uint32_t random_u32(void) { /* Numerical Recipes' LCG; the high bits are the good ones */
  random_state = random_state * 1664525u + 1013904223u;
  return random_state >> 8;
}
static inline float random_between(float low, float high) {
  return low + (high - low) * (float)random_u32() / 16777216.0f;
}

static inline double bf16_to_double(uint16_t bits) {
  const uint32_t wide = (uint32_t)bits << 16;
  float value;
  memcpy(&value, &wide, sizeof value);
  return value;
}
static inline uint16_t bf16_from_float(float value) { /* ties to even; no NaN comes here */
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
static inline double e2m1_to_double(int code) {
  static const double values[8] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  return code & 8 ? -values[code & 7] : values[code & 7];
}
static inline double e4m3_to_double(int byte) {
  const int exponent = byte >> 3 & 15, mantissa = byte & 7;
  const double value = exponent ? ldexp(8 + mantissa, exponent - 10) : ldexp(mantissa, -9);
  return byte & 0x80 ? -value : value;
}

/* Element [row, col] of linear-order NVFP4 with `cols` columns, without the global scale. */
static inline double nvfp4_at(const uint8_t* packed, const uint8_t* block_scale, int64_t row, int64_t col,
                              int64_t cols) {
  const int64_t at = row * cols + col;
  return e2m1_to_double(packed[at / 2] >> (at % 2 * 4) & 15) * e4m3_to_double(block_scale[at / 16]);
}

static inline double relative_l2(const uint16_t* out, const double* wanted, int64_t count) {
  double difference = 0, norm = 0;
  for (int64_t i = 0; i < count; i++) {
    const double d = bf16_to_double(out[i]) - wanted[i];
    difference += d * d;
    norm += wanted[i] * wanted[i];
  }
  return sqrt(difference / norm);
}

static inline void* allocate(size_t bytes) { /* exact, so that valgrind and ASan see the first byte past the end */
  void* memory = malloc(bytes ? bytes : 1);
  if (memory == NULL) abort();
  memset(memory, 0xff, bytes);
  return memory;
}
static inline int all_bytes_are(const void* memory, int byte, size_t count) {
  for (size_t i = 0; i < count; i++)
    if (((const uint8_t*)memory)[i] != (uint8_t)byte) return 0;
  return 1;
}

static inline uint8_t* random_codes(int64_t values) {
  uint8_t* codes = (uint8_t*)allocate((size_t)values / 2);
  for (int64_t i = 0; i < values / 2; i++) codes[i] = (uint8_t)random_u32();
  return codes;
}
static inline uint8_t* random_block_scales(int64_t values) { /* 0.25 to 1.875 */
  uint8_t* scales = (uint8_t*)allocate((size_t)values / 16);
  for (int64_t i = 0; i < values / 16; i++) scales[i] = (uint8_t)(0x28 + random_u32() % 24);
  return scales;
}
static inline uint16_t* random_bf16(int64_t count, float limit) {
  uint16_t* values = (uint16_t*)allocate((size_t)count * 2);
  for (int64_t i = 0; i < count; i++) values[i] = bf16_from_float(random_between(-limit, limit));
  return values;
}

/* ---- A small layer ----------------------------------------------------------------------------------------- */

enum { H = 64, I = 48, EXPERTS = 6, LOCAL = 4, FIRST = 1, TOP_K = 2, TOKENS = 5 };

typedef struct layer_case {
  nvfp4_moe_layer_desc desc;
  nvfp4_moe_layer_weights weights;
  nvfp4_moe_layer_args args;
  float w13_global[LOCAL * 2], w2_global[LOCAL];
  uint8_t *w13, *w13_scale, *w2, *w2_scale;
  uint16_t *x, *out, *w13_bias, *w2_bias;
  int32_t ids[TOKENS * TOP_K];
  float topk_weights[TOKENS * TOP_K];
} layer_case;

static inline void layer_case_make(layer_case* c, int32_t mode, int32_t up_first) {
  memset(c, 0, sizeof *c);
  c->desc.struct_size = sizeof c->desc;
  c->desc.mode = mode;
  c->desc.scale_policy = NVFP4_MOE_SCALE_DYNAMIC;
  c->desc.hidden_size = H;
  c->desc.intermediate_size = I;
  c->desc.num_experts = EXPERTS;
  c->desc.num_local_experts = LOCAL;
  c->desc.first_local_expert = FIRST;
  c->desc.top_k = TOP_K;
  c->desc.swiglu_limit = 3.0f;
  c->desc.swiglu_alpha = 1.702f;
  c->desc.swiglu_beta = 1.0f;

  for (int e = 0; e < LOCAL; e++) { /* gate and up differ */
    c->w13_global[2 * e] = 0.02f + 0.01f * (float)e;
    c->w13_global[2 * e + 1] = 0.07f - 0.01f * (float)e;
    c->w2_global[e] = 0.03f;
  }
  c->w13 = random_codes(LOCAL * 2 * I * H);
  c->w13_scale = random_block_scales(LOCAL * 2 * I * H);
  c->w2 = random_codes(LOCAL * H * I);
  c->w2_scale = random_block_scales(LOCAL * H * I);
  c->weights.struct_size = sizeof c->weights;
  c->weights.up_first = up_first;
  c->weights.w13 = c->w13;
  c->weights.w13_block_scale = c->w13_scale;
  c->weights.w13_global_scale = c->w13_global;
  c->weights.w2 = c->w2;
  c->weights.w2_block_scale = c->w2_scale;
  c->weights.w2_global_scale = c->w2_global;
  if (up_first == NVFP4_MOE_ROWS_INTERLEAVED) { /* as gpt-oss has both */
    c->desc.has_bias = 1;
    c->weights.w13_bias = c->w13_bias = random_bf16(LOCAL * 2 * I, 1.0f);
    c->weights.w2_bias = c->w2_bias = random_bf16(LOCAL * H, 1.0f);
  }

  /* Local twice, a duplicate, a shard of another rank, padding, and both ends of hostile. */
  const int32_t ids[TOKENS * TOP_K] = {1, 4, 2, 2, 0, 3, -1, INT32_MAX, EXPERTS, INT32_MIN};
  memcpy(c->ids, ids, sizeof ids);
  for (int s = 0; s < TOKENS * TOP_K; s++) c->topk_weights[s] = random_between(-0.5f, 1.0f);
  c->x = random_bf16(TOKENS * H, 2.0f);
  c->out = (uint16_t*)allocate(TOKENS * H * 2);
  c->args.struct_size = sizeof c->args;
  c->args.num_tokens = TOKENS;
  c->args.x = c->x;
  c->args.topk_ids = c->ids;
  c->args.topk_ids_dtype = NVFP4_MOE_DTYPE_I32;
  c->args.topk_weights = c->topk_weights;
  c->args.out = c->out;
}

static inline void layer_case_free(layer_case* c) {
  free(c->w13);
  free(c->w13_scale);
  free(c->w2);
  free(c->w2_scale);
  free(c->x);
  free(c->out);
  free(c->w13_bias);
  free(c->w2_bias);
}

/* What the layer should give in mode BF16, in float64 on the dequantised weights: [TOKENS, H]. */
static inline void layer_case_wanted(const layer_case* c, double* wanted) {
  memset(wanted, 0, sizeof(double) * TOKENS * H);
  for (int slot = 0; slot < TOKENS * TOP_K; slot++) {
    const int32_t id = c->ids[slot], token = slot / TOP_K;
    if (id < FIRST || id >= FIRST + LOCAL) continue;
    const int e = id - FIRST;
    double projected[2 * I], active[I];
    for (int r = 0; r < 2 * I; r++) {
      projected[r] = 0;
      for (int h = 0; h < H; h++)
        projected[r] += nvfp4_at(c->w13, c->w13_scale, e * 2 * I + r, h, H) * bf16_to_double(c->x[token * H + h]);
      projected[r] *= c->w13_global[2 * e + (c->weights.up_first == NVFP4_MOE_ROWS_INTERLEAVED ? r % 2 : r / I)];
      if (c->w13_bias) projected[r] += bf16_to_double(c->w13_bias[e * 2 * I + r]);
    }
    const double limit = c->desc.swiglu_limit;
    for (int i = 0; i < I; i++) {
      const int gates[3] = {i, I + i, 2 * i}, ups[3] = {I + i, i, 2 * i + 1}; /* rows, by their order */
      const double gate = fmin(projected[gates[c->weights.up_first]], limit);
      const double up = fmax(-limit, fmin(projected[ups[c->weights.up_first]], limit));
      active[i] = gate / (1 + exp(-c->desc.swiglu_alpha * gate)) * (up + c->desc.swiglu_beta);
    }
    for (int h = 0; h < H; h++) {
      double sum = 0;
      for (int i = 0; i < I; i++) sum += nvfp4_at(c->w2, c->w2_scale, e * H + h, i, I) * active[i];
      const double bias = c->w2_bias ? bf16_to_double(c->w2_bias[e * H + h]) : 0;
      wanted[token * H + h] += c->topk_weights[slot] * (c->w2_global[e] * sum + bias);
    }
  }
}

/* ---- A small linear ---------------------------------------------------------------------------------------- */

enum { IN = 96, OUT = 37, PARTS = 2 };

typedef struct linear_case {
  nvfp4_moe_linear_desc desc;
  nvfp4_moe_linear_weights weights;
  nvfp4_moe_linear_args args;
  float global[PARTS];
  int32_t part_rows[PARTS];
  uint8_t *weight, *scale;
  uint16_t *x, *bias, *out;
} linear_case;

static inline void linear_case_make(linear_case* c, int32_t mode) {
  memset(c, 0, sizeof *c);
  c->desc.struct_size = sizeof c->desc;
  c->desc.mode = mode;
  c->desc.scale_policy = NVFP4_MOE_SCALE_STATIC;
  c->desc.in_features = IN;
  c->desc.out_features = OUT;
  c->desc.num_parts = PARTS;

  c->global[0] = 0.02f;
  c->global[1] = 0.5f;
  c->part_rows[0] = 30;
  c->part_rows[1] = OUT - 30;
  c->weight = random_codes(OUT * IN);
  c->scale = random_block_scales(OUT * IN);
  c->bias = random_bf16(OUT, 1.0f);
  c->weights.struct_size = sizeof c->weights;
  c->weights.input_scale = 2.0f / (6 * 448);
  c->weights.weight = c->weight;
  c->weights.block_scale = c->scale;
  c->weights.global_scale = c->global;
  c->weights.part_rows = c->part_rows;
  c->weights.bias = c->bias;

  c->x = random_bf16(TOKENS * IN, 2.0f);
  c->out = (uint16_t*)allocate(TOKENS * OUT * 2);
  c->args.struct_size = sizeof c->args;
  c->args.num_tokens = TOKENS;
  c->args.x = c->x;
  c->args.out = c->out;
}

static inline void linear_case_free(linear_case* c) {
  free(c->weight);
  free(c->scale);
  free(c->bias);
  free(c->x);
  free(c->out);
}

/* out = x * weight^T + bias in float64, of inputs [TOKENS, IN] that were quantised or not: [TOKENS, OUT]. */
static inline void linear_case_wanted(const linear_case* c, const double* x, double* wanted) {
  for (int t = 0; t < TOKENS; t++)
    for (int o = 0; o < OUT; o++) {
      double sum = 0;
      for (int i = 0; i < IN; i++) sum += nvfp4_at(c->weight, c->scale, o, i, IN) * x[t * IN + i];
      wanted[t * OUT + o] = sum * c->global[o >= c->part_rows[0]] + bf16_to_double(c->bias[o]);
    }
}

#endif
