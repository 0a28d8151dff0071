// SPDX-License-Identifier: Apache-2.0
// The fragments and scale lanes that kernels/sm120/layout.cuh states, against CuTe's traits of the same instruction. On
// the host, with a plain C++ compiler.
#include <cstdio>
#include <set>

#include "cute/atom/mma_atom.hpp"
#include "cute/atom/mma_traits_sm120.hpp"
#include "cute/tensor.hpp"
#undef __host__
#undef __device__
#include "kernels/host.hpp"
#include "kernels/sm120/layout.cuh"

namespace ours = nvfp4::sm120;
using cute::float_e2m1_t;
using Operation =
    cute::SM120::BLOCKSCALED::SM120_16x8x64_TN_VS<float_e2m1_t, float_e2m1_t, float, cute::float_ue4m3_t, 16>;
using Traits = cute::MMA_Traits<Operation>;

static long compared = 0, wrong = 0;
static void expect(bool equal, const char* what, int lane, int value) {
  ++compared;
  if (!equal && ++wrong <= 10) printf("  %s: lane %d, value %d\n", what, lane, value);
}

int main() {
  std::set<int> of_a, of_b, of_scales[2];
  for (int lane = 0; lane < 32; ++lane) {
    for (int value = 0; value < 32; ++value) {  // register value / 8, nibble value % 8
      const int at = typename Traits::ALayout{}(lane, value);
      const auto place = ours::place_of_a(lane, value / 8, value % 8);
      expect(place.row == at % 16 && place.column == at / 16, "A", lane, value);
      of_a.insert(at);
    }
    for (int value = 0; value < 16; ++value) {
      const int at = typename Traits::BLayout{}(lane, value);
      const auto place = ours::place_of_b(lane, value / 8, value % 8);
      expect(place.row == at % 8 && place.column == at / 8, "B", lane, value);
      of_b.insert(at);
    }
    // As the epilogue takes sums: rows g and g + 8, columns 2c and 2c + 1.
    for (int value = 0; value < 4; ++value) {
      const int at = typename Traits::CLayout{}(lane, value);
      expect(at % 16 == lane / 4 + 8 * (value / 2) && at / 16 == 2 * (lane % 4) + value % 2, "D", lane, value);
    }
    // CuTe names for each lane the row whose scales it holds, which the instruction reads of the lanes that its thread
    // ids choose: two tiles' in one register of A's, four octets' in one of B's.
    for (int value = 0; value < 64; ++value) {
      const int a = typename Traits::SFALayout{}(lane, value), b = typename Traits::SFBLayout{}(lane, value);
      expect(a % 16 == ours::scale_row_of_a(lane) && a / 16 == value, "scales of A", lane, value);
      expect(b % 8 == lane / 4 && b / 8 == value, "scales of B", lane, value);
    }
    of_scales[ours::scale_tile_of_a(lane)].insert(ours::scale_row_of_a(lane));
  }
  expect(of_a.size() == 1024 && of_b.size() == 512, "every element has one place", 0, 0);
  expect(of_scales[0].size() == 16 && of_scales[1].size() == 16, "every row of both tiles has its scales", 0, 0);
  printf("sm120: %ld compared, %ld differ\n", compared, wrong);
  return wrong != 0;
}
