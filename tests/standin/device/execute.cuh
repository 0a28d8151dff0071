// SPDX-License-Identifier: Apache-2.0
// What tcgen05.mma and tcgen05.cp do, given Running, fail() and load_shared(). Also compiled for the host, where
// layouts.cpp holds it against float64.
#pragma once
#include "decode.cuh"

namespace standin {

// ---- tensor memory

__device__ inline bool allocated(const Cta& cta, uint32_t first, uint32_t columns) {
  if (first + columns > kNumColumns) return false;
  const uint32_t owner = cta.owner[first / 32];
  for (uint32_t s = first / 32; s < (first + columns + 31) / 32; ++s)
    if (cta.owner[s] == 0 || cta.owner[s] != owner) return false;
  return true;
}
__device__ inline void check_columns(const Running& it, uint32_t address, uint32_t columns, uint32_t line) {
  if (!allocated(it.cta, address & 0xFFFF, columns)) fail(it, kTmemAddress, line, address, columns);
}
// For operands that take all lanes, or whose lanes are implied.
__device__ inline void check_operand(const Running& it, uint32_t address, uint32_t columns, uint32_t line) {
  if (address >> 16) fail(it, kTmemAddress, line, address, columns);
  check_columns(it, address, columns, line);
}
__device__ inline bool bit(const uint32_t* bits, uint32_t column) {
  return const_cast<const volatile uint32_t*>(bits)[column / 32] >> column % 32 & 1;
}
__device__ inline void set_bits(uint32_t* bits, Columns columns) {
  for (uint32_t c = columns.first; c < columns.end; ++c) atomicOr(&bits[c / 32], 1u << c % 32);
}
__device__ inline void clear_bits(uint32_t* bits, Columns columns) {
  for (uint32_t c = columns.first; c < columns.end; ++c) atomicAnd(&bits[c / 32], ~(1u << c % 32));
}

// ---- operands: the eight words that an mma reads of a row, 64 codes of 4 bits, 16 values of 16, or 32 of 8

struct Rows {
  const Running& it;
  const Op& op;
  bool in_tmem;
  SharedMatrix matrix;

  __device__ Rows(const Running& running, const Op& of, bool is_a)
      : it(running),
        op(of),
        in_tmem(is_a && of.flags & kAInTmem),
        matrix(running,
               in_tmem ? 1ull << 46
               : is_a  ? of.a
                       : of.b,
               of.line) {}

  __device__ void read(uint32_t row, uint32_t (&words)[8]) const {
    for (uint32_t unit = 0; unit < 2; ++unit) {
      const uint32_t at = in_tmem ? 0 : matrix.address(row, unit);
      for (uint32_t w = 0; w < 4; ++w)
        words[4 * unit + w] = in_tmem ? it.word((op.a & 0xFFFF) + 4 * unit + w, row) : load_shared(at + 4 * w);
    }
  }
};

// Notices an operand whose every word is poison, which no data of a test is.
struct PoisonWatch {
  bool all = true;
  __device__ void saw(uint32_t word) { all = all && (word == kPoisonWord || word == kStartPoison); }
  __device__ void saw(const uint32_t (&words)[8]) {
    for (uint32_t w : words) saw(w);
  }
  __device__ void check(const Running& it, const Op& op, uint32_t which) const {
    if (poisons() && all) fail(it, kPoisoned, op.line, which);
  }
};

// Scales of a row for scale_vec::4X: lane row % 32 of a quarter, column row / 32, a byte a block.
__device__ inline uint32_t scale_word(const Running& it, uint32_t base, uint32_t row, uint32_t quarter) {
  return it.word((base & 0xFFFF) + row / 32, quarter * 32 + row % 32);
}
__device__ inline void check_written(const Running& it, uint32_t address, uint32_t columns, uint32_t line) {
  const uint32_t first = address & 0xFFFF;
  for (uint32_t c = first; c < first + columns; ++c)
    if (!bit(it.cta.written, c)) fail(it, kNotWritten, line, c);
}

// Sums of eight columns of a lane: read together and written together, since each takes long to come.
constexpr uint32_t kOctet = 8;
struct Sums {
  const Running& it;
  uint32_t first, lane;
  float v[kOctet];

  __device__ Sums(const Running& running, const Op& op, uint32_t column, uint32_t of_lane)
      : it(running), first((op.d & 0xFFFF) + column), lane(of_lane) {
#pragma unroll
    for (uint32_t i = 0; i < kOctet; ++i) {
      const uint32_t bits = it.word(first + i, lane);
      v[i] = op.flags & kAccumulate ? __uint_as_float(bits) : 0.0f;
    }
  }
  __device__ void store() const {
#pragma unroll
    for (uint32_t i = 0; i < kOctet; ++i) it.word(first + i, lane) = __float_as_uint(v[i]);
  }
};

// ---- kinds

// Operand B of NVFP4: signed bytes, and scales.
__device__ inline void decode_b_nvf4(const Running& it, const Op& op, uint32_t n) {
  const Rows rows(it, op, false);
  PoisonWatch codes, scales;
  for (uint32_t row = 0; row < n; ++row) {
    uint32_t words[8];
    rows.read(row, words);
    codes.saw(words);
    for (uint32_t w = 0; w < 8; ++w) reinterpret_cast<uint2*>(it.cta.b)[row * 8 + w] = decode8(words[w]);
    const uint32_t s = scale_word(it, op.sfb, row, 0);
    scales.saw(s);
    for (uint32_t quarter = 1; quarter < 4; ++quarter)
      if (scale_word(it, op.sfb, row, quarter) != s) fail(it, kScalesDiffer, op.line, row);
    for (uint32_t j = 0; j < 4; ++j) it.cta.b_scale[row * 4 + j] = ue4m3(s >> (8 * j));
  }
  codes.check(it, op, 1), scales.check(it, op, 3);
}

__device__ inline void multiply_nvf4(const Running& it, const Op& op, uint32_t n) {
  const Rows rows(it, op, true);
  PoisonWatch codes, scales;
  decode_b_nvf4(it, op, n);
  for (uint32_t m = 0; m < kNumLanes; ++m) {
    uint32_t words[8];
    rows.read(m, words);
    codes.saw(words);
    int a[16];
#pragma unroll
    for (int w = 0; w < 8; ++w) {
      const uint2 v = decode8(words[w]);
      a[2 * w] = v.x, a[2 * w + 1] = v.y;
    }
    // Row m's sums live in lane m, so its scales are read from lane m's own quarter.
    const uint32_t s = scale_word(it, op.sfa, m, m / 32);
    scales.saw(s);
    float a_scale[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) a_scale[j] = ue4m3(s >> (8 * j)) * 0.25f;
    for (uint32_t first = 0; first < n; first += kOctet) {
      Sums sums(it, op, first, m);
#pragma unroll
      for (uint32_t i = 0; i < kOctet; ++i) {
        const uint32_t column = first + i;
        const int4* v = reinterpret_cast<const int4*>(it.cta.b) + column * 4;
        const float4 b_scale = *reinterpret_cast<const float4*>(&it.cta.b_scale[column * 4]);
        const float scale[4] = {b_scale.x, b_scale.y, b_scale.z, b_scale.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {  // exact: 12 bits of sum, 8 of scales
          const int4 q = v[j];
          int dot = __dp4a(a[4 * j], q.x, 0);
          dot = __dp4a(a[4 * j + 1], q.y, dot);
          dot = __dp4a(a[4 * j + 2], q.z, dot);
          dot = __dp4a(a[4 * j + 3], q.w, dot);
          sums.v[i] += static_cast<float>(dot) * (a_scale[j] * scale[j]);
        }
      }
      sums.store();
    }
  }
  codes.check(it, op, 0), scales.check(it, op, 2);
}

// 16 products of 16-bit values, or 32 of 8-bit ones, summed in f32 in the order of k, then added to the sum.
template <int kPerWord>
__device__ void multiply_floats(const Running& it, const Op& op, const Instruction& in) {
  constexpr int kDepth = 8 * kPerWord;
  const Rows a_rows(it, op, true), b_rows(it, op, false);
  PoisonWatch a_watch, b_watch;
  auto* b = reinterpret_cast<float*>(it.cta.b);
  uint32_t words[8];
  for (uint32_t row = 0; row < in.n; ++row) {
    b_rows.read(row, words);
    b_watch.saw(words);
    for (uint32_t k = 0; k < kDepth; ++k)
      b[row * kDepth + k] = in.element(in.b_type, words[k / kPerWord], k % kPerWord);
  }
  for (uint32_t m = 0; m < kNumLanes; ++m) {
    a_rows.read(m, words);
    a_watch.saw(words);
    float a[kDepth];
#pragma unroll
    for (int k = 0; k < kDepth; ++k) a[k] = in.element(in.a_type, words[k / kPerWord], k % kPerWord);
    for (uint32_t first = 0; first < in.n; first += kOctet) {
      Sums sums(it, op, first, m);
#pragma unroll
      for (uint32_t i = 0; i < kOctet; ++i) {
        const auto* v = reinterpret_cast<const float4*>(b + (first + i) * kDepth);
        float sum = 0.0f;
#pragma unroll
        for (int k = 0; k < kDepth; k += 4) {
          const float4 q = v[k / 4];
          sum = fmaf(a[k], q.x, sum), sum = fmaf(a[k + 1], q.y, sum);
          sum = fmaf(a[k + 2], q.z, sum), sum = fmaf(a[k + 3], q.w, sum);
        }
        sums.v[i] += sum;
      }
      sums.store();
    }
  }
  a_watch.check(it, op, 0), b_watch.check(it, op, 1);
}

__device__ __noinline__ void execute_mma(const Running& it, const Op& op) {
  const uint32_t kind = kind_of(op);
  const Instruction in(kind, op.idesc);
  if (in.broken) fail(it, kInstruction, op.line, in.broken, op.idesc);
  check_operand(it, op.d, in.n, op.line);
  if (op.flags & kAInTmem) {
    check_operand(it, static_cast<uint32_t>(op.a), kAColumns, op.line);
    check_written(it, static_cast<uint32_t>(op.a), kAColumns, op.line);
  }
  if (kind == kNvf4) {
    check_operand(it, op.sfa, 4, op.line);
    check_operand(it, op.sfb, (in.n + 31) / 32, op.line);
    check_written(it, op.sfa, 4, op.line);
    check_written(it, op.sfb, (in.n + 31) / 32, op.line);
    multiply_nvf4(it, op, in.n);
  } else if (kind == kF16) {
    multiply_floats<2>(it, op, in);
  } else {
    multiply_floats<4>(it, op, in);
  }
  set_bits(it.cta.written, written_by(op));
}

// 32 lanes x 128 bits, to all four quarters.
__device__ __noinline__ void execute_copy(const Running& it, const Op& op) {
  const SharedMatrix source(it, op.a, op.line);
  check_operand(it, op.d, 4, op.line);
  for (uint32_t row = 0; row < 32; ++row) {
    const uint32_t at = source.address(row, 0);
    for (uint32_t w = 0; w < 4; ++w) {
      const uint32_t v = load_shared(at + 4 * w);
      for (uint32_t quarter = 0; quarter < 4; ++quarter) it.cell((op.d & 0xFFFF) + w, quarter * 32 + row) = v;
    }
  }
  set_bits(it.cta.written, written_by(op));
}

}  // namespace standin
