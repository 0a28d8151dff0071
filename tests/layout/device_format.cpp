// kernels/common/format.cuh, compiled for the host: the device's codec and scale layout answer for the golden vectors
// without a GPU. Reads questions from stdin, one a line, and writes one answer a line:
//   e2m1 F32 | e4m3 F32        code of a value       e2m1_decode CODE | e4m3_decode CODE   f32
//   sf_offset ROW COL COLS     byte                  block GLOBAL F32 x 16                 scale code, 16 e2m1 nibbles
//   e2m1_borders               how many f32 round to another value than the seven borders say, of
//                              every 61st up to 16 and all within 1000 steps of a border or a power of two
// f32 are hexadecimal bit patterns. Compile with -ffp-contract=off: each operation rounds once.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <iostream>
#include <string>

#define __host__
#define __device__
using std::isfinite;
using std::isnan;

static float __uint_as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

static uint32_t __float_as_uint(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

static float __fadd_rn(float a, float b) { return a + b; }
static float __fsub_rn(float a, float b) { return a - b; }
static float __fmul_rn(float a, float b) { return a * b; }
static float __fdiv_rn(float a, float b) { return a / b; }
static float __fmaf_rn(float a, float b, float c) { return std::fmaf(a, b, c); }

#include "common/format.cuh"

static uint32_t read_hex() {
  uint32_t bits;
  std::cin >> std::hex >> bits;
  return bits;
}

// A value above a border has the code above; on it, where the code above is even.
static uint32_t count_wrong_borders() {
  constexpr float kBorders[7] = {0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.0f};
  const auto is_wrong = [&](uint32_t bits) {
    const float a = __uint_as_float(bits), value = nvfp4::e2m1_round(a);
    uint32_t code = 0;
    for (int i = 0; i < 7; ++i) code += i % 2 == 0 ? a > kBorders[i] : a >= kBorders[i];
    return nvfp4::e2m1_code(value) != code || value != nvfp4::e2m1_decode(code);
  };
  uint32_t wrong = 0;
  for (uint32_t bits = 0; bits < 0x41800000u; bits += 61) wrong += is_wrong(bits);
  for (const float at : {0.25f, 0.5f, 0.75f, 1.0f, 1.25f, 1.75f, 2.0f, 2.5f, 3.5f, 4.0f, 5.0f, 6.0f, 8.0f}) {
    for (int step = -1000; step <= 1000; ++step) wrong += is_wrong(__float_as_uint(at) + step);
  }
  return wrong;
}

int main() {
  std::string question;
  std::cout << std::hex;
  while (std::cin >> question) {
    if (question == "e2m1") {
      std::cout << nvfp4::e2m1_code(nvfp4::e2m1_round(__uint_as_float(read_hex())));
    } else if (question == "e4m3") {
      std::cout << nvfp4::e4m3_encode(__uint_as_float(read_hex()));
    } else if (question == "e2m1_decode") {
      std::cout << __float_as_uint(nvfp4::e2m1_decode(read_hex()));
    } else if (question == "e4m3_decode") {
      std::cout << __float_as_uint(nvfp4::e4m3_decode(read_hex()));
    } else if (question == "e2m1_borders") {
      std::cout << count_wrong_borders();
    } else if (question == "sf_offset") {
      uint64_t row, col, cols;
      std::cin >> std::dec >> row >> col >> cols;
      std::cout << nvfp4::sf_offset_128x4(row, col, cols);
    } else if (question == "dynamic") {
      std::cout << __float_as_uint(nvfp4::dynamic_global_scale(__uint_as_float(read_hex())));
    } else if (question == "block") {
      const auto scale = nvfp4::QuantScale::from_global_scale(__uint_as_float(read_hex()));
      float x[nvfp4::kBlockSize];
      for (float& value : x) value = __uint_as_float(read_hex());
      const nvfp4::Block block = nvfp4::quantize_block(x, scale);
      std::cout << block.scale << ' ' << block.codes();
    } else {
      std::cerr << "unknown question " << question << '\n';
      return 1;
    }
    std::cout << '\n';
  }
}
