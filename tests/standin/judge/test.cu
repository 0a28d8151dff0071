// SPDX-License-Identifier: Apache-2.0
// Ragged groups through CUTLASS's own parameters and its kernel, from a cubin with the stand-in, against float64 within
// bf16's rounding. Each group is an expert: an empty one, one row, sizes and depths that are no multiple of a tile.
#include <algorithm>
#include <cmath>
#include <memory>

#include "../host/gpu.h"
#include "instance.cuh"

using namespace standin;
using instance::Kernel;

// CUTLASS calls this for its maps of 4-bit elements, which Hopper has not: bytes move the same.
extern "C" CUresult CUDAAPI cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank,
                                                   void* address, const cuuint64_t* dim, const cuuint64_t* stride,
                                                   const cuuint32_t* box, const cuuint32_t* element_stride,
                                                   CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                                   CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
  cuuint64_t dims[5];
  cuuint32_t boxes[5];
  std::copy(dim, dim + rank, dims), std::copy(box, box + rank, boxes);
  if (type == CU_TENSOR_MAP_DATA_TYPE_16U4_ALIGN8B) type = CU_TENSOR_MAP_DATA_TYPE_UINT8, dims[0] /= 2, boxes[0] /= 2;
  return DRIVER_OF(cuTensorMapEncodeTiled)(map, type, rank, address, dims, stride, boxes, element_stride, interleave,
                                           swizzle, promotion, fill);
}

struct Group {
  int m, n, k;
};

// A matrix of codes and its scales, on both sides.
struct Matrix {
  int rows, k;
  std::vector<uint8_t> codes, scales;
  std::unique_ptr<Buffer<uint8_t>> device_codes, device_scales;

  Matrix(int num_rows, int depth, Random& random) : rows(num_rows), k(depth), codes(size_t(num_rows) * depth / 2) {
    for (auto& byte : codes) byte = random();
    const int blocks = k / 16;
    scales.resize(size_t(rows + 127) / 128 * 128 * ((blocks + 3) / 4 * 4));
    for (int row = 0; row < rows; ++row)
      for (int block = 0; block < blocks; ++block) scales[sf_offset(row, block, blocks)] = 0x28 + random() % 32;
    device_codes = std::make_unique<Buffer<uint8_t>>(codes);
    device_scales = std::make_unique<Buffer<uint8_t>>(scales);
  }
  std::vector<double> values() const {
    std::vector<double> v(size_t(rows) * k);
    for (size_t row = 0; row < size_t(rows); ++row)
      for (int col = 0; col < k; ++col)
        v[row * k + col] = e2m1_value(codes[(row * k + col) / 2] >> (col % 2 * 4) & 15) *
                           e4m3_value(scales[sf_offset(row, col / 16, k / 16)]);
    return v;
  }
};

static double bf16_value(uint16_t bits) {
  const uint32_t word = uint32_t(bits) << 16;
  float value;
  memcpy(&value, &word, sizeof value);
  return value;
}

// How many of a group's results are wrong, those that must stay untouched among them.
static long wrong_results(const Group& g, const Matrix& a, const Matrix& b, double alpha,
                          const std::vector<uint16_t>& out) {
  const auto x = a.values(), w = b.values();
  long wrong = 0;
  for (size_t i = size_t(g.m) * g.n; i < out.size(); ++i) wrong += out[i] != 0xFFFF;
  for (int m = 0; m < g.m; ++m)
    for (int n = 0; n < g.n; ++n) {
      double sum = 0, magnitude = 0;
      for (int k = 0; k < g.k; ++k) {
        const double product = x[size_t(m) * g.k + k] * w[size_t(n) * g.k + k];
        sum += product, magnitude += std::fabs(product);
      }
      const double error = std::fabs(bf16_value(out[size_t(m) * g.n + n]) - sum * alpha);
      wrong += !(error <= std::fabs(sum * alpha) / 256 + magnitude * alpha * 1e-6);
    }
  return wrong;
}

template <class T>
static std::unique_ptr<Buffer<T>> on_device(const std::vector<T>& v) {
  return std::make_unique<Buffer<T>>(v);
}

static long run_groups(CUmodule module, const std::vector<Group>& groups, uint64_t seed, int num_ctas) {
  using Shape = typename instance::Problem::UnderlyingProblemShape;
  using Scales = typename instance::Main::Sm1xxBlkScaledConfig;
  Random random(seed);
  std::vector<Matrix> a, b;
  std::vector<std::unique_ptr<Buffer<uint16_t>>> d;
  std::vector<Shape> shapes;
  std::vector<typename Kernel::InternalStrideA> stride_a;
  std::vector<typename Kernel::InternalStrideB> stride_b;
  std::vector<typename Kernel::InternalStrideD> stride_d;
  std::vector<typename instance::Main::InternalLayoutSFA> layout_a;
  std::vector<typename instance::Main::InternalLayoutSFB> layout_b;
  std::vector<const void*> at_a, at_b, at_scales_a, at_scales_b;
  std::vector<void*> at_d;
  std::vector<float> alpha;
  for (const auto& [m, n, k] : groups) {
    a.emplace_back(m, k, random), b.emplace_back(n, k, random);
    d.push_back(std::make_unique<Buffer<uint16_t>>(size_t(m) * n + 4096));
    shapes.push_back({m, n, k}), alpha.push_back(0.5f + 0.25f * alpha.size());
    stride_a.push_back(cutlass::make_cute_packed_stride(typename Kernel::InternalStrideA{}, {m, k, 1}));
    stride_b.push_back(cutlass::make_cute_packed_stride(typename Kernel::InternalStrideB{}, {n, k, 1}));
    stride_d.push_back(cutlass::make_cute_packed_stride(typename Kernel::InternalStrideD{}, {m, n, 1}));
    layout_a.push_back(Scales::tile_atom_to_shape_SFA(cute::make_shape(m, n, k, 1)));
    layout_b.push_back(Scales::tile_atom_to_shape_SFB(cute::make_shape(m, n, k, 1)));
    at_a.push_back(a.back().device_codes->get()), at_scales_a.push_back(a.back().device_scales->get());
    at_b.push_back(b.back().device_codes->get()), at_scales_b.push_back(b.back().device_scales->get());
    at_d.push_back(d.back()->get());
  }
  const auto dev_shapes = on_device(shapes);
  const auto dev_stride_a = on_device(stride_a);
  const auto dev_stride_b = on_device(stride_b);
  const auto dev_stride_d = on_device(stride_d);
  const auto dev_layout_a = on_device(layout_a);
  const auto dev_layout_b = on_device(layout_b);
  const auto dev_a = on_device(at_a), dev_b = on_device(at_b), dev_sa = on_device(at_scales_a),
             dev_sb = on_device(at_scales_b);
  const auto dev_d = on_device(at_d);
  const auto dev_alpha = on_device(alpha);
  Buffer<uint8_t> workspace(size_t(16) << 20, 0);

  typename Kernel::Arguments arguments{};
  arguments.mode = cutlass::gemm::GemmUniversalMode::kGrouped;
  arguments.problem_shape = {static_cast<int>(groups.size()), dev_shapes->get(), nullptr};
  using A = typename Kernel::ElementA;
  using SF = typename instance::Main::ElementSF;
  arguments.mainloop = {reinterpret_cast<const typename instance::Main::ArrayElementA**>(dev_a->get()),
                        dev_stride_a->get(),
                        reinterpret_cast<const typename instance::Main::ArrayElementB**>(dev_b->get()),
                        dev_stride_b->get(),
                        reinterpret_cast<const SF**>(dev_sa->get()),
                        dev_layout_a->get(),
                        reinterpret_cast<const SF**>(dev_sb->get()),
                        dev_layout_b->get()};
  decltype(arguments.epilogue.thread) factors{};
  factors.alpha_ptr = dev_alpha->get(), factors.beta = 0.0f, factors.dAlpha = {cute::_0{}, cute::_0{}, 1};
  arguments.epilogue = {factors, nullptr, nullptr, reinterpret_cast<cutlass::bfloat16_t**>(dev_d->get()),
                        dev_stride_d->get()};
  arguments.hw_info.sm_count = num_ctas;
  if (!Kernel::can_implement(arguments) || Kernel::get_workspace_size(arguments) > workspace.count) return -1;
  auto params = Kernel::to_underlying_arguments(arguments, workspace.get());
  const dim3 grid = Kernel::get_grid_shape(params), block = Kernel::get_block_shape();
  void* kernel_arguments[] = {&params};
  run(module, "cutlass_grouped", {grid.x, grid.y, grid.z}, block.x, Kernel::SharedStorageSize, kernel_arguments);
  long wrong = 0;
  for (size_t i = 0; i < groups.size(); ++i) wrong += wrong_results(groups[i], a[i], b[i], alpha[i], d[i]->host());
  return wrong;
}

int main(int argc, char** argv) {
  if (argc < 2) return printf("usage: test CUBIN [one]\n"), 2;
  setvbuf(stdout, nullptr, _IONBF, 0);
  open_device();
  const CUmodule module = load_module(argv[1]);
  std::vector<std::vector<Group>> all = {{{5, 256, 512}, {165, 256, 512}, {300, 256, 512}},
                                         {{1, 128, 256}},
                                         {{128, 384, 1024}, {0, 384, 1024}, {129, 384, 320}, {77, 128, 2080}}};
  const bool one = argc > 2;  // for mistakes: few CTAs, each of which has several tiles
  if (one) all.resize(1);
  long wrong = 0;
  for (size_t i = 0; i < all.size(); ++i) wrong += run_groups(module, all[i], i + 1, one ? 2 : 132);
  printf("CUTLASS sm_%d: %ld wrong results: %s\n", ARCH, wrong, wrong ? "FAIL" : "PASS");
  return wrong != 0;
}
