// SPDX-License-Identifier: Apache-2.0
/* The stand-in driver (tests/mock_libcuda/mock.c says what its numbers mean), and a small layer on it. */
#ifndef NVFP4_MOE_TESTS_CUDA_SUPPORT_H
#define NVFP4_MOE_TESTS_CUDA_SUPPORT_H

#include <dlfcn.h>

#include "support.h"

#define ADDRESS(n) ((void*)((uintptr_t)(n) << 32))

static int *capturing, *waits, *calls_left, *read_byte, *generation, *broken_captures, *prepares, *interleaved;
static uint64_t *bytes_held, *pieces, *largest, *workspace_of_the_last, *copied_to;
static const char **failing, **launched;
static uint32_t **mapped;
static const unsigned char* copied;
static struct CUstream_st* stream = ADDRESS(99);

static void* of_the_driver(const char* name) {
  void* driver = dlopen("libcuda.so.1", RTLD_NOW);
  void* found = driver ? dlsym(driver, name) : NULL;
  if (found == NULL) abort();
  return found;
}

static void find_the_driver(void) {
  capturing = of_the_driver("mock_capturing");
  waits = of_the_driver("mock_waits");
  calls_left = of_the_driver("mock_calls_left");
  read_byte = of_the_driver("mock_read_byte");
  generation = of_the_driver("mock_generation");
  broken_captures = of_the_driver("mock_broken_captures");
  prepares = of_the_driver("mock_prepares");
  interleaved = of_the_driver("mock_interleaved");
  bytes_held = of_the_driver("mock_bytes");
  pieces = of_the_driver("mock_pieces");
  largest = of_the_driver("mock_largest");
  workspace_of_the_last = of_the_driver("mock_workspace");
  copied_to = of_the_driver("mock_copied_to");
  failing = of_the_driver("mock_failing");
  launched = of_the_driver("mock_launched");
  copied = of_the_driver("mock_copied");
  mapped = of_the_driver("mock_mapped");
}

/* Did the call wait for the stream? */
#define WAITS(call)            \
  do {                         \
    const int before = *waits; \
    CHECK_OK(call);            \
    CHECK(*waits > before);    \
  } while (0)
#define DOES_NOT_WAIT(call)    \
  do {                         \
    const int before = *waits; \
    CHECK_OK(call);            \
    CHECK(*waits == before);   \
  } while (0)

typedef struct cuda_case {
  nvfp4_moe_layer* layer;
  nvfp4_moe_layer_weights weights;
  nvfp4_moe_layer_args args;
  uint64_t storage_size;
} cuda_case;

static void cuda_case_make(cuda_case* c, int32_t device_kind, int32_t mode) {
  memset(c, 0, sizeof *c);
  nvfp4_moe_layer_desc desc = {.struct_size = sizeof desc, .device_kind = device_kind, .mode = mode};
  desc.hidden_size = 256;
  desc.intermediate_size = 128;
  desc.num_experts = desc.num_local_experts = 4;
  desc.top_k = 2;
  const int32_t status = nvfp4_moe_layer_create(&desc, &c->layer);
  if (status == NVFP4_MOE_UNSUPPORTED) exit(77);
  CHECK_OK(status);
  CHECK_OK(nvfp4_moe_layer_storage_size(c->layer, &c->storage_size));
  c->weights = (nvfp4_moe_layer_weights){.struct_size = sizeof c->weights,
                                         .w13 = ADDRESS(1),
                                         .w13_block_scale = ADDRESS(2),
                                         .w13_global_scale = ADDRESS(3),
                                         .w2 = ADDRESS(4),
                                         .w2_block_scale = ADDRESS(5),
                                         .w2_global_scale = ADDRESS(6)};
  c->args = (nvfp4_moe_layer_args){
      .struct_size = sizeof c->args, .num_tokens = 8, .x = ADDRESS(10), .topk_ids = ADDRESS(20), .out = ADDRESS(40)};
}

static int32_t prepare(cuda_case* c, void* storage) {
  return nvfp4_moe_layer_prepare(c->layer, &c->weights, storage, c->storage_size, stream);
}

static int32_t forward(cuda_case* c, int32_t num_tokens) {
  c->args.num_tokens = num_tokens;
  return nvfp4_moe_layer_forward(c->layer, &c->args, stream);
}

#endif
