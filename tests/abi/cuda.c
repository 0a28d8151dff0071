// SPDX-License-Identifier: Apache-2.0
/* What nvfp4_moe.h says of CUDA and a stand-in driver (tests/mock_libcuda) can show: who waits, what a capture refuses,
 * what a driver's failure becomes. The argument is the device kind. Exit status 77: built without kernels. */
#include <dlfcn.h>

#include "support.h"

#define ADDRESS(n) ((void*)((uintptr_t)(n) << 32))

static int *capturing, *waits;
static const char** failing;
static struct CUstream_st* const stream = ADDRESS(99);

static void* of_the_driver(const char* name) {
  void* driver = dlopen("libcuda.so.1", RTLD_NOW);
  void* found = driver ? dlsym(driver, name) : NULL;
  if (found == NULL) abort();
  return found;
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

static void cuda_case_make(cuda_case* c, int32_t device_kind) {
  memset(c, 0, sizeof *c);
  nvfp4_moe_layer_desc desc = {.struct_size = sizeof desc, .device_kind = device_kind, .mode = NVFP4_MOE_MODE_BF16};
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

static void storage_is_aligned_and_large_enough(cuda_case* c) {
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "at a multiple of 256 bytes, and is 128 past one",
              prepare(c, (char*)ADDRESS(7) + 128));
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "storage", prepare(c, NULL));
  c->storage_size--;
  CHECK_FAILS(NVFP4_MOE_WORKSPACE_TOO_SMALL, "storage_size", prepare(c, ADDRESS(7)));
  c->storage_size++;
}

static void only_forward_and_calibrate_do_not_wait(cuda_case* c, int32_t device_kind) {
  nvfp4_moe_device_status status = {.struct_size = sizeof status};
  float scales[2];
  WAITS(prepare(c, ADDRESS(7)));
  WAITS(nvfp4_moe_device_status_reset(device_kind, 0, stream));
  WAITS(nvfp4_moe_device_status_read(device_kind, 0, &status, stream));
  DOES_NOT_WAIT(forward(c, 8));
  DOES_NOT_WAIT(nvfp4_moe_layer_calibrate(c->layer, &c->args, stream));
  WAITS(nvfp4_moe_layer_calibrated_scales(c->layer, scales, scales + 1)); /* the driver's zeros: rows of zeros */
}

static void a_capture_refuses_what_waits_and_a_shared_workspace_that_must_grow(cuda_case* c) {
  CHECK_OK(forward(c, 64));
  *capturing = 1;
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "prepare waits for the stream, which a capture forbids",
              prepare(c, ADDRESS(7)));
  CHECK_OK(forward(c, 64));
  CHECK_FAILS(NVFP4_MOE_WORKSPACE_TOO_SMALL, "the device's shared workspace is ", forward(c, 5000));
  *capturing = 0;
  CHECK_OK(forward(c, 5000));
  *capturing = 1;
  CHECK_OK(forward(c, 5000));
  *capturing = 0;
}

static void the_drivers_failure_names_call_and_device(cuda_case* c) {
  *failing = "cuLaunchKernelEx";
  CHECK_FAILS(NVFP4_MOE_CUDA, "route_small", forward(c, 8));
  CHECK_FAILS(NVFP4_MOE_CUDA, "cuLaunchKernelEx", forward(c, 8));
  CHECK_FAILS(NVFP4_MOE_CUDA, "CUDA device 0", forward(c, 8));
  *failing = NULL;
  CHECK_OK(forward(c, 8));
}

int main(int argc, char** argv) {
  const int32_t device_kind = argc > 1 ? atoi(argv[1]) : NVFP4_MOE_DEVICE_CUDA;
  cuda_case c;
  capturing = of_the_driver("mock_capturing");
  failing = of_the_driver("mock_failing");
  waits = of_the_driver("mock_waits");
  cuda_case_make(&c, device_kind);
  storage_is_aligned_and_large_enough(&c);
  only_forward_and_calibrate_do_not_wait(&c, device_kind);
  a_capture_refuses_what_waits_and_a_shared_workspace_that_must_grow(&c);
  the_drivers_failure_names_call_and_device(&c);
  nvfp4_moe_layer_destroy(c.layer);
  return closing_line("cuda.c");
}
