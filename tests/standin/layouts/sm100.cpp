// SPDX-License-Identifier: Apache-2.0
// Every descriptor and layout of kernels/sm100/layout.cuh, and the stand-in's reading of them, against CuTe's for the
// same instructions; then the stand-in's copies and multiplications, on data that CuTe's layouts place, against
// float64. On the host, with a plain C++ compiler.
#define CUTE_CVTA_GENERIC_TO_SHARED_ACTIVATED 1  // shared addresses on the host: ours, below
#include <cstddef>
#include <cstdint>
static unsigned char* shared_base = nullptr;
static inline size_t __cvta_generic_to_shared(const void* p) {
  return static_cast<const unsigned char*>(p) - shared_base;
}
#include "cute/atom/copy_traits_sm100.hpp"
#include "cute/atom/mma_atom.hpp"
#include "cute/atom/mma_traits_sm100.hpp"
#include "cute/tensor.hpp"
#include "cutlass/detail/sm100_blockscaled_layout.hpp"
#include "on_host.h"
// CuTe's come with CUDA's; those of host.hpp are the same where there is no CUDA.
#undef __host__
#undef __device__
#include "kernels/host.hpp"
#include "kernels/sm100/layout.cuh"
#include "numbers.h"

namespace ours = nvfp4::sm100;
using namespace cute;
using standin::Tally;

static Tally tally;
static const standin::Running running;

template <int N>
using Nvfp4Op =
    SM100_MMA_MXF4_SS<float_e2m1_t, float_e2m1_t, float, float_ue4m3_t, 128, N, 16, UMMA::Major::K, UMMA::Major::K>;
template <int N>
using Bf16Op = SM100_MMA_F16BF16_TS<bfloat16_t, bfloat16_t, float, 128, N, UMMA::Major::K, UMMA::Major::K>;

template <int N>
void check_instruction() {
  const uint32_t nvfp4(UMMA::make_instr_desc_block_scaled<float_e2m1_t, float_e2m1_t, float, float_ue4m3_t, 128, N,
                                                          UMMA::Major::K, UMMA::Major::K>());
  tally.expect(nvfp4 == ours::nvfp4_instruction(N), "instruction of %d rows: CuTe %08x", N, nvfp4);
  const standin::Instruction in(standin::kNvf4, nvfp4);
  tally.expect(!in.broken && in.m == 128 && in.n == N, "instruction of %d rows, as the stand-in reads it", N);
  if constexpr (N % 16 == 0) {
    const uint32_t bf16(UMMA::make_instr_desc<bfloat16_t, bfloat16_t, float, 128, N, UMMA::Major::K, UMMA::Major::K>());
    tally.expect(bf16 == ours::bf16_instruction(N), "instruction of %d rows of bf16: CuTe %08x", N, bf16);
    const standin::Instruction of(standin::kF16, bf16);
    tally.expect(!of.broken && of.m == 128 && of.n == N && of.a_type == 1, "the same, as the stand-in reads it: %d", N);
  }
}
template <int... I>
void check_instructions(std::integer_sequence<int, I...>) {
  (check_instruction<8 * (I + 1)>(), ...);
}

// Lines of 128 bytes of an operand: descriptors of the four steps, and where every unit of 16 bytes lies.
template <class Element, class Mma, bool kIsA, int kRows>
void check_operand(uint32_t address) {
  constexpr int kUnit = 128 / sizeof_bits_v<Element>, kCols = 8 * kUnit;
  const auto shape = [] {
    if constexpr (kIsA)
      return partition_shape_A(Mma{}, Shape<Int<kRows>, Int<kCols>>{});
    else
      return partition_shape_B(Mma{}, Shape<Int<kRows>, Int<kCols>>{});
  }();
  const auto layout = UMMA::tile_to_mma_shape(UMMA::Layout_K_SW128_Atom<Element>{}, shape);
  auto tensor = make_tensor(make_smem_ptr(recast_ptr<Element>(static_cast<void*>(shared_base + address))), layout);
  const auto fragment = [&] {
    if constexpr (kIsA)
      return Mma::make_fragment_A(tensor);
    else
      return Mma::make_fragment_B(tensor);
  }();
  const auto places = as_position_independent_swizzle_layout(layout);
  for (int step = 0; step < 4; ++step) {
    UMMA::SmemDescriptor descriptor = fragment(0, 0, step);
    const uint64_t cute = descriptor, own = ours::operand_descriptor(address + 32 * step);
    // Of one group of eight rows the stride is not used; CuTe's is 0 then.
    const uint64_t unused = kRows == 8 ? 0x3FFFull << 32 : 0;
    tally.expect((cute & ~unused) == (own & ~unused), "descriptor of %d rows, step %d: CuTe %016llx", kRows, step,
                 static_cast<unsigned long long>(cute));
    const standin::SharedMatrix matrix(running, cute, 0);
    for (int row = 0; row < kRows; ++row)
      for (int unit = 0; unit < 2; ++unit) {
        const int at = int(places(make_coord(row, unit * kUnit), 0, step)) * int(sizeof_bits_v<Element>) / 8;
        tally.expect(matrix.address(row, unit) == address + at, "row %d, step %d, unit %d: CuTe %d", row, step, unit,
                     at);
        tally.expect(at == nvfp4::swizzled(row, 32 * step + 16 * unit), "ours, row %d, step %d, unit %d", row, step,
                     unit);
      }
  }
}

// Block scales: in shared memory, their copies' descriptors, and where they come to lie in tensor memory.
template <int N>
void check_scales(uint32_t address) {
  using Mma = decltype(make_tiled_mma(Nvfp4Op<N>{}));
  using Tile = Shape<_128, Int<N>, _256>;
  using Config = cutlass::detail::Sm1xxBlockScaledConfig<16>;
  const auto check = [&](auto smem, auto tmem, int rows) {
    auto s = make_tensor(make_smem_ptr(reinterpret_cast<float_ue4m3_t*>(shared_base + address)), smem);
    auto compact = make_tensor(s.data(), filter_zeros(s.layout()));
    auto target = make_tensor(tmem.data(), filter_zeros(tmem.layout()));
    auto copy = make_utccp_copy(SM100_UTCCP_4x32dp128bit_1cta{}, target);
    auto descriptors =
        get_utccp_smem_desc_tensor<SM100_UTCCP_4x32dp128bit_1cta>(copy.get_slice(0).partition_S(compact));
    const int tiles = rows > 128 ? 2 : 1;
    for (int step = 0; step < 4; ++step)
      for (int tile = 0; tile < tiles; ++tile) {
        UMMA::SmemDescriptor cute = descriptors(0, tile, 0, step);
        tally.expect(uint64_t(cute) == ours::scale_descriptor(address + (step * tiles + tile) * ours::kStepScaleBytes),
                     "scale descriptor of %d rows, step %d", rows, step);
      }
    for (int row = 0; row < rows; ++row)
      for (int step = 0; step < 4; ++step)
        for (int block = 0; block < 4; ++block) {
          const auto in_rows = make_coord(make_coord(row % 32, row / 32 % 4), row / 128);
          const int at = int(smem(make_coord(in_rows, make_coord(0, block)), 0, make_coord(0, step)));
          const int own = (step * tiles + row / 128) * ours::kStepScaleBytes + ours::tile_scale(row % 128, block) -
                          ours::kTileCodeBytes;
          tally.expect(at == own, "scale of row %d, step %d, block %d: CuTe %d, ours %d", row, step, block, at, own);
          for (int quarter = 0; quarter < 4; ++quarter) {
            const auto coordinate =
                make_coord(make_coord(make_coord(row % 32, row / 32), quarter), make_coord(0, block));
            const int to = int(tmem.layout()(coordinate, 0, make_coord(0, step)));
            tally.expect(to >> 18 == quarter * 32 + row % 32 && (to >> 2 & 0xFFFF) == step * 4 * tiles + row / 32 &&
                             (to & 3) == block,
                         "scale of row %d, step %d, block %d in tensor memory", row, step, block);
          }
        }
  };
  const auto a = Config::deduce_smem_layoutSFA(Mma{}, Tile{});
  const auto b = Config::deduce_smem_layoutSFB(Mma{}, Tile{});
  check(a, make_tensor<typename Mma::FrgTypeSFA>(shape(a)), 128);
  check(b, make_tensor<typename Mma::FrgTypeSFB>(shape(b)), N > 128 ? 256 : 128);
}

// Sums: lane = weight row, column = token row. Weights of bf16 in tensor memory: two columns of a row in a word.
template <int N>
void check_tensor_memory() {
  using Mma = decltype(make_tiled_mma(Bf16Op<N>{}));
  const auto sums = Mma::make_fragment_C(partition_shape_C(Mma{}, Shape<_128, Int<N>>{}));
  for (int m = 0; m < 128; ++m)
    for (int n = 0; n < N; ++n) {
      const int at = int(sums.layout()(make_coord(m, n), 0, 0));
      tally.expect(at >> 16 == m && (at & 0xFFFF) == n, "sum (%d, %d): CuTe %x", m, n, at);
    }
  const auto weights = Mma::make_fragment_A(partition_shape_A(Mma{}, Shape<_128, _64>{}));
  for (int m = 0; m < 128; ++m)
    for (int k = 0; k < 64; ++k) {
      const int at = int(weights.layout()(make_coord(m, k % 16), 0, k / 16));  // in halves of a word
      tally.expect(at >> 17 == m && (at & 0x1FFFF) == k, "weight (%d, %d): CuTe %x", m, k, at);
    }
}

int main() {
  standin::begin();
  shared_base = standin::shared_memory.data();
  check_instructions(std::make_integer_sequence<int, 32>{});
  for (uint32_t address : {1024u, 99328u}) {
    using Weights = decltype(make_tiled_mma(Nvfp4Op<64>{}));
    check_operand<float_e2m1_t, Weights, true, 128>(address);
    check_operand<float_e2m1_t, decltype(make_tiled_mma(Nvfp4Op<8>{})), false, 8>(address);
    check_operand<float_e2m1_t, decltype(make_tiled_mma(Nvfp4Op<256>{})), false, 256>(address);
    check_operand<bfloat16_t, decltype(make_tiled_mma(Bf16Op<128>{})), false, 128>(address);
  }
  check_scales<64>(4096), check_scales<256>(131072);
  check_tensor_memory<128>();
  check_numbers(tally);
  printf("sm100: %ld compared, %ld differ\n", tally.compared, tally.wrong);
  return tally.wrong != 0;
}
