// SPDX-License-Identifier: Apache-2.0
// What nvfp4_moe.h says and no other program holds, statement by statement; statements.md tells which test has which.
// Argument: a checkpoint directory, as for raii.cpp.
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "environment.h"
#include "nvfp4_moe.hpp"
#include "support.h"

using nvfp4_moe::sized;

template <typename T>
static T* moved_by_bytes(const void* pointer, int bytes) {
  return reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(pointer) + bytes);
}

struct ready_layer : layer_case {
  nvfp4_moe_layer* layer = nullptr;
  explicit ready_layer(int32_t mode = NVFP4_MOE_MODE_BF16) {
    layer_case_make(this, mode, 0);
    CHECK_OK(nvfp4_moe_layer_create(&desc, &layer));
    CHECK_OK(nvfp4_moe_layer_prepare(layer, &weights, nullptr, 0, nullptr));
  }
  ~ready_layer() {
    nvfp4_moe_layer_destroy(layer);
    layer_case_free(this);
  }
  int32_t forward() const { return nvfp4_moe_layer_forward(layer, &args, nullptr); }
  std::vector<uint16_t> output() {
    memset(out, 0xff, TOKENS * H * 2);
    CHECK_OK(forward());
    return std::vector<uint16_t>(out, out + TOKENS * H);
  }
};

struct ready_linear : linear_case {
  nvfp4_moe_linear* linear = nullptr;
  explicit ready_linear(int32_t mode = NVFP4_MOE_MODE_BF16) {
    linear_case_make(this, mode);
    CHECK_OK(nvfp4_moe_linear_create(&desc, &linear));
    CHECK_OK(nvfp4_moe_linear_prepare(linear, &weights, nullptr, 0, nullptr));
  }
  ~ready_linear() {
    nvfp4_moe_linear_destroy(linear);
    linear_case_free(this);
  }
  int32_t forward() const { return nvfp4_moe_linear_forward(linear, &args, nullptr); }
  std::vector<uint16_t> output() {
    memset(out, 0xff, TOKENS * OUT * 2);
    CHECK_OK(forward());
    return std::vector<uint16_t>(out, out + TOKENS * OUT);
  }
};

static void struct_sizes_end_at_4096() {
  std::vector<uint32_t> memory(1025, 0);
  auto* status = reinterpret_cast<nvfp4_moe_device_status*>(memory.data());
  status->struct_size = 4096;
  CHECK_OK(nvfp4_moe_device_status_read(NVFP4_MOE_DEVICE_CPU, 0, status, nullptr));
  status->struct_size = 4100;
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "struct_size is 4100; ",
              nvfp4_moe_device_status_read(NVFP4_MOE_DEVICE_CPU, 0, status, nullptr));
}

static void structs_are_filled_to_their_size_and_reserved_is_0() {
  struct {
    nvfp4_moe_device_status status;
    uint64_t behind;
  } memory;
  memset(&memory, 0xa5, sizeof memory);
  memory.status.struct_size = sizeof memory.status;
  CHECK_OK(nvfp4_moe_device_status_read(NVFP4_MOE_DEVICE_CPU, 0, &memory.status, nullptr));
  CHECK(memory.status.struct_size == sizeof memory.status && memory.status.reserved == 0);
  CHECK(memory.behind == 0xa5a5a5a5a5a5a5a5);
}

// Only live handles: to look at a destroyed one would be a read of freed memory. rust/abi/handles.rs tests those.
static void handles_of_another_kind_are_refused(const char* directory) {
  ready_layer l;
  ready_linear n;
  const nvfp4_moe::Checkpoint c(directory);
  uint64_t bytes = 77;
  size_t length = 77;
  auto* layer_of_linear = reinterpret_cast<nvfp4_moe_layer*>(n.linear);
  auto* linear_of_layer = reinterpret_cast<nvfp4_moe_linear*>(l.layer);
  auto* layer_of_checkpoint = reinterpret_cast<nvfp4_moe_layer*>(c.get());
  auto* checkpoint_of_layer = reinterpret_cast<nvfp4_moe_checkpoint*>(l.layer);
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "layer is 0x", nvfp4_moe_layer_storage_size(layer_of_linear, &bytes));
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "layer is 0x", nvfp4_moe_layer_storage_size(layer_of_checkpoint, &bytes));
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "linear is 0x", nvfp4_moe_linear_forward(linear_of_layer, &n.args, nullptr));
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "layer is 0x", nvfp4_moe_layer_set_input_scales(layer_of_linear, 1, 1));
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "checkpoint is 0x",
              nvfp4_moe_checkpoint_inspect(checkpoint_of_layer, 0, nullptr, 0, &length));
  CHECK(bytes == 77 && length == 77);
  nvfp4_moe_layer_destroy(layer_of_linear);  // nothing happens to them
  nvfp4_moe_linear_destroy(linear_of_layer);
  nvfp4_moe_checkpoint_destroy(checkpoint_of_layer);
  CHECK_OK(l.forward());
  CHECK_OK(n.forward());
}

// The layer's two threads are in raii.cpp.
static void const_handles_serve_two_threads(const char* directory) {
  ready_linear n;
  const auto wanted = n.output();
  const nvfp4_moe::Checkpoint c(directory);
  auto run = [&](std::vector<uint16_t>* out, std::string* report) {
    out->assign(TOKENS * OUT, 0xffff);
    auto args = n.args;
    args.out = out->data();
    nvfp4_moe_linear_forward(n.linear, &args, nullptr);
    *report = c.inspect(true) + std::to_string(c.layer_info(0).num_experts);
  };
  std::vector<uint16_t> outs[2];
  std::string reports[2];
  std::thread other(run, &outs[1], &reports[1]);
  run(&outs[0], &reports[0]);
  other.join();
  CHECK(outs[0] == wanted && outs[1] == wanted && reports[0] == reports[1]);
}

static void pointers_are_multiples_of_their_elements() {
  ready_layer l;
  ready_linear n;
  auto layer = [&](const std::function<void(nvfp4_moe_layer_args*)>& spoil) {
    auto args = l.args;
    spoil(&args);
    return nvfp4_moe_layer_forward(l.layer, &args, nullptr);
  };
  const int32_t invalid = NVFP4_MOE_INVALID_ARGUMENT;
  using args = nvfp4_moe_layer_args;
  CHECK_FAILS(invalid, "x is 0x", layer([](args* a) { a->x = moved_by_bytes<void>(a->x, 1); }));
  CHECK_FAILS(invalid, "topk_ids is 0x", layer([](args* a) { a->topk_ids = moved_by_bytes<void>(a->topk_ids, 2); }));
  CHECK_FAILS(invalid, "topk_weights is 0x",
              layer([](args* a) { a->topk_weights = moved_by_bytes<float>(a->topk_weights, 1); }));
  CHECK_FAILS(invalid, "out is 0x", layer([](args* a) { a->out = moved_by_bytes<void>(a->out, 1); }));
  CHECK_FAILS(invalid, "expert_map is 0x", layer([&](args* a) {
                a->num_experts_mapped = EXPERTS;
                a->expert_map = moved_by_bytes<int32_t>(l.ids, 3);
              }));
  auto weights = n.weights;
  weights.part_rows = moved_by_bytes<int32_t>(n.part_rows, 1);
  CHECK_FAILS(invalid, "part_rows is 0x", nvfp4_moe_linear_prepare(n.linear, &weights, nullptr, 0, nullptr));
  weights = n.weights;
  weights.bias = moved_by_bytes<void>(n.bias, 1);
  CHECK_FAILS(invalid, "bias is 0x", nvfp4_moe_linear_prepare(n.linear, &weights, nullptr, 0, nullptr));
}

template <typename Desc, typename Create>
static void check_bounds(const Desc& desc, int32_t Desc::* field, const std::vector<int32_t>& wrong, const char* name,
                         Create create) {
  for (int32_t value : wrong) {
    Desc spoilt = desc;
    spoilt.*field = value;
    CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, (std::string(name) + " is " + std::to_string(value) + "; ").c_str(),
                create(&spoilt));
  }
}

static void sizes_are_bounded() {
  ready_layer l;
  ready_linear n;
  auto layer = [](const nvfp4_moe_layer_desc* desc) {
    nvfp4_moe_layer* made = nullptr;
    return nvfp4_moe_layer_create(desc, &made);
  };
  auto linear = [](const nvfp4_moe_linear_desc* desc) {
    nvfp4_moe_linear* made = nullptr;
    return nvfp4_moe_linear_create(desc, &made);
  };
  const int32_t most = 1 << 20;
  using layer_desc = nvfp4_moe_layer_desc;
  using linear_desc = nvfp4_moe_linear_desc;
  check_bounds(l.desc, &layer_desc::hidden_size, {0, 8, most + 16, -16}, "hidden_size", layer);
  check_bounds(l.desc, &layer_desc::intermediate_size, {0, 40, most + 16}, "intermediate_size", layer);
  check_bounds(l.desc, &layer_desc::num_experts, {most + 1, -1}, "num_experts", layer);
  check_bounds(l.desc, &layer_desc::num_local_experts, {0, EXPERTS + 1}, "num_local_experts", layer);
  check_bounds(l.desc, &layer_desc::first_local_expert, {EXPERTS - LOCAL + 1}, "first_local_expert", layer);
  check_bounds(l.desc, &layer_desc::top_k, {0, EXPERTS + 1}, "top_k", layer);
  check_bounds(l.desc, &layer_desc::device_ordinal, {1, -1}, "device_ordinal", layer);
  check_bounds(l.desc, &layer_desc::device_kind, {3, -1}, "device_kind", layer);
  check_bounds(l.desc, &layer_desc::scale_policy, {2, -1}, "scale_policy", layer);
  check_bounds(n.desc, &linear_desc::in_features, {0, 24, most + 16}, "in_features", linear);
  check_bounds(n.desc, &linear_desc::out_features, {0, -1}, "out_features", linear);
  check_bounds(n.desc, &linear_desc::num_parts, {OUT + 1, -1}, "num_parts", linear);
  check_bounds(l.desc, &layer_desc::tile_rows, {8, -1}, "tile_rows", layer);  // on the CPU
  check_bounds(n.desc, &linear_desc::tile_rows, {8, -1}, "tile_rows", linear);
  n.desc.mode = NVFP4_MOE_MODE_FP8;
  CHECK_FAILS(NVFP4_MOE_UNSUPPORTED, "mode is 3 (fp8)", linear(&n.desc));
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "num_threads is 1025; ", nvfp4_moe_set_num_threads(1025));
}

static void tokens_are_bounded_and_none_is_a_no_op() {
  ready_layer l;
  l.args.num_tokens = INT32_MAX / TOP_K + 1;
  l.args.x = reinterpret_cast<void*>(uintptr_t{1} << 60);  // far from out, and never read
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "num_tokens is 1073741824; with top_k 2 it must be at most 1073741823",
              l.forward());
  auto nothing = sized<nvfp4_moe_layer_args>();
  CHECK_OK(nvfp4_moe_layer_forward(l.layer, &nothing, nullptr));
  ready_linear n;
  auto none = sized<nvfp4_moe_linear_args>();
  CHECK_OK(nvfp4_moe_linear_forward(n.linear, &none, nullptr));
}

static void rows_lie_apart_and_what_is_between_stays() {
  enum { WIDE = H + 3, WIDE_OUT = OUT + 5, WIDE_IN = IN + 2 };
  ready_layer l;
  const auto wanted = l.output();
  std::vector<uint16_t> x(TOKENS * WIDE, 0x7fff), out(TOKENS * WIDE, 0xa5a5);
  std::vector<float> topk_weights(TOKENS * 5, NAN);
  for (int t = 0; t < TOKENS; ++t) {
    memcpy(&x[t * WIDE], l.x + t * H, H * 2);
    memcpy(&topk_weights[t * 5], l.topk_weights + t * TOP_K, TOP_K * sizeof(float));
  }
  l.args.x = x.data();
  l.args.out = out.data();
  l.args.topk_weights = topk_weights.data();
  l.args.x_row_stride = l.args.out_row_stride = WIDE;
  l.args.topk_weights_row_stride = 5;
  CHECK_OK(l.forward());
  for (int t = 0; t < TOKENS; ++t) {
    CHECK(memcmp(&out[t * WIDE], &wanted[t * H], H * 2) == 0);
    CHECK(all_bytes_are(&out[t * WIDE + H], 0xa5, (WIDE - H) * 2));
  }

  ready_linear n;
  const auto wanted_linear = n.output();
  std::vector<uint16_t> linear_x(TOKENS * WIDE_IN, 0x7fff), linear_out(TOKENS * WIDE_OUT, 0xa5a5);
  for (int t = 0; t < TOKENS; ++t) memcpy(&linear_x[t * WIDE_IN], n.x + t * IN, IN * 2);
  n.args.x = linear_x.data();
  n.args.x_row_stride = WIDE_IN;
  n.args.out = linear_out.data();
  n.args.out_row_stride = WIDE_OUT;
  CHECK_OK(n.forward());
  for (int t = 0; t < TOKENS; ++t) {
    CHECK(memcmp(&linear_out[t * WIDE_OUT], &wanted_linear[t * OUT], OUT * 2) == 0);
    CHECK(all_bytes_are(&linear_out[t * WIDE_OUT + OUT], 0xa5, (WIDE_OUT - OUT) * 2));
  }
  n.args.out_row_stride = OUT - 1;
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "out_row_stride is 36; ", n.forward());
  n.args.out_row_stride = 0;
  n.args.out = linear_x.data();
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "out is 0x", n.forward());
}

static void a_workspace_is_aligned_and_its_size_counts_only_with_it() {
  ready_layer l;
  const auto wanted = l.output();
  l.args.workspace_size = 1;  // of no workspace
  CHECK(l.output() == wanted);
  uint64_t bytes = 0;
  CHECK_OK(nvfp4_moe_layer_workspace_size(l.layer, TOKENS, &bytes));
  std::vector<uint8_t> memory(bytes + 512);
  const uintptr_t aligned = (reinterpret_cast<uintptr_t>(memory.data()) + 255) / 256 * 256;
  l.args.workspace = reinterpret_cast<void*>(aligned + 128);
  l.args.workspace_size = bytes;
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "it must be a multiple of 256, and is 128 past one", l.forward());
  l.args.workspace = reinterpret_cast<void*>(aligned);
  CHECK(l.output() == wanted);
}

static void a_failed_prepare_leaves_the_weights() {
  ready_layer l;
  const auto wanted = l.output();
  std::vector<float> other(LOCAL, NAN);
  auto weights = l.weights;
  weights.w2_global_scale = other.data();
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "w2_global_scale[0] is NaN",
              nvfp4_moe_layer_prepare(l.layer, &weights, nullptr, 0, nullptr));
  CHECK(l.output() == wanted);
  other.assign(LOCAL, 1.0f);
  CHECK_OK(nvfp4_moe_layer_prepare(l.layer, &weights, nullptr, 0, nullptr));
  CHECK(l.output() != wanted);

  std::vector<float> pairs(LOCAL * 2, 1.0f);
  weights.w13_global_scale = pairs.data();
  for (float wrong : {0.0f, -1.0f, INFINITY}) {
    pairs[3] = wrong;
    CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "w13_global_scale[3] is ",
                nvfp4_moe_layer_prepare(l.layer, &weights, nullptr, 0, nullptr));
  }
  weights.w13_global_scale = l.weights.w13_global_scale;
  other[1] = -1.0f;
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "w2_global_scale[1] is -1; ",
              nvfp4_moe_layer_prepare(l.layer, &weights, nullptr, 0, nullptr));
}

static void input_scales_last_until_the_next_prepare() {
  ready_linear n(NVFP4_MOE_MODE_NVFP4);
  const auto wanted = n.output();
  CHECK_OK(nvfp4_moe_linear_set_input_scale(n.linear, n.weights.input_scale / 8));  // saturates
  CHECK(n.output() != wanted);
  CHECK_OK(nvfp4_moe_linear_prepare(n.linear, &n.weights, nullptr, 0, nullptr));
  CHECK(n.output() == wanted);
}

static void the_default_mode_is_bf16_and_calibrate_computes_in_it() {
  random_state = 7;
  ready_layer bf16(NVFP4_MOE_MODE_BF16);
  random_state = 7;
  ready_layer normal(NVFP4_MOE_MODE_DEFAULT);
  const auto wanted = bf16.output();
  CHECK(normal.output() == wanted);

  memset(bf16.x, 0, TOKENS * H * 2);  // zeros: the least scale there is
  CHECK_OK(nvfp4_moe_layer_calibrate(bf16.layer, &bf16.args, nullptr));
  float scales[2];
  CHECK_OK(nvfp4_moe_layer_calibrated_scales(bf16.layer, scales, scales + 1));
  CHECK(scales[0] == std::ldexp(1.0f, -110));
}

static void mode_fp8_takes_no_calibration() {
  layer_case c;
  layer_case_make(&c, NVFP4_MOE_MODE_FP8, 0);
  memset(c.w13_scale, 0x38, LOCAL * 2 * I * H / 16);  // 1, a power of two
  memset(c.w2_scale, 0x38, LOCAL * H * I / 16);
  nvfp4_moe::Layer layer(c.desc);
  layer.prepare(c.weights);
  CHECK_FAILS(NVFP4_MOE_UNSUPPORTED, "mode is 3 (fp8)", nvfp4_moe_layer_calibrate(layer.get(), &c.args, nullptr));
  CHECK(all_bytes_are(c.out, 0xff, TOKENS * H * 2));
  layer_case_free(&c);
}

static void a_linear_of_one_part_needs_no_part_rows() {
  ready_linear n;
  for (int32_t parts : {0, 1}) {
    nvfp4_moe_linear* linear = nullptr;
    n.desc.num_parts = parts;
    CHECK_OK(nvfp4_moe_linear_create(&n.desc, &linear));
    auto weights = n.weights;
    weights.part_rows = nullptr;
    weights.bias = nullptr;
    CHECK_OK(nvfp4_moe_linear_prepare(linear, &weights, nullptr, 0, nullptr));
    CHECK_OK(nvfp4_moe_linear_forward(linear, &n.args, nullptr));
    nvfp4_moe_linear_destroy(linear);
  }
}

static void rows_to_quantise_are_bounded() {
  auto args = sized<nvfp4_moe_quantize_args>();
  args.num_cols = 16;
  args.num_rows = INT64_C(1) << 40;
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "num_rows is 1099511627776; ", nvfp4_moe_quantize(&args));
  args.num_rows = 1;
  args.num_cols = 1 << 22;
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "num_cols is 4194304; ", nvfp4_moe_quantize(&args));
  for (float wrong : {0.0f, NAN, std::ldexp(1.0f, -111)}) {
    uint16_t x[16] = {};
    uint8_t packed[8], scale[1];
    args.num_cols = 16;
    args.x = x;
    args.packed = packed;
    args.block_scale = scale;
    args.global_scale = &wrong;
    CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "global_scale is ", nvfp4_moe_quantize(&args));
  }
}

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  struct_sizes_end_at_4096();
  structs_are_filled_to_their_size_and_reserved_is_0();
  handles_of_another_kind_are_refused(argv[1]);
  const_handles_serve_two_threads(argv[1]);
  pointers_are_multiples_of_their_elements();
  sizes_are_bounded();
  tokens_are_bounded_and_none_is_a_no_op();
  rows_lie_apart_and_what_is_between_stays();
  a_workspace_is_aligned_and_its_size_counts_only_with_it();
  a_failed_prepare_leaves_the_weights();
  input_scales_last_until_the_next_prepare();
  the_default_mode_is_bf16_and_calibrate_computes_in_it();
  mode_fp8_takes_no_calibration();
  a_linear_of_one_part_needs_no_part_rows();
  rows_to_quantise_are_bounded();
  CHECK(environment_reads == 0);  // the worker threads' start included
  return closing_line("statements.cpp");
}
