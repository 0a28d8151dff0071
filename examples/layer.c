// SPDX-License-Identifier: Apache-2.0
/* A tiny MoE layer on the CPU, from weights to a checked result. C11; needs only nvfp4_moe.h and the library:
 *
 *   cc examples/layer.c $(pkg-config --cflags --libs nvfp4_moe) -o layer
 *
 * Every weight is the same number, so that the answer can be written down: with tokens whose values are all c,
 *   gate = up = c,  h = c * sigmoid(c) * c,  expert e gives (e + 1) * h,  out = sum over k of weight * (e + 1) * h. */
#include <stdio.h>
#include <string.h>

#include "nvfp4_moe.h"

enum { TOKENS = 3, HIDDEN = 64, INTER = 32, EXPERTS = 4, TOP_K = 2, BLOCK = 16 };

static uint8_t w13[EXPERTS * 2 * INTER * HIDDEN / 2], w13_block_scale[EXPERTS * 2 * INTER * HIDDEN / BLOCK];
static uint8_t w2[EXPERTS * HIDDEN * INTER / 2], w2_block_scale[EXPERTS * HIDDEN * INTER / BLOCK];
static float w13_global_scale[EXPERTS * 2], w2_global_scale[EXPERTS];
static uint16_t x[TOKENS * HIDDEN], out[TOKENS * HIDDEN]; /* bf16: the upper half of a float */

static float from_bf16(uint16_t bits) {
  const uint32_t wide = (uint32_t)bits << 16;
  float value;
  memcpy(&value, &wide, sizeof value);
  return value;
}

static uint16_t to_bf16(float value) { /* exact for the small numbers used here */
  uint32_t wide;
  memcpy(&wide, &value, sizeof wide);
  return (uint16_t)(wide >> 16);
}

/* Say what failed, in the library's words. */
static int failed(const char* what) {
  char text[512];
  nvfp4_moe_last_error(text, sizeof text);
  printf("%s: %s\n", what, text);
  return 1;
}

int main(void) {
  memset(w13, 0x22, sizeof w13); /* e2m1 code 2 is 1.0, two in a byte */
  memset(w2, 0x22, sizeof w2);
  memset(w13_block_scale, 0x38, sizeof w13_block_scale); /* e4m3 byte 0x38 is 1.0 */
  memset(w2_block_scale, 0x38, sizeof w2_block_scale);
  for (int i = 0; i < EXPERTS * 2; i++) w13_global_scale[i] = 1.0f / HIDDEN;
  for (int e = 0; e < EXPERTS; e++) w2_global_scale[e] = (float)(e + 1) / INTER;
  for (int i = 0; i < TOKENS * HIDDEN; i++) x[i] = to_bf16((float)(i / HIDDEN + 1));

  const nvfp4_moe_layer_desc desc = {.struct_size = sizeof desc,
                                     .device_kind = NVFP4_MOE_DEVICE_CPU,
                                     .hidden_size = HIDDEN,
                                     .intermediate_size = INTER,
                                     .num_experts = EXPERTS,
                                     .num_local_experts = EXPERTS,
                                     .top_k = TOP_K};
  const nvfp4_moe_layer_weights weights = {.struct_size = sizeof weights,
                                           .w13 = w13,
                                           .w13_block_scale = w13_block_scale,
                                           .w13_global_scale = w13_global_scale,
                                           .w2 = w2,
                                           .w2_block_scale = w2_block_scale,
                                           .w2_global_scale = w2_global_scale};
  const int32_t topk_ids[TOKENS * TOP_K] = {0, 1, 2, 3, 3, -1}; /* -1: the last token asks for one expert only */
  const float topk_weights[TOKENS * TOP_K] = {0.5f, 0.5f, 0.75f, 0.25f, 1, 1};
  const nvfp4_moe_layer_args args = {.struct_size = sizeof args,
                                     .num_tokens = TOKENS,
                                     .x = x,
                                     .topk_ids = topk_ids,
                                     .topk_ids_dtype = NVFP4_MOE_DTYPE_I32,
                                     .topk_weights = topk_weights,
                                     .out = out};

  nvfp4_moe_layer* layer = NULL;
  if (nvfp4_moe_layer_create(&desc, &layer) != NVFP4_MOE_OK) return failed("create");
  /* On the CPU the weights are used in place: no storage, no stream. They must outlive the layer. */
  if (nvfp4_moe_layer_prepare(layer, &weights, NULL, 0, NULL) != NVFP4_MOE_OK) return failed("prepare");
  if (nvfp4_moe_layer_forward(layer, &args, NULL) != NVFP4_MOE_OK) return failed("forward");
  nvfp4_moe_layer_destroy(layer);

  int wrong = 0;
  for (int t = 0; t < TOKENS; t++) {
    static const float sigmoid[TOKENS] = {0.731059f, 0.880797f, 0.952574f}; /* of 1, 2 and 3 */
    const float c = (float)(t + 1), h = c * sigmoid[t] * c;
    float wanted = 0;
    for (int s = t * TOP_K; s < (t + 1) * TOP_K; s++)
      if (topk_ids[s] >= 0) wanted += topk_weights[s] * (float)(topk_ids[s] + 1) * h;
    for (int i = 0; i < HIDDEN; i++) {
      const float ratio = from_bf16(out[t * HIDDEN + i]) / wanted;
      wrong += !(ratio > 0.99f && ratio < 1.01f); /* a NaN is wrong, too */
    }
    printf("token %d: %.3f, wanted %.3f\n", t, from_bf16(out[t * HIDDEN]), wanted);
  }
  printf("layer.c: %s\n", wrong ? "WRONG" : "correct");
  return wrong != 0;
}
