// SPDX-License-Identifier: Apache-2.0
// The rules that hold for every function: struct sizes of older and newer callers, NULL for every pointer, and
// outputs that a failing call leaves alone. Argument: a checkpoint directory, as for raii.cpp.
#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "support.h"

using Call = std::function<int32_t(const void*)>;

// Call with the struct at the very end of its allocation, so that a read past what struct_size says is seen.
template <typename Struct>
int32_t call_with_size(const Struct& value, uint32_t size, uint8_t tail, const Call& call) {
  auto* memory = static_cast<uint8_t*>(allocate(size < 4 ? 4 : size));
  memset(memory, tail, size);
  memcpy(memory, &value, size < sizeof value ? size : sizeof value);
  memcpy(memory, &size, sizeof size);
  const int32_t status = call(memory);
  free(memory);
  return status;
}

// A struct of the wrong size is refused and named; a longer one passes if its tail is zero, and so does that of the
// first release (`first_size`, where it has grown since). `outputs_untouched` is asked after every failure.
template <typename Struct>
void check_struct_size(const char* name, const Struct& value, const Call& call,
                       const std::function<bool()>& outputs_untouched, uint32_t first_size = sizeof(Struct)) {
  const auto size = static_cast<uint32_t>(sizeof(Struct));
  for (uint32_t wrong : {0u, 1u, 4u, first_size - 4}) {
    CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, name, call_with_size(value, wrong, 0, call));
    CHECK(outputs_untouched());
  }
  for (uint32_t longer : {size + 4, size + 64}) {
    CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, name, call_with_size(value, longer, 1, call));
    CHECK(outputs_untouched());
    // Only the last byte of the tail: a newer field that is set.
    auto last_byte = [&](const void* memory) {
      const_cast<uint8_t*>(static_cast<const uint8_t*>(memory))[longer - 1] = 1;
      return call(memory);
    };
    CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, name, call_with_size(value, longer, 0, last_byte));
    CHECK(outputs_untouched());
  }
  // A size that cannot be meant, of memory that is not there.
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, name, [&] {
    Struct huge = value;
    huge.struct_size = UINT32_MAX;
    return call(&huge);
  }());
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "NULL", call(nullptr));
  CHECK(outputs_untouched());
  CHECK_OK(call_with_size(value, first_size, 0, call));
  CHECK_OK(call_with_size(value, size, 0, call));
  CHECK_OK(call_with_size(value, size + 4, 0, call));
  CHECK_OK(call_with_size(value, size + 64, 0, call));
}

// Each pointer in turn is NULL: refused by name.
template <typename Struct>
void check_null_fields(const Struct& value, const std::vector<std::pair<const char*, size_t>>& fields, const Call& call,
                       const std::function<bool()>& outputs_untouched) {
  for (const auto& [name, offset] : fields) {
    Struct without = value;
    memset(reinterpret_cast<uint8_t*>(&without) + offset, 0, sizeof(void*));
    CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, name, call(&without));
    CHECK(outputs_untouched());
  }
}
#define FIELD(type, field) {#field, offsetof(type, field)}

static bool nothing_to_touch() { return true; }

static void layers() {
  layer_case c;
  layer_case_make(&c, NVFP4_MOE_MODE_BF16, 0);
  nvfp4_moe_layer* const untouched = reinterpret_cast<nvfp4_moe_layer*>(0x10);
  nvfp4_moe_layer* made = untouched;
  check_struct_size(
      "nvfp4_moe_layer_desc", c.desc,
      [&](const void* desc) {
        made = untouched;
        const int32_t status = nvfp4_moe_layer_create(static_cast<const nvfp4_moe_layer_desc*>(desc), &made);
        if (status == NVFP4_MOE_OK) nvfp4_moe_layer_destroy(made);
        return status;
      },
      [&] { return made == untouched; }, 56);
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "out", nvfp4_moe_layer_create(&c.desc, nullptr));

  nvfp4_moe_layer* layer = nullptr;
  CHECK_OK(nvfp4_moe_layer_create(&c.desc, &layer));
  const Call prepare = [&](const void* weights) {
    return nvfp4_moe_layer_prepare(layer, static_cast<const nvfp4_moe_layer_weights*>(weights), nullptr, 0, nullptr);
  };
  check_struct_size("nvfp4_moe_layer_weights", c.weights, prepare, nothing_to_touch, 64);
  check_null_fields(c.weights,
                    {FIELD(nvfp4_moe_layer_weights, w13), FIELD(nvfp4_moe_layer_weights, w13_block_scale),
                     FIELD(nvfp4_moe_layer_weights, w13_global_scale), FIELD(nvfp4_moe_layer_weights, w2),
                     FIELD(nvfp4_moe_layer_weights, w2_block_scale), FIELD(nvfp4_moe_layer_weights, w2_global_scale)},
                    prepare, nothing_to_touch);
  auto misaligned = c.weights;
  misaligned.w2_global_scale = reinterpret_cast<const float*>(reinterpret_cast<const char*>(c.w2_global) + 2);
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "w2_global_scale", prepare(&misaligned));
  CHECK_OK(prepare(&c.weights));

  const auto out_untouched = [&] { return all_bytes_are(c.out, 0xff, TOKENS * H * 2) != 0; };
  const Call calls[] = {
      [&](const void* args) {
        memset(c.out, 0xff, TOKENS * H * 2);
        return nvfp4_moe_layer_forward(layer, static_cast<const nvfp4_moe_layer_args*>(args), nullptr);
      },
      [&](const void* args) {
        memset(c.out, 0xff, TOKENS * H * 2);
        return nvfp4_moe_layer_calibrate(layer, static_cast<const nvfp4_moe_layer_args*>(args), nullptr);
      },
  };
  for (const Call& call : calls) {
    check_struct_size("nvfp4_moe_layer_args", c.args, call, out_untouched, 104);
    check_null_fields(c.args, {FIELD(nvfp4_moe_layer_args, x), FIELD(nvfp4_moe_layer_args, topk_ids)}, call,
                      out_untouched);
    check_null_fields(c.args, {FIELD(nvfp4_moe_layer_args, out)}, call, nothing_to_touch);
    nvfp4_moe_layer_args wrong = c.args;
    wrong.num_tokens = -1;
    CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "num_tokens is -1; ", call(&wrong));
    wrong = c.args;
    wrong.x_row_stride = H - 1;
    CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "x_row_stride is 63; ", call(&wrong));
    wrong = c.args;
    wrong.num_experts_mapped = EXPERTS - 1;
    wrong.expert_map = c.ids;
    CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "num_experts_mapped is 5; ", call(&wrong));
    wrong = c.args;
    wrong.out = c.x;
    CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "out", call(&wrong));
    CHECK(out_untouched());
  }

  uint64_t bytes = 77;
  float scales[2] = {77, 77};
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "layer", nvfp4_moe_layer_storage_size(nullptr, &bytes));
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "out", nvfp4_moe_layer_storage_size(layer, nullptr));
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "layer", nvfp4_moe_layer_workspace_size(nullptr, 1, &bytes));
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "out", nvfp4_moe_layer_workspace_size(layer, 1, nullptr));
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "max_tokens is -1; ", nvfp4_moe_layer_workspace_size(layer, -1, &bytes));
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "max_tokens is 2147483647; with top_k",  // slots are numbered in i32
              nvfp4_moe_layer_workspace_size(layer, INT32_MAX, &bytes));
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "layer", nvfp4_moe_layer_prepare(nullptr, &c.weights, nullptr, 0, nullptr));
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "layer", nvfp4_moe_layer_forward(nullptr, &c.args, nullptr));
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "layer", nvfp4_moe_layer_calibrate(nullptr, &c.args, nullptr));
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "layer", nvfp4_moe_layer_set_input_scales(nullptr, 1, 1));
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "layer", nvfp4_moe_layer_calibrated_scales(nullptr, scales, scales + 1));
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "w13_input_scale",
              nvfp4_moe_layer_calibrated_scales(layer, nullptr, scales + 1));
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "w2_input_scale", nvfp4_moe_layer_calibrated_scales(layer, scales, nullptr));
  CHECK(bytes == 77 && scales[0] == 77 && scales[1] == 77);
  CHECK_OK(nvfp4_moe_layer_calibrated_scales(layer, scales, scales + 1));  // a failed call has not forgotten them

  // The query never decreases, and no number of tokens makes it wrap.
  uint64_t before = 0;
  for (int32_t tokens : {0, 1, 2, 127, 128, 129, 100000, INT32_MAX / TOP_K}) {
    const int32_t status = nvfp4_moe_layer_workspace_size(layer, tokens, &bytes);
    CHECK(status == NVFP4_MOE_OK && bytes >= before);
    before = bytes;
  }
  nvfp4_moe_layer_destroy(layer);
  layer_case_free(&c);
}

static void linears() {
  linear_case c;
  linear_case_make(&c, NVFP4_MOE_MODE_BF16);
  nvfp4_moe_linear* const untouched = reinterpret_cast<nvfp4_moe_linear*>(0x10);
  nvfp4_moe_linear* made = untouched;
  check_struct_size(
      "nvfp4_moe_linear_desc", c.desc,
      [&](const void* desc) {
        made = untouched;
        const int32_t status = nvfp4_moe_linear_create(static_cast<const nvfp4_moe_linear_desc*>(desc), &made);
        if (status == NVFP4_MOE_OK) nvfp4_moe_linear_destroy(made);
        return status;
      },
      [&] { return made == untouched; }, 32);
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "out", nvfp4_moe_linear_create(&c.desc, nullptr));

  nvfp4_moe_linear* linear = nullptr;
  CHECK_OK(nvfp4_moe_linear_create(&c.desc, &linear));
  const Call prepare = [&](const void* weights) {
    return nvfp4_moe_linear_prepare(linear, static_cast<const nvfp4_moe_linear_weights*>(weights), nullptr, 0, nullptr);
  };
  check_struct_size("nvfp4_moe_linear_weights", c.weights, prepare, nothing_to_touch);
  check_null_fields(c.weights,
                    {FIELD(nvfp4_moe_linear_weights, weight), FIELD(nvfp4_moe_linear_weights, block_scale),
                     FIELD(nvfp4_moe_linear_weights, global_scale), FIELD(nvfp4_moe_linear_weights, part_rows)},
                    prepare, nothing_to_touch);
  c.part_rows[1]++;
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "part_rows", prepare(&c.weights));
  c.part_rows[0] = -1;
  c.part_rows[1] = OUT + 1;
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "part_rows", prepare(&c.weights));
  c.part_rows[0] = 30;
  c.part_rows[1] = OUT - 30;
  CHECK_OK(prepare(&c.weights));

  const auto out_untouched = [&] { return all_bytes_are(c.out, 0xff, TOKENS * OUT * 2) != 0; };
  const Call calls[] = {
      [&](const void* args) {
        memset(c.out, 0xff, TOKENS * OUT * 2);
        return nvfp4_moe_linear_forward(linear, static_cast<const nvfp4_moe_linear_args*>(args), nullptr);
      },
      [&](const void* args) {
        memset(c.out, 0xff, TOKENS * OUT * 2);
        return nvfp4_moe_linear_calibrate(linear, static_cast<const nvfp4_moe_linear_args*>(args), nullptr);
      },
  };
  for (const Call& call : calls) {
    check_struct_size("nvfp4_moe_linear_args", c.args, call, out_untouched);
    check_null_fields(c.args, {FIELD(nvfp4_moe_linear_args, x)}, call, out_untouched);
    check_null_fields(c.args, {FIELD(nvfp4_moe_linear_args, out)}, call, nothing_to_touch);
  }

  uint64_t bytes = 77;
  float scale = 77;
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "linear", nvfp4_moe_linear_storage_size(nullptr, &bytes));
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "out", nvfp4_moe_linear_storage_size(linear, nullptr));
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "linear", nvfp4_moe_linear_workspace_size(nullptr, 1, &bytes));
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "out", nvfp4_moe_linear_workspace_size(linear, 1, nullptr));
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "linear", nvfp4_moe_linear_prepare(nullptr, &c.weights, nullptr, 0, nullptr));
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "linear", nvfp4_moe_linear_forward(nullptr, &c.args, nullptr));
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "linear", nvfp4_moe_linear_calibrate(nullptr, &c.args, nullptr));
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "linear", nvfp4_moe_linear_set_input_scale(nullptr, 1));
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "linear", nvfp4_moe_linear_calibrated_scale(nullptr, &scale));
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "input_scale", nvfp4_moe_linear_calibrated_scale(linear, nullptr));
  for (float wrong : {0.0f, -1.0f, NAN, INFINITY, 1e-38f})
    CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "input_scale is ", nvfp4_moe_linear_set_input_scale(linear, wrong));
  CHECK(bytes == 77 && scale == 77);
  nvfp4_moe_linear_destroy(linear);
  linear_case_free(&c);
}

static void device_status() {
  nvfp4_moe_device_status status;
  memset(&status, 0, sizeof status);
  status.struct_size = sizeof status;
  check_struct_size(
      "nvfp4_moe_device_status", status,
      [](const void* out) {
        return nvfp4_moe_device_status_read(
            NVFP4_MOE_DEVICE_CPU, 0,
            const_cast<nvfp4_moe_device_status*>(static_cast<const nvfp4_moe_device_status*>(out)), nullptr);
      },
      nothing_to_touch);
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "device_kind is 7; ", nvfp4_moe_device_status_read(7, 0, &status, nullptr));
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "device_kind is 7; ", nvfp4_moe_device_status_reset(7, 0, nullptr));
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "num_threads is -1; ", nvfp4_moe_set_num_threads(-1));
}

static void the_format() {
  enum { ROWS = 3, COLS = 48 };
  uint16_t* x = random_bf16(ROWS * COLS, 1.0f);
  auto* packed = static_cast<uint8_t*>(allocate(ROWS * COLS / 2));
  auto* scales = static_cast<uint8_t*>(allocate(nvfp4_moe_sf_size(ROWS, COLS / 16)));
  float global_scale[ROWS];
  nvfp4_moe_quantize_args args = {};
  args.struct_size = sizeof args;
  args.scale_policy = NVFP4_MOE_SCALE_DYNAMIC;
  args.num_rows = ROWS;
  args.num_cols = COLS;
  args.x = x;
  args.packed = packed;
  args.block_scale = scales;
  args.global_scale = global_scale;
  args.sf_layout = NVFP4_MOE_SF_SWIZZLED_128X4;
  const Call call = [&](const void* a) {
    memset(packed, 0xff, ROWS * COLS / 2);
    memset(scales, 0xff, nvfp4_moe_sf_size(ROWS, COLS / 16));
    return nvfp4_moe_quantize(static_cast<const nvfp4_moe_quantize_args*>(a));
  };
  const auto untouched = [&] {
    return all_bytes_are(packed, 0xff, ROWS * COLS / 2) && all_bytes_are(scales, 0xff, 512);
  };
  check_struct_size("nvfp4_moe_quantize_args", args, call, untouched);
  check_null_fields(args,
                    {FIELD(nvfp4_moe_quantize_args, x), FIELD(nvfp4_moe_quantize_args, packed),
                     FIELD(nvfp4_moe_quantize_args, block_scale), FIELD(nvfp4_moe_quantize_args, global_scale)},
                    call, untouched);
  struct {
    const char* text;
    void (*spoil)(nvfp4_moe_quantize_args*);
  } const wrongs[] = {
      {"scale_policy is 9; ", [](nvfp4_moe_quantize_args* a) { a->scale_policy = 9; }},
      {"sf_layout is -1; ", [](nvfp4_moe_quantize_args* a) { a->sf_layout = -1; }},
      {"num_cols is 47; ", [](nvfp4_moe_quantize_args* a) { a->num_cols = 47; }},
      {"num_cols is -16; ", [](nvfp4_moe_quantize_args* a) { a->num_cols = -16; }},
      {"num_rows is -1; ", [](nvfp4_moe_quantize_args* a) { a->num_rows = -1; }},
      {"x_row_stride is 47; ", [](nvfp4_moe_quantize_args* a) { a->x_row_stride = 47; }},
      {"reserved is 1; ", [](nvfp4_moe_quantize_args* a) { a->reserved = 1; }},
  };
  for (const auto& wrong : wrongs) {
    auto spoilt = args;
    wrong.spoil(&spoilt);
    CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, wrong.text, call(&spoilt));
    CHECK(untouched());
  }

  args.sf_layout = NVFP4_MOE_SF_LINEAR;
  CHECK_OK(call(&args));
  float back[COLS];
  CHECK_OK(nvfp4_moe_dequantize(packed, scales, global_scale[0], 1, COLS, back));
  for (int i = 0; i < COLS; ++i) CHECK(std::fabs(back[i] - bf16_to_double(x[i])) < 0.2);
  back[0] = 77;
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "packed", nvfp4_moe_dequantize(nullptr, scales, 1, 1, COLS, back));
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "block_scale", nvfp4_moe_dequantize(packed, nullptr, 1, 1, COLS, back));
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "out", nvfp4_moe_dequantize(packed, scales, 1, 1, COLS, nullptr));
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "num_cols is 17; ", nvfp4_moe_dequantize(packed, scales, 1, 1, 17, back));
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "num_rows is -1; ", nvfp4_moe_dequantize(packed, scales, 1, -1, 16, back));
  CHECK(back[0] == 77);
  free(x);
  free(packed);
  free(scales);
}

static void checkpoints(const char* directory) {
  nvfp4_moe_checkpoint* checkpoint = nullptr;
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "directory", nvfp4_moe_checkpoint_open(nullptr, &checkpoint));
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "out", nvfp4_moe_checkpoint_open(directory, nullptr));
  CHECK(checkpoint == nullptr);
  CHECK_OK(nvfp4_moe_checkpoint_open(directory, &checkpoint));

  nvfp4_moe_checkpoint_layer_info info;
  memset(&info, 0, sizeof info);
  info.struct_size = sizeof info;
  check_struct_size(
      "nvfp4_moe_checkpoint_layer_info", info,
      [&](const void* out) {
        return nvfp4_moe_checkpoint_layer_info_read(
            checkpoint, 0,
            const_cast<nvfp4_moe_checkpoint_layer_info*>(static_cast<const nvfp4_moe_checkpoint_layer_info*>(out)));
      },
      nothing_to_touch, 48);
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "checkpoint", nvfp4_moe_checkpoint_layer_info_read(nullptr, 0, &info));
  CHECK_OK(nvfp4_moe_checkpoint_layer_info_read(checkpoint, 0, &info));

  const size_t values = static_cast<size_t>(info.hidden_size) * info.intermediate_size;
  std::vector<uint8_t> w13(values), w13_scale(values / 8), w2(values / 2), w2_scale(values / 16);
  float w13_global[2], w2_global[1];
  nvfp4_moe_checkpoint_buffers buffers = {};
  buffers.struct_size = sizeof buffers;
  buffers.num_experts = 1;
  buffers.w13 = w13.data();
  buffers.w13_block_scale = w13_scale.data();
  buffers.w13_global_scale = w13_global;
  buffers.w2 = w2.data();
  buffers.w2_block_scale = w2_scale.data();
  buffers.w2_global_scale = w2_global;
  const Call read = [&](const void* into) {
    return nvfp4_moe_checkpoint_read_layer(checkpoint, 0, static_cast<const nvfp4_moe_checkpoint_buffers*>(into));
  };
  check_struct_size("nvfp4_moe_checkpoint_buffers", buffers, read, nothing_to_touch, 64);
  check_null_fields(
      buffers,
      {FIELD(nvfp4_moe_checkpoint_buffers, w13), FIELD(nvfp4_moe_checkpoint_buffers, w13_block_scale),
       FIELD(nvfp4_moe_checkpoint_buffers, w13_global_scale), FIELD(nvfp4_moe_checkpoint_buffers, w2),
       FIELD(nvfp4_moe_checkpoint_buffers, w2_block_scale), FIELD(nvfp4_moe_checkpoint_buffers, w2_global_scale)},
      read, nothing_to_touch);
  for (int32_t wrong : {-1, INT32_MAX, INT32_MIN}) {
    auto spoilt = buffers;
    spoilt.first_expert = wrong;
    CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "first_expert", read(&spoilt));
    spoilt = buffers;
    spoilt.num_experts = wrong;
    CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "num_experts", read(&spoilt));
    CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "layer", nvfp4_moe_checkpoint_read_layer(checkpoint, wrong, &buffers));
  }
  auto reserved = buffers;
  reserved.reserved = 1;
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "reserved is 1; ", read(&reserved));
  size_t full = 77;
  char buf[16];
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "checkpoint", nvfp4_moe_checkpoint_inspect(nullptr, 0, buf, 16, &full));
  CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, "full_length", nvfp4_moe_checkpoint_inspect(checkpoint, 0, buf, 16, nullptr));
  CHECK(full == 77);
  CHECK_OK(nvfp4_moe_checkpoint_inspect(checkpoint, 0, buf, sizeof buf, &full));
  CHECK(full > sizeof buf && strlen(buf) == sizeof buf - 1);
  nvfp4_moe_checkpoint_destroy(checkpoint);
}

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  layers();
  linears();
  device_status();
  the_format();
  checkpoints(argv[1]);
  return closing_line("contract.cpp");
}
