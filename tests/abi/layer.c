// SPDX-License-Identifier: Apache-2.0
/* A C11 program that creates, prepares and runs a layer and a linear on the CPU, against float64. */
#include "support.h"

static void a_layer_equals_the_oracle(int32_t up_first) {
  layer_case c;
  double wanted[TOKENS * H];
  uint64_t bytes = 1;
  nvfp4_moe_layer* layer = NULL;
  layer_case_make(&c, NVFP4_MOE_MODE_BF16, up_first);

  CHECK_OK(nvfp4_moe_layer_create(&c.desc, &layer));
  CHECK_OK(nvfp4_moe_layer_storage_size(layer, &bytes));
  CHECK(bytes == 0);
  CHECK_FAILS(NVFP4_MOE_NOT_PREPARED, "prepare", nvfp4_moe_layer_forward(layer, &c.args, NULL));
  CHECK(all_bytes_are(c.out, 0xff, TOKENS * H * 2));
  CHECK_OK(nvfp4_moe_layer_prepare(layer, &c.weights, NULL, 0, NULL));

  /* The shared workspace, then one of exactly the size that was asked for: poisoned, and the same bits. */
  CHECK_OK(nvfp4_moe_layer_forward(layer, &c.args, NULL));
  layer_case_wanted(&c, wanted);
  CHECK(relative_l2(c.out, wanted, TOKENS * H) < 5e-3);
  CHECK(all_bytes_are(c.out + 4 * H, 0, H * 2)); /* a token with no expert here */

  uint16_t first[TOKENS * H];
  memcpy(first, c.out, sizeof first);
  memset(c.out, 0xff, sizeof first);
  CHECK_OK(nvfp4_moe_layer_workspace_size(layer, TOKENS, &bytes));
  CHECK(bytes > 0);
  c.args.workspace = aligned_alloc(256, (bytes + 255) / 256 * 256);
  memset(c.args.workspace, 0xff, bytes);
  c.args.workspace_size = bytes;
  CHECK_OK(nvfp4_moe_layer_forward(layer, &c.args, NULL));
  CHECK(memcmp(first, c.out, sizeof first) == 0);

  memset(c.out, 0xff, sizeof first);
  c.args.workspace_size = bytes - 1;
  CHECK_FAILS(NVFP4_MOE_WORKSPACE_TOO_SMALL, "workspace_size", nvfp4_moe_layer_forward(layer, &c.args, NULL));
  CHECK(all_bytes_are(c.out, 0xff, sizeof first));
  free(c.args.workspace);
  c.args.workspace = NULL;

  /* One thread, int64 ids, strided rows: the same bits again. */
  int64_t wide_ids[TOKENS * 3];
  memset(wide_ids, 0x7f, sizeof wide_ids);
  for (int s = 0; s < TOKENS * TOP_K; s++) wide_ids[s / TOP_K * 3 + s % TOP_K] = c.ids[s];
  c.args.topk_ids = wide_ids;
  c.args.topk_ids_dtype = NVFP4_MOE_DTYPE_I64;
  c.args.topk_ids_row_stride = 3;
  CHECK_OK(nvfp4_moe_set_num_threads(1));
  CHECK_OK(nvfp4_moe_layer_forward(layer, &c.args, NULL));
  CHECK(memcmp(first, c.out, sizeof first) == 0);
  CHECK_OK(nvfp4_moe_set_num_threads(0));

  c.args.num_tokens = 0;
  CHECK_OK(nvfp4_moe_layer_forward(layer, &c.args, NULL));
  nvfp4_moe_layer_destroy(layer);
  layer_case_free(&c);
}

/* Rows of a wider buffer, at an odd multiple of 2 bytes. Zeros add nothing; a token with no expert here becomes its
 * row. */
static void sums_begin_with_the_shared_output(void) {
  enum { WIDE = H + 3 };
  layer_case c;
  nvfp4_moe_layer* layer = NULL;
  uint16_t plain[TOKENS * H], shared[TOKENS * WIDE + 1];
  double wanted[TOKENS * H];
  layer_case_make(&c, NVFP4_MOE_MODE_BF16, 0);
  CHECK_OK(nvfp4_moe_layer_create(&c.desc, &layer));
  CHECK_OK(nvfp4_moe_layer_prepare(layer, &c.weights, NULL, 0, NULL));
  CHECK_OK(nvfp4_moe_layer_forward(layer, &c.args, NULL));
  memcpy(plain, c.out, sizeof plain);
  memset(shared, 0, sizeof shared);
  c.args.shared_output = shared + 1;
  CHECK_OK(nvfp4_moe_layer_forward(layer, &c.args, NULL)); /* stride 0: dense */
  CHECK(memcmp(plain, c.out, sizeof plain) == 0);

  layer_case_wanted(&c, wanted);
  c.args.shared_output_row_stride = WIDE;
  for (int i = 0; i < TOKENS * WIDE; i++) shared[1 + i] = bf16_from_float(0.25f * (float)(i % 13) - 1.5f);
  for (int i = 0; i < TOKENS * H; i++) wanted[i] += bf16_to_double(shared[1 + i / H * WIDE + i % H]);
  CHECK_OK(nvfp4_moe_layer_forward(layer, &c.args, NULL));
  CHECK(relative_l2(c.out, wanted, TOKENS * H) < 5e-3);
  CHECK(memcmp(c.out + 4 * H, shared + 1 + 4 * WIDE, H * 2) == 0);

  c.args.shared_output_row_stride = H - 1;
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "shared_output_row_stride is 63; ",
              nvfp4_moe_layer_forward(layer, &c.args, NULL));
  c.args.shared_output_row_stride = WIDE;
  c.args.shared_output_ready = (struct CUevent_st*)shared;
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "shared_output_ready is 0x", nvfp4_moe_layer_forward(layer, &c.args, NULL));
  c.args.shared_output_ready = NULL;
  c.args.shared_output = NULL;
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "shared_output is NULL", nvfp4_moe_layer_forward(layer, &c.args, NULL));
  c.args.shared_output = (const char*)shared + 1;
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "shared_output is 0x", nvfp4_moe_layer_forward(layer, &c.args, NULL));
  nvfp4_moe_layer_destroy(layer);
  layer_case_free(&c);
}

/* relu2 of one projection: w13 is half as long. What has no place in such a layer is refused by name. */
static void a_layer_without_a_gate(void) {
  layer_case c;
  double wanted[TOKENS * H] = {0};
  nvfp4_moe_layer* layer = NULL;
  layer_case_make(&c, NVFP4_MOE_MODE_BF16, 0);
  c.desc.activation = NVFP4_MOE_ACTIVATION_RELU2;
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "swiglu_limit is 3; activation 4 (relu2) has no such number",
              nvfp4_moe_layer_create(&c.desc, &layer));
  c.desc.swiglu_limit = c.desc.swiglu_alpha = c.desc.swiglu_beta = 0;
  c.desc.activation = 77;
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "activation is 77; ", nvfp4_moe_layer_create(&c.desc, &layer));
  c.desc.activation = NVFP4_MOE_ACTIVATION_RELU2;
  c.desc.has_bias = 2;
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "has_bias is 2; ", nvfp4_moe_layer_create(&c.desc, &layer));
  c.desc.has_bias = 0;
  CHECK_OK(nvfp4_moe_layer_create(&c.desc, &layer));
  c.weights.up_first = NVFP4_MOE_ROWS_INTERLEAVED;
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "up_first is 2; it must be 0, because there is no gate",
              nvfp4_moe_layer_prepare(layer, &c.weights, NULL, 0, NULL));
  c.weights.up_first = 0;
  c.weights.w2_bias = c.x;
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "w2_bias is given; it must be NULL where has_bias",
              nvfp4_moe_layer_prepare(layer, &c.weights, NULL, 0, NULL));
  c.weights.w2_bias = NULL;
  CHECK_OK(nvfp4_moe_layer_prepare(layer, &c.weights, NULL, 0, NULL));
  CHECK_OK(nvfp4_moe_layer_forward(layer, &c.args, NULL));
  for (int slot = 0; slot < TOKENS * TOP_K; slot++) {
    const int32_t e = c.ids[slot] - FIRST, token = slot / TOP_K;
    if (c.ids[slot] < FIRST || c.ids[slot] >= FIRST + LOCAL) continue;
    double active[I];
    for (int i = 0; i < I; i++) {
      double sum = 0;
      for (int h = 0; h < H; h++)
        sum += nvfp4_at(c.w13, c.w13_scale, e * I + i, h, H) * bf16_to_double(c.x[token * H + h]);
      active[i] = pow(fmax(sum * c.w13_global[e], 0), 2);
    }
    for (int h = 0; h < H; h++) {
      double sum = 0;
      for (int i = 0; i < I; i++) sum += nvfp4_at(c.w2, c.w2_scale, e * H + h, i, I) * active[i];
      wanted[token * H + h] += c.topk_weights[slot] * c.w2_global[e] * sum;
    }
  }
  CHECK(relative_l2(c.out, wanted, TOKENS * H) < 5e-3);
  nvfp4_moe_layer_destroy(layer);
  layer_case_free(&c);
}

static void hostile_ids_are_counted(void) {
  layer_case c;
  nvfp4_moe_layer* layer = NULL;
  nvfp4_moe_device_status status;
  memset(&status, 0, sizeof status);
  status.struct_size = sizeof status;
  layer_case_make(&c, NVFP4_MOE_MODE_BF16, 0);
  CHECK_OK(nvfp4_moe_layer_create(&c.desc, &layer));
  CHECK_OK(nvfp4_moe_layer_prepare(layer, &c.weights, NULL, 0, NULL));
  CHECK_OK(nvfp4_moe_device_status_reset(NVFP4_MOE_DEVICE_CPU, 0, NULL));
  CHECK_OK(nvfp4_moe_layer_forward(layer, &c.args, NULL));
  CHECK_OK(nvfp4_moe_device_status_read(NVFP4_MOE_DEVICE_CPU, 0, &status, NULL));
  CHECK(status.out_of_range_ids == 3);
  CHECK(status.first_bad_token == 3);
  CHECK(status.saturated_blocks == 0 && status.nonfinite_values == 0);
  CHECK_OK(nvfp4_moe_device_status_reset(NVFP4_MOE_DEVICE_CPU, 0, NULL));
  CHECK_OK(nvfp4_moe_device_status_read(NVFP4_MOE_DEVICE_CPU, 0, &status, NULL));
  CHECK(status.out_of_range_ids == 0 && status.first_bad_token == -1);
  nvfp4_moe_layer_destroy(layer);
  layer_case_free(&c);
}

static void a_linear_equals_the_oracle(void) {
  linear_case c;
  double x[TOKENS * IN], wanted[TOKENS * OUT];
  nvfp4_moe_linear* linear = NULL;
  linear_case_make(&c, NVFP4_MOE_MODE_BF16);
  CHECK_OK(nvfp4_moe_linear_create(&c.desc, &linear));
  CHECK_FAILS(NVFP4_MOE_NOT_PREPARED, "prepare", nvfp4_moe_linear_forward(linear, &c.args, NULL));
  CHECK_OK(nvfp4_moe_linear_prepare(linear, &c.weights, NULL, 0, NULL));
  CHECK_OK(nvfp4_moe_linear_forward(linear, &c.args, NULL));
  for (int i = 0; i < TOKENS * IN; i++) x[i] = bf16_to_double(c.x[i]);
  linear_case_wanted(&c, x, wanted);
  CHECK(relative_l2(c.out, wanted, TOKENS * OUT) < 5e-3);
  nvfp4_moe_linear_destroy(linear);
  linear_case_free(&c);
}

static void errors_name_numbers_and_remedy(void) {
  layer_case c;
  nvfp4_moe_layer* layer = NULL;
  layer_case_make(&c, NVFP4_MOE_MODE_BF16, 0);
  c.desc.hidden_size = 100;
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "hidden_size is 100; ", nvfp4_moe_layer_create(&c.desc, &layer));
  CHECK(layer == NULL);
  c.desc.hidden_size = H;
  c.desc.first_local_expert = EXPERTS;
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "first_local_expert", nvfp4_moe_layer_create(&c.desc, &layer));
  c.desc.first_local_expert = FIRST;
  c.desc.mode = 77;
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "mode is 77; ", nvfp4_moe_layer_create(&c.desc, &layer));
  c.desc.mode = NVFP4_MOE_MODE_FP8;
  c.desc.device_kind = NVFP4_MOE_DEVICE_CUDA_PORTABLE;
  CHECK_FAILS(NVFP4_MOE_UNSUPPORTED, "mode is 3 (fp8) for the portable", nvfp4_moe_layer_create(&c.desc, &layer));
  c.desc.device_kind = NVFP4_MOE_DEVICE_CPU;
  CHECK_OK(nvfp4_moe_layer_create(&c.desc, &layer));
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "w13_block_scale[0] (gate) is no power of two in ",
              nvfp4_moe_layer_prepare(layer, &c.weights, NULL, 0, NULL));
  nvfp4_moe_layer_destroy(layer);
  layer = NULL;
  c.desc.mode = NVFP4_MOE_MODE_BF16;

  CHECK_OK(nvfp4_moe_layer_create(&c.desc, &layer));
  c.w13_scale[5] = 0x7f; /* a NaN among the block scales */
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "w13_block_scale", nvfp4_moe_layer_prepare(layer, &c.weights, NULL, 0, NULL));
  c.w13_scale[5] = 0x80 | 0x38;
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "w13_block_scale", nvfp4_moe_layer_prepare(layer, &c.weights, NULL, 0, NULL));
  c.w13_scale[5] = 0x38;
  c.w2_global[1] = INFINITY;
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "w2_global_scale", nvfp4_moe_layer_prepare(layer, &c.weights, NULL, 0, NULL));
  c.w2_global[1] = 1;
  CHECK_OK(nvfp4_moe_layer_prepare(layer, &c.weights, NULL, 0, NULL));
  c.args.topk_ids_dtype = 9;
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "topk_ids_dtype is 9; ", nvfp4_moe_layer_forward(layer, &c.args, NULL));
  CHECK(all_bytes_are(c.out, 0xff, TOKENS * H * 2));
  nvfp4_moe_layer_destroy(layer);
  layer_case_free(&c);

  char cut[8];
  memset(cut, 'x', sizeof cut);
  const size_t full = nvfp4_moe_last_error(NULL, 0);
  CHECK(full > sizeof cut && nvfp4_moe_last_error(cut, sizeof cut) == full);
  CHECK(cut[7] == '\0' && strlen(cut) == 7);
  CHECK(nvfp4_moe_last_error(cut, 0) == full);
  nvfp4_moe_layer_destroy(NULL);
  nvfp4_moe_linear_destroy(NULL);
  nvfp4_moe_checkpoint_destroy(NULL);
}

static void an_input_scale_that_is_missing_is_named_where_it_is_needed(void) {
  for (int32_t mode = NVFP4_MOE_MODE_BF16; mode <= NVFP4_MOE_MODE_NVFP4; mode++) {
    for (int32_t policy = NVFP4_MOE_SCALE_STATIC; policy <= NVFP4_MOE_SCALE_DYNAMIC; policy++) {
      layer_case c;
      nvfp4_moe_layer* layer = NULL;
      layer_case_make(&c, mode, 0);
      c.desc.scale_policy = policy;
      c.weights.w13_input_scale = 0.01f;
      CHECK_OK(nvfp4_moe_layer_create(&c.desc, &layer));
      CHECK_OK(nvfp4_moe_layer_prepare(layer, &c.weights, NULL, 0, NULL));
      if (mode == NVFP4_MOE_MODE_NVFP4 && policy == NVFP4_MOE_SCALE_STATIC) {
        CHECK_FAILS(NVFP4_MOE_NOT_PREPARED, "w2_input_scale is 0; mode nvfp4 with static scales needs",
                    nvfp4_moe_layer_forward(layer, &c.args, NULL));
      } else {
        CHECK_OK(nvfp4_moe_layer_forward(layer, &c.args, NULL));
      }
      CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "w2_input_scale is 0; ",
                  nvfp4_moe_layer_set_input_scales(layer, 0.01f, 0));
      c.weights.w2_input_scale = -1;
      CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "w2_input_scale is -1; ",
                  nvfp4_moe_layer_prepare(layer, &c.weights, NULL, 0, NULL));
      nvfp4_moe_layer_destroy(layer);
      layer_case_free(&c);
    }
  }
}

static void prepare_forgets_what_calibrate_saw(void) {
  layer_case c;
  nvfp4_moe_layer* layer = NULL;
  float scales[2];
  layer_case_make(&c, NVFP4_MOE_MODE_BF16, 0);
  CHECK_OK(nvfp4_moe_layer_create(&c.desc, &layer));
  CHECK_OK(nvfp4_moe_layer_prepare(layer, &c.weights, NULL, 0, NULL));
  CHECK_OK(nvfp4_moe_layer_calibrate(layer, &c.args, NULL));
  c.w2_global[1] = -1;
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "w2_global_scale", nvfp4_moe_layer_prepare(layer, &c.weights, NULL, 0, NULL));
  CHECK_OK(nvfp4_moe_layer_calibrated_scales(layer, scales, scales + 1)); /* a refusal forgets nothing */
  c.w2_global[1] = 1;
  CHECK_OK(nvfp4_moe_layer_calibrate(layer, &c.args, NULL));
  CHECK_OK(nvfp4_moe_layer_prepare(layer, &c.weights, NULL, 0, NULL));
  CHECK_FAILS(NVFP4_MOE_NOT_PREPARED, "calibrated rows is 0",
              nvfp4_moe_layer_calibrated_scales(layer, scales, scales + 1));
  nvfp4_moe_layer_destroy(layer);
  layer_case_free(&c);

  linear_case n;
  nvfp4_moe_linear* linear = NULL;
  linear_case_make(&n, NVFP4_MOE_MODE_BF16);
  CHECK_OK(nvfp4_moe_linear_create(&n.desc, &linear));
  CHECK_OK(nvfp4_moe_linear_prepare(linear, &n.weights, NULL, 0, NULL));
  CHECK_OK(nvfp4_moe_linear_calibrate(linear, &n.args, NULL));
  CHECK_OK(nvfp4_moe_linear_prepare(linear, &n.weights, NULL, 0, NULL));
  CHECK_FAILS(NVFP4_MOE_NOT_PREPARED, "calibrated rows is 0", nvfp4_moe_linear_calibrated_scale(linear, scales));
  nvfp4_moe_linear_destroy(linear);
  linear_case_free(&n);
}

int main(void) {
  CHECK(nvfp4_moe_version() ==
        NVFP4_MOE_VERSION_MAJOR * 10000 + NVFP4_MOE_VERSION_MINOR * 100 + NVFP4_MOE_VERSION_PATCH);
  CHECK(nvfp4_moe_last_error(NULL, 0) == 0);
  a_layer_equals_the_oracle(0);
  a_layer_equals_the_oracle(1);
  a_layer_equals_the_oracle(NVFP4_MOE_ROWS_INTERLEAVED);
  sums_begin_with_the_shared_output();
  a_layer_without_a_gate();
  hostile_ids_are_counted();
  a_linear_equals_the_oracle();
  errors_name_numbers_and_remedy();
  an_input_scale_that_is_missing_is_named_where_it_is_needed();
  prepare_forgets_what_calibrate_saw();
  return closing_line("layer.c");
}
