// SPDX-License-Identifier: Apache-2.0
// D[64 x N] += A[64 x K] * B[N x K]^T on the tensor cores: A in registers, B in shared memory, D f32. K is 16 values of
// bf16 or 32 of e4m3. Source: PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions", wgmma.mma_async with
// m64nNk16 and m64nNk32.
//
// A (4 registers), bf16: row g of this warp's 16, columns 2c, 2c+1; row g+8; row g columns 2c+8, 2c+9; row g+8.
// A, e4m3: row g columns 4c .. 4c+3; row g+8; row g columns 4c+16 .. 4c+19; row g+8.
// D (N / 2 registers): 4j+0, 4j+1 are row g, columns 8j+2c, 8j+2c+1; 4j+2, 4j+3 the same of row g+8.
#pragma once
#include "ptx.cuh"

namespace nvfp4::ptx {

__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

template <int kPending>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// B as N rows of 128 bytes in shared memory, its 16-byte chunks XORed by row % 8; 1024-byte aligned.
// Bits: address / 16, 1 (leading offset, unused with swizzle); 1024 / 16 (stride between groups of 8 rows), 128-byte
// swizzle.
class RowsDescriptor {
 public:
  __device__ explicit RowsDescriptor(const void* rows) : low_((shared_address(rows) & 0x3FFFF) >> 4 | 1u << 16) {}

  // So many units of 16 bytes further.
  __device__ uint64_t at(uint32_t units) const {
    uint64_t both;
    asm("mov.b64 %0, {%1, %2};" : "=l"(both) : "r"(low_ + units), "n"(1024 >> 4 | 1u << 30));
    return both;
  }

 private:
  uint32_t low_;
};

template <int kN>
struct Wgmma;  // multiply_add_*(d, a, b): D += A * B^T, D the first kN / 2 registers of d

// An asm statement names each of its registers. Names and operands of the first 4, 8, 12, ... of D, each list on top of
// the one before; the four registers of A and the descriptor of B come after D's.
#define NVFP4_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])

#define NVFP4_NAMES_4 "%0, %1, %2, %3"
#define NVFP4_NAMES_8 NVFP4_NAMES_4 ", %4, %5, %6, %7"
#define NVFP4_NAMES_12 NVFP4_NAMES_8 ", %8, %9, %10, %11"
#define NVFP4_NAMES_16 NVFP4_NAMES_12 ", %12, %13, %14, %15"
#define NVFP4_NAMES_20 NVFP4_NAMES_16 ", %16, %17, %18, %19"
#define NVFP4_NAMES_24 NVFP4_NAMES_20 ", %20, %21, %22, %23"
#define NVFP4_NAMES_28 NVFP4_NAMES_24 ", %24, %25, %26, %27"
#define NVFP4_NAMES_32 NVFP4_NAMES_28 ", %28, %29, %30, %31"
#define NVFP4_NAMES_36 NVFP4_NAMES_32 ", %32, %33, %34, %35"
#define NVFP4_NAMES_40 NVFP4_NAMES_36 ", %36, %37, %38, %39"
#define NVFP4_NAMES_44 NVFP4_NAMES_40 ", %40, %41, %42, %43"
#define NVFP4_NAMES_48 NVFP4_NAMES_44 ", %44, %45, %46, %47"
#define NVFP4_NAMES_52 NVFP4_NAMES_48 ", %48, %49, %50, %51"
#define NVFP4_NAMES_56 NVFP4_NAMES_52 ", %52, %53, %54, %55"
#define NVFP4_NAMES_60 NVFP4_NAMES_56 ", %56, %57, %58, %59"
#define NVFP4_NAMES_64 NVFP4_NAMES_60 ", %60, %61, %62, %63"
#define NVFP4_NAMES_68 NVFP4_NAMES_64 ", %64, %65, %66, %67"
#define NVFP4_NAMES_72 NVFP4_NAMES_68 ", %68, %69, %70, %71"
#define NVFP4_NAMES_76 NVFP4_NAMES_72 ", %72, %73, %74, %75"
#define NVFP4_NAMES_80 NVFP4_NAMES_76 ", %76, %77, %78, %79"
#define NVFP4_NAMES_84 NVFP4_NAMES_80 ", %80, %81, %82, %83"
#define NVFP4_NAMES_88 NVFP4_NAMES_84 ", %84, %85, %86, %87"
#define NVFP4_NAMES_92 NVFP4_NAMES_88 ", %88, %89, %90, %91"
#define NVFP4_NAMES_96 NVFP4_NAMES_92 ", %92, %93, %94, %95"
#define NVFP4_NAMES_100 NVFP4_NAMES_96 ", %96, %97, %98, %99"
#define NVFP4_NAMES_104 NVFP4_NAMES_100 ", %100, %101, %102, %103"

#define NVFP4_OPERANDS_4 NVFP4_D4(0)
#define NVFP4_OPERANDS_8 NVFP4_OPERANDS_4, NVFP4_D4(4)
#define NVFP4_OPERANDS_12 NVFP4_OPERANDS_8, NVFP4_D4(8)
#define NVFP4_OPERANDS_16 NVFP4_OPERANDS_12, NVFP4_D4(12)
#define NVFP4_OPERANDS_20 NVFP4_OPERANDS_16, NVFP4_D4(16)
#define NVFP4_OPERANDS_24 NVFP4_OPERANDS_20, NVFP4_D4(20)
#define NVFP4_OPERANDS_28 NVFP4_OPERANDS_24, NVFP4_D4(24)
#define NVFP4_OPERANDS_32 NVFP4_OPERANDS_28, NVFP4_D4(28)
#define NVFP4_OPERANDS_36 NVFP4_OPERANDS_32, NVFP4_D4(32)
#define NVFP4_OPERANDS_40 NVFP4_OPERANDS_36, NVFP4_D4(36)
#define NVFP4_OPERANDS_44 NVFP4_OPERANDS_40, NVFP4_D4(40)
#define NVFP4_OPERANDS_48 NVFP4_OPERANDS_44, NVFP4_D4(44)
#define NVFP4_OPERANDS_52 NVFP4_OPERANDS_48, NVFP4_D4(48)
#define NVFP4_OPERANDS_56 NVFP4_OPERANDS_52, NVFP4_D4(52)
#define NVFP4_OPERANDS_60 NVFP4_OPERANDS_56, NVFP4_D4(56)
#define NVFP4_OPERANDS_64 NVFP4_OPERANDS_60, NVFP4_D4(60)
#define NVFP4_OPERANDS_68 NVFP4_OPERANDS_64, NVFP4_D4(64)
#define NVFP4_OPERANDS_72 NVFP4_OPERANDS_68, NVFP4_D4(68)
#define NVFP4_OPERANDS_76 NVFP4_OPERANDS_72, NVFP4_D4(72)
#define NVFP4_OPERANDS_80 NVFP4_OPERANDS_76, NVFP4_D4(76)
#define NVFP4_OPERANDS_84 NVFP4_OPERANDS_80, NVFP4_D4(80)
#define NVFP4_OPERANDS_88 NVFP4_OPERANDS_84, NVFP4_D4(84)
#define NVFP4_OPERANDS_92 NVFP4_OPERANDS_88, NVFP4_D4(88)
#define NVFP4_OPERANDS_96 NVFP4_OPERANDS_92, NVFP4_D4(92)
#define NVFP4_OPERANDS_100 NVFP4_OPERANDS_96, NVFP4_D4(96)
#define NVFP4_OPERANDS_104 NVFP4_OPERANDS_100, NVFP4_D4(100)

// `n` columns in `num_d` registers; a0 to a3 and b are num_d, num_d + 1, ... `types` of D, A and B; `rest` are the
// scales of A and B and, where it may be transposed, B's order.
#define NVFP4_WGMMA_OF(name, n, types, rest, num_d, a0, a1, a2, a3, b_)                     \
  template <int kRegisters>                                                                 \
  __device__ static void name(float (&d)[kRegisters], const uint32_t (&a)[4], uint64_t b) { \
    static_assert(kRegisters >= num_d, "the first registers of d");                         \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #n types " {" NVFP4_NAMES_##num_d      \
                 "}, {%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #b_ ", 1, " rest ";"      \
                 : NVFP4_OPERANDS_##num_d                                                   \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                     \
  }
#define NVFP4_WGMMA(n, ...)                                                           \
  template <>                                                                         \
  struct Wgmma<n> {                                                                   \
    NVFP4_WGMMA_OF(multiply_add_bf16, n, "k16.f32.bf16.bf16", "1, 1, 0", __VA_ARGS__) \
    NVFP4_WGMMA_OF(multiply_add_e4m3, n, "k32.f32.e4m3.e4m3", "1, 1", __VA_ARGS__)    \
  };

NVFP4_WGMMA(8, 4, 4, 5, 6, 7, 8)
NVFP4_WGMMA(16, 8, 8, 9, 10, 11, 12)
NVFP4_WGMMA(24, 12, 12, 13, 14, 15, 16)
NVFP4_WGMMA(32, 16, 16, 17, 18, 19, 20)
NVFP4_WGMMA(40, 20, 20, 21, 22, 23, 24)
NVFP4_WGMMA(48, 24, 24, 25, 26, 27, 28)
NVFP4_WGMMA(64, 32, 32, 33, 34, 35, 36)
NVFP4_WGMMA(80, 40, 40, 41, 42, 43, 44)
NVFP4_WGMMA(96, 48, 48, 49, 50, 51, 52)
NVFP4_WGMMA(112, 56, 56, 57, 58, 59, 60)
NVFP4_WGMMA(128, 64, 64, 65, 66, 67, 68)
NVFP4_WGMMA(144, 72, 72, 73, 74, 75, 76)
NVFP4_WGMMA(208, 104, 104, 105, 106, 107, 108)

// Four steps of up to 144 columns, in one group: as many columns as the jump says, in multiples of 16 from 32 on. A
// chain of compares and branches cost narrow tiles a sixth of their time.
class WidestSteps {
 public:
  // The jump of a tile of so many token rows.
  __device__ explicit WidestSteps(int num_rows)
      : jump_(min(kMost - num_rows, kMost - GEMM_SM90_FEWEST_COLUMNS) / GEMM_SM90_COLUMN_STEP) {}

#define NVFP4_STEP(n, types, rest, num_d, a, b) \
  "wgmma.mma_async.sync.aligned.m64n" #n types " {" NVFP4_NAMES_##num_d "}, {" a "}, %" #b ", 1, " rest ";\n"
#define NVFP4_FOUR_STEPS(n, types, rest, num_d) \
  "COLUMNS" #n ":\n"                                                \
  "wgmma.fence.sync.aligned;\n"                                     \
  NVFP4_STEP(n, types, rest, num_d, "%72, %73, %74, %75", 88)       \
  NVFP4_STEP(n, types, rest, num_d, "%76, %77, %78, %79", 89)       \
  NVFP4_STEP(n, types, rest, num_d, "%80, %81, %82, %83", 90)       \
  NVFP4_STEP(n, types, rest, num_d, "%84, %85, %86, %87", 91)       \
  "wgmma.commit_group.sync.aligned;\n"                              \
  "bra.uni DONE;\n"
#define NVFP4_A4(i) "r"(a[i][0]), "r"(a[i][1]), "r"(a[i][2]), "r"(a[i][3])
#define NVFP4_WIDEST_STEPS(name, types, rest)                                                                        \
  __device__ void name(float (&d)[72], const uint32_t (&a)[4][4], const uint64_t (&b)[4]) const {                    \
    asm volatile(                                                                                                    \
        "{\n"                                                                                                        \
        "all: .branchtargets COLUMNS144, COLUMNS128, COLUMNS112, COLUMNS96, COLUMNS80, COLUMNS64, "                  \
        "COLUMNS48, COLUMNS32;\n"                                                                                    \
        "brx.idx.uni %92, all;\n" NVFP4_FOUR_STEPS(144, types, rest, 72) NVFP4_FOUR_STEPS(128, types, rest, 64)      \
            NVFP4_FOUR_STEPS(112, types, rest, 56) NVFP4_FOUR_STEPS(96, types, rest, 48)                             \
                NVFP4_FOUR_STEPS(80, types, rest, 40) NVFP4_FOUR_STEPS(64, types, rest, 32)                          \
                    NVFP4_FOUR_STEPS(48, types, rest, 24) NVFP4_FOUR_STEPS(32, types, rest, 16) "DONE:\n}\n"         \
        : NVFP4_OPERANDS_72                                                                                          \
        : NVFP4_A4(0), NVFP4_A4(1), NVFP4_A4(2), NVFP4_A4(3), "l"(b[0]), "l"(b[1]), "l"(b[2]), "l"(b[3]), "r"(jump_) \
        : "memory");                                                                                                 \
  }
  NVFP4_WIDEST_STEPS(multiply_add_bf16, "k16.f32.bf16.bf16", "1, 1, 0")
  NVFP4_WIDEST_STEPS(multiply_add_e4m3, "k32.f32.e4m3.e4m3", "1, 1")

 private:
  static constexpr int kMost = GEMM_SM90_WIDEST_ROWS;
  static_assert(kMost == 144 && GEMM_SM90_FEWEST_COLUMNS == 32 && GEMM_SM90_COLUMN_STEP == 16, "the widths above");
  int jump_;
};

}  // namespace nvfp4::ptx
