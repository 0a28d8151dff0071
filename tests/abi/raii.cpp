// SPDX-License-Identifier: Apache-2.0
// A C++17 program that runs a layer, a linear and a checkpoint through nvfp4_moe.hpp. Argument: a checkpoint
// directory whose layer 0 is a MoE layer.
#include <cmath>
#include <filesystem>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "nvfp4_moe.hpp"
#include "support.h"

static_assert(!std::is_copy_constructible_v<nvfp4_moe::Layer> &&
              std::is_nothrow_move_constructible_v<nvfp4_moe::Layer>);
static_assert(!std::is_copy_assignable_v<nvfp4_moe::Linear> && std::is_nothrow_move_assignable_v<nvfp4_moe::Linear>);

template <typename Call>
static void check_throws(int32_t status, const std::string& part, Call call) {
  try {
    call();
    CHECK(!"an Error was thrown");
  } catch (const nvfp4_moe::Error& error) {
    CHECK(error.status() == status);
    CHECK(std::string(error.what()).find(part) != std::string::npos);
  }
}

// Mode NVFP4 quantises twice; where an intermediate lies at a rounding edge, float64 and the runner may round apart,
// so the layer is held to a wide gate here and the linear (quantised once, by the same codec) to the narrow one.
static void a_layer_in_mode_nvfp4() {
  layer_case c;
  layer_case_make(&c, NVFP4_MOE_MODE_NVFP4, 0);
  nvfp4_moe::Layer made(c.desc);
  nvfp4_moe::Layer layer = std::move(made);
  CHECK(made.get() == nullptr);  // NOLINT: what a moved-from handle holds is the point
  layer.prepare(c.weights);
  layer.forward(c.args);
  std::vector<double> wanted(TOKENS * H);
  layer_case_wanted(&c, wanted.data());
  CHECK(relative_l2(c.out, wanted.data(), TOKENS * H) < 0.2);

  // A const layer from two threads, each with its own output and workspace.
  const nvfp4_moe::Layer& shared = layer;
  const uint64_t bytes = shared.workspace_size(TOKENS);
  std::vector<uint16_t> outs[2] = {std::vector<uint16_t>(TOKENS * H), std::vector<uint16_t>(TOKENS * H)};
  auto run = [&](std::vector<uint16_t>& out) {
    void* workspace = aligned_alloc(256, (bytes + 255) / 256 * 256);
    auto args = c.args;
    args.out = out.data();
    args.workspace = workspace;
    args.workspace_size = bytes;
    for (int i = 0; i < 3; ++i) shared.forward(args);
    free(workspace);
  };
  std::thread other(run, std::ref(outs[1]));
  run(outs[0]);
  other.join();
  for (auto& out : outs) CHECK(memcmp(out.data(), c.out, TOKENS * H * 2) == 0);

  // What calibrate saw becomes static scales; the exact amax of GEMM1's input is known.
  nvfp4_moe::Layer calibrated(c.desc);
  calibrated.prepare(c.weights);
  check_throws(NVFP4_MOE_NOT_PREPARED, "calibrate", [&] { calibrated.calibrated_scales(); });
  calibrated.calibrate(c.args);
  const auto [w13_scale, w2_scale] = calibrated.calibrated_scales();
  double amax = 0;
  for (int i = 0; i < 3 * H; ++i) amax = std::fmax(amax, std::fabs(bf16_to_double(c.x[i])));  // the routed tokens
  CHECK(w13_scale == static_cast<float>(amax) / (6.0f * 448.0f));
  CHECK(std::isfinite(w2_scale) && w2_scale > 0);
  check_throws(NVFP4_MOE_NOT_PREPARED, "calibrate", [&] { calibrated.calibrated_scales(); });  // forgotten
  check_throws(NVFP4_MOE_INVALID_ARGUMENT, "w2_input_scale", [&] { calibrated.set_input_scales(w13_scale, 0); });
  calibrated.set_input_scales(w13_scale, w2_scale);
  layer_case_free(&c);
}

static void a_linear_in_mode_nvfp4() {
  linear_case c;
  linear_case_make(&c, NVFP4_MOE_MODE_NVFP4);
  nvfp4_moe::Linear linear(c.desc);
  linear.prepare(c.weights);
  linear.forward(c.args);

  std::vector<uint8_t> packed(TOKENS * IN / 2), scales(TOKENS * IN / 16);
  float global_scale = c.weights.input_scale;
  auto quantize = nvfp4_moe::sized<nvfp4_moe_quantize_args>();
  quantize.scale_policy = NVFP4_MOE_SCALE_STATIC;
  quantize.num_rows = TOKENS;
  quantize.num_cols = IN;
  quantize.x = c.x;
  quantize.packed = packed.data();
  quantize.block_scale = scales.data();
  quantize.global_scale = &global_scale;
  nvfp4_moe::quantize(quantize);
  std::vector<double> x(TOKENS * IN), wanted(TOKENS * OUT);
  for (int t = 0; t < TOKENS; ++t)
    for (int i = 0; i < IN; ++i) x[t * IN + i] = nvfp4_at(packed.data(), scales.data(), t, i, IN) * global_scale;
  linear_case_wanted(&c, x.data(), wanted.data());
  CHECK(relative_l2(c.out, wanted.data(), TOKENS * OUT) < 5e-3);

  // Without a static scale the static policy has nothing to quantise with, until one is set.
  std::vector<uint16_t> first(c.out, c.out + TOKENS * OUT);
  c.weights.input_scale = 0;
  linear.prepare(c.weights);
  check_throws(NVFP4_MOE_NOT_PREPARED, "input_scale", [&] { linear.forward(c.args); });
  linear.set_input_scale(global_scale);
  linear.forward(c.args);
  CHECK(memcmp(first.data(), c.out, TOKENS * OUT * 2) == 0);

  linear.calibrate(c.args);
  CHECK(linear.calibrated_scale() <= 2.0f / (6 * 448) && linear.workspace_size(TOKENS) < (1u << 20));
  linear_case_free(&c);
}

static void a_checkpoint(const char* directory) {
  const nvfp4_moe::Checkpoint checkpoint(directory);
  const auto info = checkpoint.layer_info(0);
  CHECK(info.hidden_size > 0 && info.num_experts > 0);
  CHECK(checkpoint.inspect(false).size() > 10 && checkpoint.inspect(true).front() == '{');

  const int64_t experts = info.num_experts, values = int64_t{info.hidden_size} * info.intermediate_size;
  std::vector<uint8_t> w13(experts * values), w13_scale(experts * values / 8);
  std::vector<uint8_t> w2(experts * values / 2), w2_scale(experts * values / 16);
  std::vector<float> w13_global(experts * 2, NAN), w2_global(experts, NAN);
  auto buffers = nvfp4_moe::sized<nvfp4_moe_checkpoint_buffers>();
  buffers.num_experts = info.num_experts;
  buffers.w13 = w13.data();
  buffers.w13_block_scale = w13_scale.data();
  buffers.w13_global_scale = w13_global.data();
  buffers.w2 = w2.data();
  buffers.w2_block_scale = w2_scale.data();
  buffers.w2_global_scale = w2_global.data();
  checkpoint.read_layer(0, buffers);
  for (float scale : w13_global) CHECK(scale > 0);
  for (float scale : w2_global) CHECK(scale > 0);

  // No function starts threads past the limit (set to 2 in main), in a pool of its own or the host's.
  const std::filesystem::directory_iterator threads("/proc/self/task"), end;
  CHECK(std::distance(threads, end) <= 1 + 2);

  buffers.first_expert = 1;  // one too many
  check_throws(NVFP4_MOE_INVALID_ARGUMENT, "num_experts", [&] { checkpoint.read_layer(0, buffers); });
  check_throws(NVFP4_MOE_INVALID_ARGUMENT, "layer", [&] { checkpoint.layer_info(-1); });
  check_throws(NVFP4_MOE_IO, "no-such-directory", [] { nvfp4_moe::Checkpoint("no-such-directory"); });
}

// The last error is the thread's own.
static void errors_of_two_threads() {
  check_throws(NVFP4_MOE_INVALID_ARGUMENT, "-7", [] { nvfp4_moe::set_num_threads(-7); });
  std::thread([] {
    CHECK(nvfp4_moe_last_error(nullptr, 0) == 0);
    check_throws(NVFP4_MOE_INVALID_ARGUMENT, "-8", [] { nvfp4_moe::set_num_threads(-8); });
  }).join();
  char text[256];
  nvfp4_moe_last_error(text, sizeof text);
  CHECK(std::string(text).find("num_threads is -7; ") == 0);
}

// The largest block scale of every matrix is 1; the worst matrix, and the worst block, are planted.
static void rounded_weights_say_what_it_cost() {
  layer_case c;
  layer_case_make(&c, NVFP4_MOE_MODE_FP8, NVFP4_MOE_ROWS_UP_FIRST);
  memset(c.w13_scale, 0x38, LOCAL * 2 * I * H / 16);
  memset(c.w2_scale, 0x38, LOCAL * H * I / 16);
  memset(c.w13, 0x33, LOCAL * 2 * I * H / 2);  // 1.5 each
  memset(c.w2, 0x33, LOCAL * H * I / 2);
  c.desc.fp8_max_error = 0.5f;
  nvfp4_moe::Layer layer(c.desc);
  check_throws(NVFP4_MOE_NOT_PREPARED, "0 prepared weights", [&] { layer.weight_error(); });
  layer.prepare(c.weights);
  auto error = layer.weight_error();
  CHECK(error.rel_l2 == 0 && error.expert == 0 && error.matrix == NVFP4_MOE_MATRIX_GATE);
  CHECK(error.block_rel_l2 == 0 && error.block_row == 0 && error.block == 0);

  const size_t up_of_1 = 2 * I * H / 16, row = H / 16;  // the first half of expert 1's rows
  for (size_t at : {up_of_1 + 3 * row + 1, up_of_1 + 3 * row + 2}) c.w13_scale[at] = 0x31;  // 1.5 * 9/16: 27 of 28
  layer.prepare(c.weights);
  error = layer.weight_error();
  CHECK(error.expert == 1 && error.matrix == NVFP4_MOE_MATRIX_UP);
  CHECK(std::abs(error.block_rel_l2 - 1.0f / 27) < 1e-6f);
  CHECK(error.block_expert == 1 && error.block_matrix == NVFP4_MOE_MATRIX_UP);
  CHECK(error.block_row == 3 && error.block == 1);  // the first of two

  uint32_t sizes[2] = {sizeof(uint32_t), 0};
  for (uint32_t& wrong : sizes) {
    CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "nvfp4_moe_weight_error",
                nvfp4_moe_layer_weight_error(layer.get(), reinterpret_cast<nvfp4_moe_weight_error*>(&wrong)));
  }
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "NULL", nvfp4_moe_layer_weight_error(layer.get(), nullptr));

  c.desc.fp8_max_error = error.rel_l2 / 2;
  nvfp4_moe::Layer strict(c.desc);
  check_throws(NVFP4_MOE_INVALID_ARGUMENT, "relative L2 error of w13[1] (up) in e4m3 is 0.0",
               [&] { strict.prepare(c.weights); });
  layer_case_free(&c);
}

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  CHECK(nvfp4_moe::version() == nvfp4_moe_version() && !nvfp4_moe::cpu_isa().empty());
  CHECK(nvfp4_moe::build_info().rfind("cpu", 0) == 0);
  nvfp4_moe::set_num_threads(2);
  auto desc = nvfp4_moe::sized<nvfp4_moe_layer_desc>();
  check_throws(NVFP4_MOE_INVALID_ARGUMENT, "is 0; ", [&] { nvfp4_moe::Layer{desc}; });
  errors_of_two_threads();
  a_layer_in_mode_nvfp4();
  rounded_weights_say_what_it_cost();
  a_linear_in_mode_nvfp4();
  a_checkpoint(argv[1]);
  return closing_line("raii.cpp");
}
