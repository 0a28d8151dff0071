// kernels/common/format.cuh, compiled for the host: the device's codec and scale layout answer for the golden vectors
// without a GPU. Reads questions from stdin, one a line, and writes one answer a line:
//   e2m1 F32 | e4m3 F32        code of a value       e2m1_decode CODE | e4m3_decode CODE   f32
//   sf_offset ROW COL COLS     byte                  block GLOBAL F32 x 16                 scale code, 16 e2m1 nibbles
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

#include "common/format.cuh"

static uint32_t read_hex() {
  uint32_t bits;
  std::cin >> std::hex >> bits;
  return bits;
}

int main() {
  std::string question;
  std::cout << std::hex;
  while (std::cin >> question) {
    if (question == "e2m1") {
      std::cout << nvfp4::e2m1_encode(__uint_as_float(read_hex()));
    } else if (question == "e4m3") {
      std::cout << nvfp4::e4m3_encode(__uint_as_float(read_hex()));
    } else if (question == "e2m1_decode") {
      std::cout << __float_as_uint(nvfp4::e2m1_decode(read_hex()));
    } else if (question == "e4m3_decode") {
      std::cout << __float_as_uint(nvfp4::e4m3_decode(read_hex()));
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
      std::cout << block.scale << ' ' << block.codes;
    } else {
      std::cerr << "unknown question " << question << '\n';
      return 1;
    }
    std::cout << '\n';
  }
}
