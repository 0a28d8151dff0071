// SPDX-License-Identifier: Apache-2.0
/* What nvfp4_moe.h says of CUDA and a stand-in driver (tests/mock_libcuda) can show: who waits, what a capture refuses,
 * what a driver's failure becomes. The argument is the device kind. Exit status 77: built without kernels. */
#include "cuda_support.h"

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

static void a_capture_refuses_what_waits(cuda_case* c) {
  *capturing = 1;
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "prepare waits for the stream, which a capture forbids",
              prepare(c, ADDRESS(7)));
  CHECK_OK(forward(c, 64));
  *capturing = 0;
  CHECK(*broken_captures == 0);
}

static void the_drivers_failure_names_call_and_device(cuda_case* c) {
  *failing = "cuLaunchKernelEx";
  CHECK_FAILS(NVFP4_MOE_CUDA, "route_small", forward(c, 8));
  CHECK_FAILS(NVFP4_MOE_CUDA, "cuLaunchKernelEx", forward(c, 8));
  CHECK_FAILS(NVFP4_MOE_CUDA, "CUDA device 0", forward(c, 8));
  *failing = NULL;
  CHECK_OK(forward(c, 8));
}

/* A kernel that waited in vain left a record and trapped (kernels/common/wait.cuh): the first of its table here. */
static void a_kernel_that_gave_up_is_named(cuda_case* c) {
  const uint32_t record[4] = {1, 5, 3 | 1 << 16, 30000}; /* HangRecord of kernels/params.h */
  memcpy(*mapped, record, sizeof record);
  *failing = "cuStreamSynchronize";
  CHECK_FAILS(NVFP4_MOE_CUDA, "cuStreamSynchronize is 2 (stand-in); it must be 0.", prepare(c, ADDRESS(7)));
  CHECK_FAILS(NVFP4_MOE_CUDA, "Kernel route_small, block 5, waited 30 s for barrier 3 (parity 1) on CUDA device 0.",
              prepare(c, ADDRESS(7)));
  memset(*mapped, 0, sizeof record);
  char text[512];
  CHECK_FAILS(NVFP4_MOE_CUDA, "cuStreamSynchronize", prepare(c, ADDRESS(7)));
  nvfp4_moe_last_error(text, sizeof text);
  CHECK(strstr(text, "waited") == NULL);
  *failing = NULL;
}

int main(int argc, char** argv) {
  const int32_t device_kind = argc > 1 ? atoi(argv[1]) : NVFP4_MOE_DEVICE_CUDA;
  cuda_case c;
  find_the_driver();
  cuda_case_make(&c, device_kind, NVFP4_MOE_MODE_BF16);
  storage_is_aligned_and_large_enough(&c);
  only_forward_and_calibrate_do_not_wait(&c, device_kind);
  a_capture_refuses_what_waits(&c);
  the_drivers_failure_names_call_and_device(&c);
  a_kernel_that_gave_up_is_named(&c);
  nvfp4_moe_layer_destroy(c.layer);
  return closing_line("cuda.c");
}
