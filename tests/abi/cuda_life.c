// SPDX-License-Identifier: Apache-2.0
/* The life of layers and linears on CUDA: nothing lost and nothing stale between birth and death, over a stand-in
 * driver (tests/mock_libcuda) any of whose calls may fail. The argument is the device kind. Exit status 77: no kernels.
 */
#include <math.h>
#include <pthread.h>

#include "cuda_support.h"

enum { HOPPER = NVFP4_MOE_DEVICE_CUDA };

static float copied_float(int i) {
  float value;
  memcpy(&value, copied + 4 * i, sizeof value);
  return value;
}

/* Nothing is written, not even what calibrate saw. */
static void a_refused_prepare_writes_nothing(int32_t kind, int32_t mode) {
  cuda_case c;
  cuda_case_make(&c, kind, mode);
  c.weights.w13_input_scale = c.weights.w2_input_scale = 0.5f;
  CHECK_OK(prepare(&c, ADDRESS(7)));
  const int before = *prepares;
  *read_byte = 1; /* of the counter of broken scales */
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "number of broken weight scales is ", prepare(&c, ADDRESS(7)));
  *read_byte = 0;
  CHECK(*prepares == before && strcmp(*launched, "check_scales") == 0);
  CHECK(copied_float(0) == 0 && copied_float(1) == 0); /* the last copy: that counter's zero */
  CHECK_OK(forward(&c, 8));
  nvfp4_moe_layer_destroy(c.layer);
}

/* After so many calls of the driver one fails, if there are as many. */
static int32_t prepare_with(cuda_case* c, int calls, int* has_failed) {
  *calls_left = calls;
  const int32_t status = prepare(c, ADDRESS(7));
  *has_failed = *calls_left < 0;
  *calls_left = -1;
  return status;
}

/* Calls of a prepare fail, one after another: what is not written yet leaves the old weights, else there are none. */
static void a_prepare_that_fails_leaves_the_old_weights_or_none(int32_t kind, int32_t mode) {
  cuda_case c;
  cuda_case_make(&c, kind, mode);
  c.weights.w13_input_scale = c.weights.w2_input_scale = 0.5f;
  int unwritten = 0, half_written = 0, has_failed = 1;
  for (int calls = 0; has_failed; ++calls) {
    CHECK_OK(prepare(&c, ADDRESS(7)));
    const int before = *prepares;
    const int32_t status = prepare_with(&c, calls, &has_failed);
    if (status == NVFP4_MOE_OK || *prepares == before) {
      CHECK_OK(forward(&c, 8));
      unwritten++;
    } else {
      CHECK_FAILS(NVFP4_MOE_NOT_PREPARED, "its last prepare failed after it began to write", forward(&c, 8));
      CHECK_FAILS(NVFP4_MOE_NOT_PREPARED, "prepare again", nvfp4_moe_layer_calibrate(c.layer, &c.args, stream));
      half_written++;
    }
    CHECK(status == NVFP4_MOE_OK || status == NVFP4_MOE_CUDA);
  }
  CHECK(unwritten > 5 && half_written > 3);
  CHECK_OK(forward(&c, 8));
  nvfp4_moe_layer_destroy(c.layer);
}

/* The layer's in the state of the device: {largest inputs, input scales}. NaN is none. */
static void prepare_forgets_what_calibrate_saw_and_earlier_input_scales(int32_t kind) {
  cuda_case c;
  cuda_case_make(&c, kind, NVFP4_MOE_MODE_NVFP4);
  CHECK_OK(prepare(&c, ADDRESS(7)));
  CHECK(copied_float(0) == -1 && copied_float(1) == -1 && isnan(copied_float(2)) && isnan(copied_float(3)));
  c.weights.w13_input_scale = 0.5f;
  CHECK_OK(prepare(&c, ADDRESS(7)));
  CHECK(copied_float(0) == -1 && copied_float(1) == -1 && copied_float(2) == 0.5f && isnan(copied_float(3)));
  CHECK_FAILS(NVFP4_MOE_NOT_PREPARED, "w2_input_scale is 0; mode nvfp4 with static scales needs", forward(&c, 8));
  nvfp4_moe_layer_destroy(c.layer);
}

/* Kernels read them there, so that graphs captured before take them. */
static void input_scales_are_set_on_the_device_beside_any_capture(int32_t kind) {
  cuda_case c;
  cuda_case_make(&c, kind, NVFP4_MOE_MODE_NVFP4);
  CHECK_OK(prepare(&c, ADDRESS(7)));
  const uint64_t state = *copied_to;
  CHECK_FAILS(NVFP4_MOE_NOT_PREPARED, "w13_input_scale and w2_input_scale are 0", forward(&c, 8));
  *capturing = 1;
  int32_t status = -1, calls = 0;
  for (; status != NVFP4_MOE_OK && calls < 100; ++calls) {
    CHECK_FAILS(NVFP4_MOE_NOT_PREPARED, "w13_input_scale and w2_input_scale are 0", forward(&c, 8));
    *calls_left = calls;
    status = nvfp4_moe_layer_set_input_scales(c.layer, 0.25f, 0.75f);
    *calls_left = -1;
    CHECK(status == NVFP4_MOE_OK || status == NVFP4_MOE_CUDA);
  }
  CHECK(calls > 4 && *copied_to == state + 8 && copied_float(0) == 0.25f && copied_float(1) == 0.75f);
  CHECK_OK(forward(&c, 8));
  *capturing = 0;
  CHECK(*broken_captures == 0);
  nvfp4_moe_layer_destroy(c.layer);
}

/* The first even opens the device, which keeps memory of its own. */
static void a_layer_is_born_and_dies_beside_a_capture(int32_t kind) {
  cuda_case c;
  *capturing = 1;
  cuda_case_make(&c, kind, NVFP4_MOE_MODE_BF16);
  nvfp4_moe_layer_destroy(c.layer);
  const uint64_t before = *pieces;
  cuda_case_make(&c, kind, NVFP4_MOE_MODE_BF16);
  CHECK(*pieces == before + 1);
  nvfp4_moe_layer_destroy(c.layer);
  *capturing = 0;
  CHECK(*pieces == before && *broken_captures == 0);
}

/* Any call of create and destroy may fail: what could not be freed is freed by whoever comes next. */
static void no_failure_loses_memory(int32_t kind) {
  cuda_case c;
  cuda_case_make(&c, kind, NVFP4_MOE_MODE_BF16);
  const uint64_t before = *pieces;
  *failing = "cuMemFree_v2";
  nvfp4_moe_layer_destroy(c.layer);
  char text[512];
  nvfp4_moe_last_error(text, sizeof text);
  CHECK(strstr(text, "cuMemFree is 2") != NULL && strstr(text, "The memory is kept, and freed where a later") != NULL);
  CHECK(*pieces == before);
  *failing = NULL;
  cuda_case_make(&c, kind, NVFP4_MOE_MODE_BF16);
  CHECK(*pieces == before); /* the old one's is freed */

  nvfp4_moe_layer_desc desc = {.struct_size = sizeof desc, .device_kind = kind, .hidden_size = 64};
  desc.intermediate_size = 64;
  desc.num_experts = desc.num_local_experts = desc.top_k = 1;
  for (int calls = 0; calls < 40; ++calls) {
    nvfp4_moe_layer* layer = NULL;
    *calls_left = calls;
    CHECK((nvfp4_moe_layer_create(&desc, &layer) == NVFP4_MOE_OK) == (layer != NULL));
    nvfp4_moe_layer_destroy(layer);
    *calls_left = -1;
  }
  nvfp4_moe_layer_destroy(c.layer);
  CHECK(*pieces == before - 1);
}

static uint64_t workspace_size(const cuda_case* c, int32_t num_tokens) {
  uint64_t size = 0;
  CHECK_OK(nvfp4_moe_layer_workspace_size(c->layer, num_tokens, &size));
  return size;
}

/* Every number of tokens up to 1024 once, eager, then each of them captured. */
static void a_workspace_grows_by_doubling_and_what_a_capture_used_is_kept(int32_t kind) {
  cuda_case c;
  cuda_case_make(&c, kind, NVFP4_MOE_MODE_BF16);
  CHECK_OK(prepare(&c, ADDRESS(7)));
  for (int captured = 0; captured <= 1; ++captured) {
    ++*generation; /* a stream without a workspace yet, whose captures have none either */
    stream = ADDRESS(captured ? 700 + kind : 99);
    const uint64_t before = *bytes_held, pieces_before = *pieces;
    *largest = 0;
    *capturing = captured;
    int32_t moved = 0;
    for (int32_t tokens = 1; tokens <= 1024; ++tokens) {
      const uint64_t last = *workspace_of_the_last, held = *bytes_held - before;
      CHECK_OK(forward(&c, tokens));
      moved += *workspace_of_the_last != last;
      CHECK(*largest >= workspace_size(&c, tokens));
      CHECK(*bytes_held - before <= 2 * *largest);
      CHECK(captured ? *bytes_held - before >= held : *pieces == pieces_before + 1);
    }
    CHECK(moved < 16 && *largest <= 2 * workspace_size(&c, 1024));
    *capturing = 0;
  }
  stream = ADDRESS(99);
  CHECK(*broken_captures == 0);
  nvfp4_moe_layer_destroy(c.layer);
}

static uint64_t workspace_on(cuda_case* c, int n) {
  c->args.num_tokens = 8;
  CHECK_OK(nvfp4_moe_layer_forward(c->layer, &c->args, ADDRESS(n)));
  return *workspace_of_the_last;
}

static void streams_never_share_a_workspace_and_many_are_bounded(int32_t kind) {
  cuda_case c;
  cuda_case_make(&c, kind, NVFP4_MOE_MODE_BF16);
  CHECK_OK(prepare(&c, ADDRESS(7)));
  ++*generation;
  const uint64_t a = workspace_on(&c, 201), b = workspace_on(&c, 202);
  CHECK(a != b && workspace_on(&c, 201) == a && workspace_on(&c, 202) == b);
  *capturing = 1;
  const uint64_t graphs = workspace_on(&c, 201); /* not that of the stream's eager calls */
  CHECK(graphs != a && graphs != b && workspace_on(&c, 201) == graphs);
  *capturing = 0;
  CHECK(workspace_on(&c, 201) == a);
  const uint64_t before = *pieces;
  for (int n = 300; n < 400; ++n) CHECK(workspace_on(&c, n) != graphs);
  CHECK(*pieces <= before + 16);
  ++*generation; /* the same handles, other streams: graphs of the earlier ones may still run */
  CHECK(workspace_on(&c, 201) != graphs);
  for (int n = 0; n < 100; ++n, ++*generation) workspace_on(&c, 201);
  CHECK(*pieces <= before + 16);
  nvfp4_moe_layer_destroy(c.layer);
}

static void* forward_2000_times(void* c) {
  cuda_case own = *(cuda_case*)c;
  int failed = 0;
  for (int i = 0; i < 2000; ++i) failed += forward(&own, 8) != NVFP4_MOE_OK;
  return failed == 0 ? c : NULL;
}

/* Their launches would compute in one workspace, mixed. */
static void threads_on_one_stream_without_a_workspace_take_turns(int32_t kind) {
  cuda_case c;
  cuda_case_make(&c, kind, NVFP4_MOE_MODE_BF16);
  CHECK_OK(prepare(&c, ADDRESS(7)));
  CHECK_OK(forward(&c, 8));
  const int before = *interleaved;
  pthread_t threads[2];
  for (int i = 0; i < 2; ++i) CHECK(pthread_create(&threads[i], NULL, forward_2000_times, &c) == 0);
  for (int i = 0; i < 2; ++i) {
    void* done = NULL;
    CHECK(pthread_join(threads[i], &done) == 0 && done == &c);
  }
  CHECK(*interleaved == before);
  nvfp4_moe_layer_destroy(c.layer);
}

/* A driver that refuses the larger workspace leaves the next call one to try. */
static void a_workspace_that_cannot_grow_is_tried_again(int32_t kind) {
  cuda_case c;
  cuda_case_make(&c, kind, NVFP4_MOE_MODE_BF16);
  CHECK_OK(prepare(&c, ADDRESS(7)));
  ++*generation;
  CHECK_OK(forward(&c, 8));
  *failing = "cuMemAlloc_v2";
  CHECK_FAILS(NVFP4_MOE_CUDA, "Growing a shared workspace to ", forward(&c, 1024));
  CHECK_FAILS(NVFP4_MOE_CUDA, "cuMemAlloc is 2", forward(&c, 8));
  *failing = NULL;
  CHECK_OK(forward(&c, 1024));
  nvfp4_moe_layer_destroy(c.layer);
}

static void lives_one_after_another_take_no_memory(int32_t kind) {
  uint64_t before = 0;
  for (int life = 0; life < 50; ++life) {
    cuda_case c;
    cuda_case_make(&c, kind, life % 2 ? NVFP4_MOE_MODE_NVFP4 : NVFP4_MOE_MODE_BF16);
    c.weights.w13_input_scale = c.weights.w2_input_scale = 0.5f;
    CHECK_OK(prepare(&c, ADDRESS(7)));
    *capturing = 1;
    CHECK_OK(forward(&c, 64));
    *capturing = 0;
    nvfp4_moe_layer_destroy(c.layer);
    if (life == 1) before = *bytes_held;
  }
  CHECK(*bytes_held == before && *broken_captures == 0);
}

static nvfp4_moe_linear_desc linear_desc(int32_t kind, int32_t out_features) {
  nvfp4_moe_linear_desc desc = {.struct_size = sizeof desc, .device_kind = kind, .mode = NVFP4_MOE_MODE_NVFP4};
  desc.in_features = 64;
  desc.out_features = out_features;
  return desc;
}

static void a_linear_lives_as_a_layer_does(int32_t kind) {
  const nvfp4_moe_linear_desc desc = linear_desc(kind, 100);
  const nvfp4_moe_linear_weights weights = {
      .struct_size = sizeof weights, .weight = ADDRESS(1), .block_scale = ADDRESS(2), .global_scale = ADDRESS(3)};
  const nvfp4_moe_linear_args args = {
      .struct_size = sizeof args, .num_tokens = 8, .x = ADDRESS(10), .out = ADDRESS(40)};
  nvfp4_moe_linear* linear = NULL;
  uint64_t size = 0;
  CHECK_OK(nvfp4_moe_linear_create(&desc, &linear));
  CHECK_OK(nvfp4_moe_linear_storage_size(linear, &size));
  int32_t status = -1;
  int half_written = 0;
  for (int calls = 0; status != NVFP4_MOE_OK && calls < 100; ++calls) {
    CHECK_OK(nvfp4_moe_linear_prepare(linear, &weights, ADDRESS(7), size, stream));
    CHECK(copied_float(0) == -1 && isnan(copied_float(2)));
    CHECK_FAILS(NVFP4_MOE_NOT_PREPARED, "input_scale is 0", nvfp4_moe_linear_forward(linear, &args, stream));
    *capturing = 1;
    CHECK_OK(nvfp4_moe_linear_set_input_scale(linear, 0.5f));
    CHECK(copied_float(0) == 0.5f);
    CHECK_OK(nvfp4_moe_linear_forward(linear, &args, stream));
    *capturing = 0;
    const int before = *prepares;
    *calls_left = calls;
    status = nvfp4_moe_linear_prepare(linear, &weights, ADDRESS(7), size, stream);
    *calls_left = -1;
    if (status != NVFP4_MOE_OK && *prepares != before) {
      CHECK_FAILS(NVFP4_MOE_NOT_PREPARED, "the linear has 0 prepared weights: its last prepare failed after it began",
                  nvfp4_moe_linear_forward(linear, &args, stream));
      half_written++;
    } else if (status != NVFP4_MOE_OK) {
      CHECK_OK(nvfp4_moe_linear_forward(linear, &args, stream));
    }
  }
  CHECK(status == NVFP4_MOE_OK && half_written > 3);
  *failing = "cuMemFree_v2";
  nvfp4_moe_linear_destroy(linear);
  *failing = NULL;
  char text[512];
  nvfp4_moe_last_error(text, sizeof text);
  CHECK(strstr(text, "cuMemFree is 2") != NULL);
  CHECK(*broken_captures == 0);
}

static void what_no_launch_can_take_is_refused_at_create(int32_t kind) {
  nvfp4_moe_layer_desc layer = {.struct_size = sizeof layer, .device_kind = kind, .hidden_size = 64};
  layer.intermediate_size = 64;
  layer.num_experts = 1 << 20;
  layer.top_k = 1;
  nvfp4_moe_layer* made = NULL;
  layer.num_local_experts = 60000;
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "num_local_experts is 60000; on CUDA it must be at most 40960",
              nvfp4_moe_layer_create(&layer, &made));
  layer.num_local_experts = 40960;
  CHECK_OK(nvfp4_moe_layer_create(&layer, &made));
  nvfp4_moe_layer_destroy(made);

  nvfp4_moe_linear_desc desc = linear_desc(kind, 4194240);
  nvfp4_moe_linear* linear = NULL;
  CHECK_OK(nvfp4_moe_linear_create(&desc, &linear));
  nvfp4_moe_linear_destroy(linear);
  if (kind == HOPPER) {
    desc.out_features = 5000000;
    CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "out_features is 5000000; with 64 columns it must be at most 4194240",
                nvfp4_moe_linear_create(&desc, &linear));
  } else {
    desc.in_features = 1 << 20;
    desc.out_features = INT32_MAX;
    CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT,
                "out_features is 2147483647; with 1048576 columns it must be at most 8388480",
                nvfp4_moe_linear_create(&desc, &linear));
  }
}

int main(int argc, char** argv) {
  const int32_t kind = argc > 1 ? atoi(argv[1]) : HOPPER;
  find_the_driver();
  a_layer_is_born_and_dies_beside_a_capture(kind);
  for (int32_t mode = NVFP4_MOE_MODE_BF16; mode <= (kind == HOPPER ? NVFP4_MOE_MODE_FP8 : NVFP4_MOE_MODE_NVFP4);
       ++mode) {
    a_refused_prepare_writes_nothing(kind, mode);
    a_prepare_that_fails_leaves_the_old_weights_or_none(kind, mode);
  }
  prepare_forgets_what_calibrate_saw_and_earlier_input_scales(kind);
  input_scales_are_set_on_the_device_beside_any_capture(kind);
  no_failure_loses_memory(kind);
  a_workspace_grows_by_doubling_and_what_a_capture_used_is_kept(kind);
  streams_never_share_a_workspace_and_many_are_bounded(kind);
  threads_on_one_stream_without_a_workspace_take_turns(kind);
  a_workspace_that_cannot_grow_is_tried_again(kind);
  lives_one_after_another_take_no_memory(kind);
  a_linear_lives_as_a_layer_does(kind);
  what_no_launch_can_take_is_refused_at_create(kind);
  return closing_line("cuda_life.c");
}
