// SPDX-License-Identifier: Apache-2.0
// The golden vectors of tests/golden through the C ABI: nvfp4_moe_quantize, _dequantize, _cast_mxfp4, the scale layout.
// Argument: that directory.
#include <fstream>
#include <iterator>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "support.h"

using Words = std::vector<std::string>;

static std::vector<Words> lines_of(const std::string& path) {
  std::ifstream file(path);
  std::vector<Words> lines;
  for (std::string line; std::getline(file, line);) {
    if (line[0] == '#') continue;
    std::istringstream words(line);
    lines.emplace_back(std::istream_iterator<std::string>(words), std::istream_iterator<std::string>());
  }
  CHECK(lines.size() > 100);
  return lines;
}

static uint32_t bits(const std::string& word) { return static_cast<uint32_t>(std::stoul(word, nullptr, 16)); }

template <typename T>
static std::vector<T> hex_values(const Words& words) {
  std::vector<T> values;
  for (const auto& word : words) values.push_back(static_cast<T>(bits(word)));
  return values;
}

static float float_of(uint32_t pattern) {
  float value;
  memcpy(&value, &pattern, sizeof value);
  return value;
}

// The decode tables, one value at a time: e2m1 under block scale 1, and e4m3 under code 2 (which is 1).
static void codecs(const std::string& directory) {
  const uint8_t one_code[8] = {2}, one_scale = 0x38;
  float out[16];
  for (const auto& line : lines_of(directory + "/e2m1.txt")) {
    if (line[0] != "decode") continue;
    const uint8_t codes[8] = {static_cast<uint8_t>(bits(line[1]))};
    CHECK_OK(nvfp4_moe_dequantize(codes, &one_scale, 1, 1, 16, out));
    const float wanted = float_of(bits(line[2]));
    CHECK(memcmp(&out[0], &wanted, sizeof wanted) == 0);
  }
  for (const auto& line : lines_of(directory + "/e4m3.txt")) {
    if (line[0] != "decode") continue;
    const auto scale = static_cast<uint8_t>(bits(line[1]));
    CHECK_OK(nvfp4_moe_dequantize(one_code, &scale, 1, 1, 16, out));
    const float wanted = float_of(bits(line[2]));
    CHECK(std::isnan(wanted) ? std::isnan(out[0]) : memcmp(&out[0], &wanted, sizeof wanted) == 0);
  }
}

static void quantize_case(std::map<std::string, Words>& fields, int32_t sf_layout) {
  const auto x = hex_values<uint16_t>(fields["x"]);
  const auto packed = hex_values<uint8_t>(fields["packed"]), scales = hex_values<uint8_t>(fields["block_scale"]);
  const auto scale_patterns = hex_values<uint32_t>(fields["global_scale"]);
  const int64_t rows = std::stoll(fields["rows"][0]), cols = std::stoll(fields["cols"][0]), sf_cols = cols / 16;
  const bool is_static = fields["policy"][0] == "static", swizzled = sf_layout == NVFP4_MOE_SF_SWIZZLED_128X4;
  const uint64_t scale_bytes = swizzled ? nvfp4_moe_sf_size(rows, sf_cols) : scales.size();

  auto* got_packed = static_cast<uint8_t*>(allocate(packed.size()));
  auto* got_scales = static_cast<uint8_t*>(allocate(scale_bytes));
  auto* global_scale = static_cast<float*>(allocate(scale_patterns.size() * 4));
  if (is_static) memcpy(global_scale, scale_patterns.data(), 4);
  nvfp4_moe_quantize_args args = {};
  args.struct_size = sizeof args;
  args.scale_policy = is_static ? NVFP4_MOE_SCALE_STATIC : NVFP4_MOE_SCALE_DYNAMIC;
  args.num_rows = rows;
  args.num_cols = cols;
  args.x = x.data();
  args.packed = got_packed;
  args.block_scale = got_scales;
  args.global_scale = global_scale;
  args.sf_layout = sf_layout;
  CHECK_OK(nvfp4_moe_device_status_reset(NVFP4_MOE_DEVICE_CPU, 0, nullptr));
  CHECK_OK(nvfp4_moe_quantize(&args));

  CHECK(memcmp(got_packed, packed.data(), packed.size()) == 0);
  CHECK(memcmp(global_scale, scale_patterns.data(), scale_patterns.size() * 4) == 0);
  std::vector<uint8_t> wanted(scale_bytes, 0);
  for (int64_t i = 0; i < rows * sf_cols; ++i)
    wanted[swizzled ? nvfp4_moe_sf_offset(i / sf_cols, i % sf_cols, sf_cols) : i] = scales[i];
  CHECK(memcmp(got_scales, wanted.data(), scale_bytes) == 0);

  nvfp4_moe_device_status status = {};
  status.struct_size = sizeof status;
  CHECK_OK(nvfp4_moe_device_status_read(NVFP4_MOE_DEVICE_CPU, 0, &status, nullptr));
  CHECK(status.saturated_blocks == std::stoull(fields["saturated"][0]));
  CHECK(status.nonfinite_values == std::stoull(fields["nonfinite"][0]));
  free(got_packed);
  free(got_scales);
  free(global_scale);
}

static void quantize(const std::string& directory) {
  std::map<std::string, Words> fields;
  for (const auto& line : lines_of(directory + "/quantize.txt")) {
    if (line[0] != "end") {
      fields[line[0]].insert(fields[line[0]].end(), line.begin() + 1, line.end());
      continue;
    }
    const int failed_before = checks_failed;
    quantize_case(fields, NVFP4_MOE_SF_LINEAR);
    quantize_case(fields, NVFP4_MOE_SF_SWIZZLED_128X4);
    if (checks_failed != failed_before) printf("in case %s\n", fields["case"][0].c_str());
    fields.clear();
  }
}

static void mxfp4_case(std::map<std::string, Words>& fields) {
  const auto packed = hex_values<uint8_t>(fields["packed"]), scales = hex_values<uint8_t>(fields["e8m0_scale"]);
  const int64_t cols = std::stoll(fields["cols"][0]), rows = static_cast<int64_t>(packed.size()) * 2 / cols;
  std::vector<uint8_t> block_scale(scales.size() * 2, 0x55);
  const auto untouched = block_scale;
  float global_scale = 77;
  const int32_t status =
      nvfp4_moe_cast_mxfp4(packed.data(), scales.data(), rows, cols, block_scale.data(), &global_scale);
  if (fields["refused"][0] == "1") {
    CHECK(status == NVFP4_MOE_INVALID_ARGUMENT && block_scale == untouched && global_scale == 77);
    return;
  }
  CHECK_OK(status);
  CHECK(block_scale == hex_values<uint8_t>(fields["block_scale"]));
  CHECK(global_scale == float_of(bits(fields["global_scale"][0])));
  // The same values as MXFP4's own, which ldexp makes.
  std::vector<float> values(packed.size() * 2);
  CHECK_OK(nvfp4_moe_dequantize(packed.data(), block_scale.data(), global_scale, rows, cols, values.data()));
  static const float e2m1[] = {0, .5, 1, 1.5, 2, 3, 4, 6, -0.f, -.5, -1, -1.5, -2, -3, -4, -6};
  bool same = true;
  for (size_t i = 0; i < values.size(); ++i) {
    const uint8_t code = packed[i / 2] >> (i % 2 * 4) & 15;
    same = same && values[i] == std::ldexp(e2m1[code], scales[i / 32] - 127);
  }
  CHECK(same);
}

static void mxfp4(const std::string& directory) {
  std::map<std::string, Words> fields;
  for (const auto& line : lines_of(directory + "/mxfp4.txt")) {
    if (line[0] != "end") {
      fields[line[0]].insert(fields[line[0]].end(), line.begin() + 1, line.end());
      continue;
    }
    const int failed_before = checks_failed;
    mxfp4_case(fields);
    if (checks_failed != failed_before) printf("in case %s\n", fields["case"][0].c_str());
    fields.clear();
  }
}

static void wrong_casts_are_refused() {
  const uint8_t codes[32] = {0x22}, e8m0[2] = {127, 200};  // of row 1 all codes are 0
  uint8_t cast[4] = {9, 9, 9, 9};
  float factor = 77;
  const auto refuse = [&](const char* text, int32_t status) {
    CHECK_FAILS(NVFP4_MOE_INVALID_ARGUMENT, text, status);
    CHECK(cast[0] == 9 && factor == 77);
  };
  refuse("packed", nvfp4_moe_cast_mxfp4(nullptr, e8m0, 2, 32, cast, &factor));
  refuse("e8m0_scale", nvfp4_moe_cast_mxfp4(codes, nullptr, 2, 32, cast, &factor));
  refuse("block_scale", nvfp4_moe_cast_mxfp4(codes, e8m0, 2, 32, nullptr, &factor));
  refuse("global_scale", nvfp4_moe_cast_mxfp4(codes, e8m0, 2, 32, cast, nullptr));
  refuse("num_cols is 48; it must be a multiple of 32", nvfp4_moe_cast_mxfp4(codes, e8m0, 1, 48, cast, &factor));
  refuse("num_rows is -1; ", nvfp4_moe_cast_mxfp4(codes, e8m0, -1, 32, cast, &factor));
  CHECK_OK(nvfp4_moe_cast_mxfp4(codes, e8m0, 2, 32, cast, &factor));
  CHECK(cast[0] == 0x78 && cast[1] == 0x78 && cast[2] == 0 && cast[3] == 0 && factor == 1.0f / 256);
}

static void what_quantize_meets_is_counted() {
  float global_scale = 1.0f / 4096;  // 1 is more than 6 * 448 / 4096; a block of its own
  uint16_t x[2][16];
  memset(x, 0, sizeof x);
  x[0][3] = bf16_from_float(1);
  x[1][5] = 0x7fc0;  // NaN
  uint8_t packed[16], scale[2];
  nvfp4_moe_quantize_args args = {};
  args.struct_size = sizeof args;
  args.scale_policy = NVFP4_MOE_SCALE_STATIC;
  args.num_rows = 2;
  args.num_cols = 16;
  args.x = x;
  args.packed = packed;
  args.block_scale = scale;
  args.global_scale = &global_scale;
  nvfp4_moe_device_status status = {};
  status.struct_size = sizeof status;
  CHECK_OK(nvfp4_moe_device_status_reset(NVFP4_MOE_DEVICE_CPU, 0, nullptr));
  CHECK_OK(nvfp4_moe_quantize(&args));
  CHECK_OK(nvfp4_moe_device_status_read(NVFP4_MOE_DEVICE_CPU, 0, &status, nullptr));
  CHECK(status.saturated_blocks == 1 && status.nonfinite_values == 1 && status.first_bad_token == 0);
  CHECK(scale[0] == 0x7e && scale[1] == 0x7f);
  CHECK(global_scale == 1.0f / 4096);  // STATIC: read, not written
}

static void sf_layout(const std::string& directory) {
  for (const auto& line : lines_of(directory + "/sf_layout.txt")) {
    std::vector<uint64_t> n;
    for (size_t i = 1; i < line.size(); ++i) n.push_back(std::stoull(line[i]));
    CHECK(line[0] == "size" ? nvfp4_moe_sf_size(n[0], n[1]) == n[2] : nvfp4_moe_sf_offset(n[0], n[1], n[2]) == n[3]);
  }
}

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  codecs(argv[1]);
  quantize(argv[1]);
  what_quantize_meets_is_counted();
  sf_layout(argv[1]);
  mxfp4(argv[1]);
  wrong_casts_are_refused();
  return closing_line("golden.cpp");
}
