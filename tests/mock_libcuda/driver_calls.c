// SPDX-License-Identifier: Apache-2.0
/* Runs a layer and a linear on "CUDA device 0" with made-up addresses, and says on stderr where forward begins and
 * ends. With the stand-in libcuda nothing reads them. The arguments are the device kind, and the last mode that the
 * GPU's kernels have. Exit status 77: UNSUPPORTED. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "nvfp4_moe.h"

#define ADDRESS(n) ((void*)((uintptr_t)(n) << 32))

static void check(int32_t status) {
  char text[1024];
  if (status == NVFP4_MOE_OK) return;
  nvfp4_moe_last_error(text, sizeof text);
  fprintf(stderr, "status %d: %s\n", status, text);
  exit(status == NVFP4_MOE_UNSUPPORTED ? 77 : 1);
}

/* A child calls what takes a handle, and what opens a device; each says why not, and no call reaches the driver. */
static void refused_in_a_child(int32_t device_kind, nvfp4_moe_layer* layer) {
  fflush(stderr);
  const pid_t child = fork();
  if (child != 0) {
    int status = 1;
    if (waitpid(child, &status, 0) != child || status != 0) exit(1);
    return;
  }
  fprintf(stderr, "begin child\n");
  char text[512];
  uint64_t size;
  nvfp4_moe_device_status seen = {.struct_size = sizeof seen};
  nvfp4_moe_linear_desc desc = {
      .struct_size = sizeof desc, .device_kind = device_kind, .in_features = 64, .out_features = 64};
  nvfp4_moe_linear* linear = NULL;
  const int32_t statuses[] = {nvfp4_moe_layer_workspace_size(layer, 1, &size), nvfp4_moe_linear_create(&desc, &linear),
                              nvfp4_moe_device_status_read(device_kind, 0, &seen, NULL)};
  nvfp4_moe_layer_destroy(layer);
  nvfp4_moe_last_error(text, sizeof text);
  fprintf(stderr, "end\n%d %d %d: %s\n", statuses[0], statuses[1], statuses[2], text);
  _exit(0);
}

// Of SwiGLU; or of an activation without a gate, with biases. Weights are rounded where that may cost something.
static void run_layer(int32_t device_kind, int32_t mode, int32_t activation, int32_t scale_policy,
                      float fp8_max_error) {
  static const int32_t tokens[] = {1, 8, 512, 8192, 40000};
  struct CUstream_st* stream = ADDRESS(99);
  nvfp4_moe_layer_desc desc = {.struct_size = sizeof desc,
                               .device_kind = device_kind,
                               .mode = mode,
                               .scale_policy = scale_policy,
                               .hidden_size = 4096,
                               .intermediate_size = 2048,
                               .num_experts = 256,
                               .num_local_experts = 32,
                               .top_k = 6,
                               .activation = activation,
                               .has_bias = activation != NVFP4_MOE_ACTIVATION_SWIGLU,
                               .fp8_max_error = fp8_max_error,
                               .scale_block_size = mode == NVFP4_MOE_MODE_FP8 && fp8_max_error == 0 ? 32 : 0};
  nvfp4_moe_layer* layer = NULL;
  check(nvfp4_moe_layer_create(&desc, &layer));
  uint64_t storage = 0, workspace = 0;
  check(nvfp4_moe_layer_storage_size(layer, &storage));
  nvfp4_moe_layer_weights weights = {.struct_size = sizeof weights,
                                     .w13 = ADDRESS(1),
                                     .w13_block_scale = ADDRESS(2),
                                     .w13_global_scale = ADDRESS(3),
                                     .w2 = ADDRESS(4),
                                     .w2_block_scale = ADDRESS(5),
                                     .w2_global_scale = ADDRESS(6),
                                     .w13_input_scale = 0.01f,
                                     .w2_input_scale = 0.01f,
                                     .w13_bias = desc.has_bias ? ADDRESS(8) : NULL};
  check(nvfp4_moe_layer_prepare(layer, &weights, ADDRESS(7), storage, stream));
  for (size_t i = 0; i < sizeof tokens / sizeof *tokens; ++i) {
    check(nvfp4_moe_layer_workspace_size(layer, tokens[i], &workspace));
    nvfp4_moe_layer_args args = {.struct_size = sizeof args,
                                 .num_tokens = tokens[i],
                                 .x = ADDRESS(10),
                                 .topk_ids = ADDRESS(20),
                                 .topk_weights = ADDRESS(30),
                                 .out = ADDRESS(40),
                                 .workspace = ADDRESS(50),
                                 .workspace_size = workspace};
    const char* kind = activation == NVFP4_MOE_ACTIVATION_SWIGLU ? "forward" : "ungated";
    const char* how = fp8_max_error > 0 ? "rounded " : scale_policy == NVFP4_MOE_SCALE_STATIC ? "static " : "";
    fprintf(stderr, "begin %s%s, mode %d, %d tokens\n", how, kind, mode, tokens[i]);
    check(nvfp4_moe_layer_forward(layer, &args, stream));
    fprintf(stderr, "end\n");
  }
  if (mode == NVFP4_MOE_MODE_BF16 && activation == NVFP4_MOE_ACTIVATION_SWIGLU) {
    nvfp4_moe_layer_args args = {.struct_size = sizeof args,
                                 .num_tokens = 40000,
                                 .x = ADDRESS(10),
                                 .topk_ids = ADDRESS(20),
                                 .out = ADDRESS(40),
                                 .workspace = ADDRESS(50),
                                 .workspace_size = workspace,
                                 .shared_output = ADDRESS(60),
                                 .shared_output_ready = ADDRESS(61)};
    fprintf(stderr, "begin shared, mode %d, %d tokens\n", mode, args.num_tokens);
    check(nvfp4_moe_layer_forward(layer, &args, stream));
    fprintf(stderr, "end\n");
  }
  if (mode == NVFP4_MOE_MODE_BF16) refused_in_a_child(device_kind, layer);
  nvfp4_moe_layer_destroy(layer);
}

static void run_linear(int32_t device_kind, int32_t mode) {
  struct CUstream_st* stream = ADDRESS(99);
  nvfp4_moe_linear_desc desc = {.struct_size = sizeof desc,
                                .device_kind = device_kind,
                                .mode = mode,
                                .scale_policy = NVFP4_MOE_SCALE_DYNAMIC,
                                .in_features = 4096,
                                .out_features = 1000};
  nvfp4_moe_linear* linear = NULL;
  check(nvfp4_moe_linear_create(&desc, &linear));
  uint64_t storage = 0, workspace = 0;
  check(nvfp4_moe_linear_storage_size(linear, &storage));
  nvfp4_moe_linear_weights weights = {
      .struct_size = sizeof weights, .weight = ADDRESS(1), .block_scale = ADDRESS(2), .global_scale = ADDRESS(3)};
  check(nvfp4_moe_linear_prepare(linear, &weights, ADDRESS(7), storage, stream));
  check(nvfp4_moe_linear_workspace_size(linear, 64, &workspace));
  nvfp4_moe_linear_args args = {.struct_size = sizeof args,
                                .num_tokens = 64,
                                .x = ADDRESS(10),
                                .out = ADDRESS(40),
                                .workspace = ADDRESS(50),
                                .workspace_size = workspace};
  fprintf(stderr, "begin linear, mode %d\n", mode);
  check(nvfp4_moe_linear_forward(linear, &args, stream));
  fprintf(stderr, "end\n");
  nvfp4_moe_linear_destroy(linear);
}

int main(int argc, char** argv) {
  const int32_t device_kind = argc > 1 ? atoi(argv[1]) : NVFP4_MOE_DEVICE_CUDA;
  const int32_t last_mode = argc > 2 ? atoi(argv[2]) : NVFP4_MOE_MODE_NVFP4;
  for (int32_t mode = NVFP4_MOE_MODE_BF16; mode <= NVFP4_MOE_MODE_NVFP4; ++mode) {
    run_layer(device_kind, mode, NVFP4_MOE_ACTIVATION_SWIGLU, NVFP4_MOE_SCALE_DYNAMIC, 0);
    run_layer(device_kind, mode, NVFP4_MOE_ACTIVATION_RELU2, NVFP4_MOE_SCALE_DYNAMIC, 0);
    run_linear(device_kind, mode);
  }
  run_layer(device_kind, NVFP4_MOE_MODE_NVFP4, NVFP4_MOE_ACTIVATION_SWIGLU, NVFP4_MOE_SCALE_STATIC, 0);
  run_layer(device_kind, NVFP4_MOE_MODE_NVFP4, NVFP4_MOE_ACTIVATION_RELU2, NVFP4_MOE_SCALE_STATIC, 0);
  for (float error = 0; last_mode == NVFP4_MOE_MODE_FP8 && error < 0.2f; error += 0.1f) {
    run_layer(device_kind, NVFP4_MOE_MODE_FP8, NVFP4_MOE_ACTIVATION_SWIGLU, NVFP4_MOE_SCALE_DYNAMIC, error);
    run_layer(device_kind, NVFP4_MOE_MODE_FP8, NVFP4_MOE_ACTIVATION_RELU2, NVFP4_MOE_SCALE_DYNAMIC, error);
  }
  return 0;
}
