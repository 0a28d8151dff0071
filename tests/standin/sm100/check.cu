// SPDX-License-Identifier: Apache-2.0
// The GEMMs of kernels/sm100 alone, on Hopper by the stand-in: `check CUBIN nvfp4|bf16 [few]`, with driver/ preloaded
// and STANDIN_CALLERS=check. Operands are made in the layouts of kernels/, sums in double from what they decode to, and
// results by the law of kernels/common in an ordinary kernel. Scales of 0.5, 1 and 2 make every order of sums give the
// same bits, so that results must be the same bits. `few` is for mutants: two GEMMs.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstring>

#include "common/activation.cuh"
#include "host/gpu.h"
#include "sm100/config.cuh"

using namespace nvfp4;
using namespace standin;

namespace {

enum Output { kRows, kBf16Lines, kNvfp4Lines };

struct Case {
  const char* name;
  bool bf16;
  int halves;
  Output output;
  int features, k, tile_rows;
  std::vector<int> rows;  // of each expert; a linear has one
  int activation = ACTIVATION_NONE;
  bool bias = false, linear = false;
  float h_scale = 0.03f;
};

const char* kernel_of(const Case& c) {
  if (c.bf16)
    return c.output == kRows ? "gemm_bf16_rows_sm100" : c.halves == 2 ? "gemm1_bf16_sm100" : "gemm_bf16_sm100";
  if (c.output == kRows) return c.halves == 2 ? "gemm1_nvfp4_rows_sm100" : "gemm_nvfp4_rows_sm100";
  return c.halves == 2 ? "gemm1_nvfp4_sm100" : "gemm_nvfp4_sm100";
}

int round_up(int n, int step) { return (n + step - 1) / step * step; }

uint8_t some_scale(Random& random) { return 0x30 + random() % 3 * 8; }  // 0.5, 1, 2

// Rows as routing groups them, and each row's expert, -1 in the padding.
struct Groups {
  std::vector<RowGroup> list;
  std::vector<int> expert;

  explicit Groups(const Case& c) {
    int tiles = 0;
    for (int e = 0; e < static_cast<int>(c.rows.size()); ++e) {
      const int n = c.rows[e];
      if (n == 0) continue;
      list.push_back({e, static_cast<int>(expert.size()), n, tiles});
      tiles += round_up(n, c.tile_rows) / c.tile_rows;
      for (int r = 0; r < round_up(n, SM100_ROW_ALIGNMENT); ++r) expert.push_back(r < n ? e : -1);
    }
    while (list.size() < c.rows.size() + 2) list.push_back({-1, num_rows(), 0, tiles});
  }
  int num_rows() const { return static_cast<int>(expert.size()); }

  // The row's place in its tile.
  int place(const Case& c, int row) const {
    for (const RowGroup& g : list) {
      if (row < g.first_row || row >= g.first_row + g.num_rows) continue;
      const int tiles = round_up(g.num_rows, c.tile_rows) / c.tile_rows, each = (g.num_rows + tiles - 1) / tiles;
      return (row - g.first_row) % round_up(each, sm100::kRowStep);
    }
    return 0;
  }
};

// Prepared weights of all experts, and what they decode to: [experts, halves, features, k].
struct Weights {
  std::vector<uint8_t> storage;
  std::vector<float> values, alphas;  // [experts, 2]
  std::vector<__nv_bfloat16> biases;  // [experts, halves, features]
  size_t alphas_at, bias_at, stride;

  Weights(const Case& c, Random& random) {
    const int experts = static_cast<int>(c.rows.size()), slabs = sm100::slabs_of(c.k);
    alphas_at = size_t(sm100::tile_offset((c.features + 127) / 128, 0, slabs, c.halves, 0));
    bias_at = alphas_at + round_up(4 * std::max(2, c.features), 256);
    stride = bias_at + round_up(2 * c.halves * c.features, 256);
    storage.resize(stride * experts);
    for (int e = 0; e < experts; ++e) {
      for (int half = 0; half < c.halves; ++half)
        for (int f = 0; f < c.features; ++f) row(c, random, storage.data() + e * stride, half, f);
      factors(c, random, storage.data() + e * stride, e);
    }
  }

 private:
  void row(const Case& c, Random& random, uint8_t* expert, int half, int f) {
    for (int k = 0; k < c.k; k += kBlockSize) {
      uint8_t* tile = expert + sm100::tile_offset(f / 128, k / 256, sm100::slabs_of(c.k), c.halves, half);
      const uint8_t scale = some_scale(random);
      tile[sm100::tile_scale(f % 128, k % 256 / kBlockSize)] = scale;
      for (int i = k; i < k + kBlockSize; ++i) {
        const int code = random() & 15;
        tile[sm100::tile_code(f % 128, i % 256)] |= code << (i % 2 * 4);
        values.push_back(static_cast<float>(e2m1_value(code) * e4m3_value(scale)));
      }
    }
  }
  void factors(const Case& c, Random& random, uint8_t* expert, int e) {
    auto* alpha = reinterpret_cast<float*>(expert + alphas_at);
    for (int i = 0; i < 2; ++i) alphas.push_back(0.0009765625f * (3 + e + i));
    for (int i = 0; i < (c.linear ? c.features : 2); ++i) alpha[i] = alphas[2 * e + (c.linear ? 0 : i)];
    auto* bias = reinterpret_cast<__nv_bfloat16*>(expert + bias_at);
    for (int i = 0; i < c.halves * c.features; ++i) {
      bias[i] = __float2bfloat16((int(random() % 64) - 32) / 64.0f);
      biases.push_back(bias[i]);
    }
  }
};

// Token rows in lines, and what they decode to. What is no row's is 0xFF: NaN, but in codes.
struct Rows {
  std::vector<uint8_t> lines, block_scale;
  std::vector<float> values, row_scale;

  Rows(const Case& c, const Groups& groups, Random& random) {
    const int n = groups.num_rows(), steps = sm100::steps_of(c.k);
    lines.assign(c.bf16 ? size_t(steps) * n * 128 + LINE_BF16_SLACK : size_t(sm100::slabs_of(c.k)) * n * 128, 0xFF);
    block_scale.assign(size_t(steps) * n * 16 + LINE_SCALE_SLACK, 0xFF);
    values.assign(size_t(n) * c.k, 0.0f);
    row_scale.assign(n, 1.0f);
    for (int r = 0; r < n; ++r) {
      if (groups.expert[r] < 0) continue;
      if (!c.bf16) row_scale[r] = 0.25f * (1 << random() % 3);
      for (int k = 0; k < steps * 64; k += kBlockSize) c.bf16 ? bf16(c, random, r, k, n) : nvfp4(c, random, r, k, n);
    }
  }

 private:
  void bf16(const Case& c, Random& random, int r, int first, int n) {
    for (int k = first; k < first + kBlockSize; ++k) {
      const float value = k < c.k ? (int(random() % 33) - 16) / 4.0f : 0.0f;
      const __nv_bfloat16 bits = __float2bfloat16(value);
      memcpy(&lines[row_bf16(r, k, n)], &bits, 2);
      if (k < c.k) values[size_t(r) * c.k + k] = value;
    }
  }
  void nvfp4(const Case& c, Random& random, int r, int first, int n) {
    const uint8_t scale = first < c.k ? some_scale(random) : 0;
    for (int quarter = 0; quarter < 4 && r >= 32 * quarter; ++quarter)
      block_scale[row_block_scale(r, first / kBlockSize, quarter, n)] = scale;
    for (int k = first; k < std::min(first + kBlockSize, c.k); k += 2) {
      const int codes = random() & 255;
      lines[row_code(r, k, n)] = codes;
      for (int i = 0; i < 2; ++i)
        values[size_t(r) * c.k + k + i] = static_cast<float>(e2m1_value(codes >> (4 * i) & 15) * e4m3_value(scale));
    }
  }
};

// ---- the law, on the device

struct Law {
  Activation activation;
  int halves, features, num_rows;
  const float *sums, *row_scale, *alphas;
  const int* expert;
  const __nv_bfloat16* bias;

  __device__ float value(int r, int f) const {
    float x[2] = {};
    for (int half = 0; half < halves; ++half) {
      const float sum = sums[(int64_t{r} * halves + half) * features + f] * row_scale[r];
      const float b = bias ? __bfloat162float(bias[(expert[r] * halves + half) * features + f]) : 0.0f;
      x[half] = fmaf(sum, alphas[expert[r] * 2 + half], b);
    }
    return halves == 2 ? activate_gated(activation, x[0], x[1]) : activate_plain(activation.kind, x[0]);
  }
};

__global__ void sums_in_double(const float* w, const float* x, const int* expert, int halves, int features, int k,
                               int num, float* sums) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x, r = i / features / halves;
  if (i >= num || expert[r] < 0) return;
  const float* a = w + (int64_t{expert[r]} * halves * features + i % (halves * features)) * k;
  double sum = 0;
  for (int j = 0; j < k; ++j) sum += static_cast<double>(a[j]) * x[int64_t{r} * k + j];
  sums[i] = static_cast<float>(sum);
}

__global__ void rows_by_law(Law law, __nv_bfloat16* out) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x, r = i / law.features;
  if (r < law.num_rows && law.expert[r] >= 0) out[i] = __float2bfloat16_rn(law.value(r, i % law.features));
}

__global__ void blocks_by_law(Law law, float scale, uint64_t* codes, uint8_t* scales, unsigned long long* saturated) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x, blocks = law.features / kBlockSize, r = i / blocks;
  if (r >= law.num_rows || law.expert[r] < 0) return;
  float x[kBlockSize];
  for (int j = 0; j < kBlockSize; ++j)
    x[j] = __bfloat162float(__float2bfloat16_rn(law.value(r, i % blocks * kBlockSize + j)));
  const Block block = quantize_block(x, QuantScale::from_global_scale(scale));
  codes[i] = block.codes(), scales[i] = static_cast<uint8_t>(block.scale);
  if (block.saturated) atomicAdd(saturated, 1ull);
}

unsigned blocks_for(int64_t threads) { return static_cast<unsigned>((threads + 127) / 128); }

// ---- one GEMM

constexpr uint64_t kCalls = 3;
constexpr int kSlot = 5, kTopK = 2;  // every row's slot: token 2

class Run {
 public:
  explicit Run(const Case& c)
      : c_(c), groups_(c), random_(c.k * 31 + c.features), w_(c, random_), x_(c, groups_, random_) {}

  // How many values are wrong; `checked` of them there are.
  long check(CUmodule module, long& checked) {
    const int n = groups_.num_rows(), f_steps = sm100::steps_of(c_.features);
    const size_t bytes[] = {size_t(n) * c_.features * 2, size_t(f_steps) * n * 128,
                            size_t(sm100::slabs_of(c_.features)) * n * 128};
    Buffer<uint8_t> storage(w_.storage), lines(x_.lines), block_scale(x_.block_scale), out(bytes[c_.output], 0xAA),
        out_scale(size_t(f_steps) * n * 16 + LINE_SCALE_SLACK, 0xAA);
    Buffer<RowGroup> groups(groups_.list);
    Buffer<float> row_scale(x_.row_scale), h_scale(std::vector<float>{c_.h_scale});
    Buffer<int> slots(std::vector<int>(n, kSlot));
    Buffer<DeviceStatus> status(std::vector<DeviceStatus>{{0, 0, 0, ~uint64_t{0}, kCalls}});
    Buffer<HangRecord> hang(1, 0);
    GemmSm100Params p = {};
    p.list = {c_.linear ? nullptr : groups.get(), (c_.features + 127) / 128, c_.rows[0], c_.tile_rows,
              static_cast<int>(c_.rows.size()) + 1};
    p.tiles = storage.get(), p.expert_stride = c_.linear ? 0 : w_.stride;
    p.alphas = reinterpret_cast<float*>(storage.get() + w_.alphas_at), p.alpha_by_row = c_.linear;
    p.bias = c_.bias ? storage.get() + w_.bias_at : nullptr;
    p.rows = lines.get(), p.num_rows = n, p.k = c_.k, p.features = c_.features;
    if (!c_.bf16) p.block_scale = block_scale.get(), p.row_scale = row_scale.get(), p.row_scale_stride = 1;
    p.out = out.get(), p.out_row_stride = c_.features, p.out_block_scale = out_scale.get(), p.out_scale = h_scale.get();
    p.status = status.get(), p.row_to_slot = slots.get(), p.top_k = kTopK;
    p.pad_rows = c_.output != kRows || c_.halves == 2;
    p.activation = activation();
    p.bound = {hang.get(), 20'000'000'000, 1, 0};
    void* arguments[] = {&p};
    const unsigned threads = c_.bf16 ? GEMM_SM100_BF16_THREADS : GEMM_SM100_THREADS;
    run(module, kernel_of(c_), {c_.k % 3 ? 132u : 3u, 1, 1}, threads, GEMM_SM100_SHARED_BYTES, arguments);
    out_ = out.host(), out_scale_ = out_scale.host(), status_ = status.host()[0];
    return c_.output == kNvfp4Lines ? compare_blocks(checked) : compare_rows(p.pad_rows, checked);
  }

 private:
  Activation activation() const {
    return {c_.activation, 7.0f, 1.702f, c_.activation == ACTIVATION_SITU ? 4.0f : 1.0f};
  }

  // Calls then(law) with its operands on the device, and waits.
  template <class Then>
  void with_law(Then then) {
    const int n = groups_.num_rows(), num = n * c_.halves * c_.features;
    Buffer<float> w(w_.values), x(x_.values), sums(num), row_scale(x_.row_scale), alphas(w_.alphas);
    Buffer<int> expert(groups_.expert);
    Buffer<__nv_bfloat16> bias(w_.biases);
    sums_in_double<<<blocks_for(num), 128>>>(w.get(), x.get(), expert.get(), c_.halves, c_.features, c_.k, num,
                                             sums.get());
    then(Law{activation(), c_.halves, c_.features, n, sums.get(), row_scale.get(), alphas.get(), expert.get(),
             c_.bias ? bias.get() : nullptr});
    if (cudaDeviceSynchronize() != cudaSuccess) printf("the law failed\n"), exit(1);
  }

  long compare_rows(bool pads, long& checked) {
    const int n = groups_.num_rows(), cols = c_.output == kBf16Lines ? round_up(c_.features, 64) : c_.features;
    Buffer<__nv_bfloat16> wanted(size_t(n) * c_.features);
    with_law([&](const Law& law) { rows_by_law<<<blocks_for(int64_t(n) * c_.features), 128>>>(law, wanted.get()); });
    const auto values = wanted.host();
    long bad = 0;
    for (int r = 0; r < n; ++r) {
      for (int f = 0; f < cols; ++f, ++checked) {
        uint16_t got, want = groups_.expert[r] < 0 && !pads ? 0xAAAA : 0;
        memcpy(&got, &out_[c_.output == kBf16Lines ? row_bf16(r, f, n) : (size_t(r) * c_.features + f) * 2], 2);
        if (groups_.expert[r] >= 0 && f < c_.features) memcpy(&want, &values[size_t(r) * c_.features + f], 2);
        bad += got != want && ((got | want) & 0x7FFF) != 0;
      }
    }
    return bad;
  }

  long compare_blocks(long& checked) {
    const int n = groups_.num_rows(), blocks = c_.features / kBlockSize;
    Buffer<uint64_t> codes(size_t(n) * blocks);
    Buffer<uint8_t> scales(size_t(n) * blocks);
    Buffer<unsigned long long> saturated(1, 0);
    with_law([&](const Law& law) {
      blocks_by_law<<<blocks_for(int64_t(n) * blocks), 128>>>(law, c_.h_scale, codes.get(), scales.get(),
                                                              saturated.get());
    });
    const auto want_codes = codes.host();
    const auto want_scales = scales.host();
    long bad = status_.saturated_blocks != saturated.host()[0];
    bad += status_.saturated_blocks > 0 && status_.first_bad != (kCalls << 32 | kSlot / kTopK);
    for (int r = 0; r < n; ++r) {
      if (groups_.expert[r] < 0) continue;
      const int quarter = groups_.place(c_, r) % 128 / 32;
      for (int b = 0; b < sm100::steps_of(c_.features) * 4; ++b, ++checked) {
        uint64_t got, want = 0;
        memcpy(&got, &out_[row_code(r, b * kBlockSize, n)], 8);
        if (b < blocks) want = want_codes[size_t(r) * blocks + b];
        const int want_scale = b < blocks ? want_scales[size_t(r) * blocks + b] : 0;
        bad += got != want || out_scale_[row_block_scale(r, b, quarter, n)] != want_scale;
      }
    }
    return bad;
  }

  const Case c_;
  const Groups groups_;
  Random random_;
  const Weights w_;
  const Rows x_;
  std::vector<uint8_t> out_, out_scale_;
  DeviceStatus status_ = {};
};

std::vector<Case> cases(bool bf16, bool few) {
  std::vector<Case> all =
      bf16
          ? std::vector<
                Case>{{"gate, lines", true, 2, kBf16Lines, 256, 1024, 64, {5, 64, 0, 1, 150}, ACTIVATION_SWIGLU},
                      {"rows, bias", true, 1, kRows, 384, 2304, 128, {100, 3, 0, 200}, ACTIVATION_NONE, true},
                      {"gate, ragged", true, 2, kBf16Lines, 176, 1104, 128, {129, 9, 40}, ACTIVATION_SWIGLU_STEP, true},
                      {"lines, SiLU", true, 1, kBf16Lines, 208, 816, 64, {70, 11, 300}, ACTIVATION_SILU, true},
                      {"linear", true, 1, kRows, 272, 1552, 128, {201}, ACTIVATION_NONE, true, true},
                      {"smallest", true, 1, kRows, 16, 16, 64, {3}, ACTIVATION_NONE, false, true}}
          : std::vector<Case>{
                {"gate, fused", false, 2, kNvfp4Lines, 256, 1024, 64, {5, 64, 0, 1, 150}, ACTIVATION_SWIGLU},
                {"rows, bias", false, 1, kRows, 384, 2304, 128, {100, 3, 0, 200}, ACTIVATION_NONE, true},
                {"gate, ragged", false, 2, kNvfp4Lines, 176, 1104, 128, {129, 9, 40}, ACTIVATION_SWIGLU, true},
                {"saturating", false, 2, kNvfp4Lines, 128, 512, 64, {20, 7}, ACTIVATION_GELU_TANH, false, false, 1e-5f},
                {"gate, rows", false, 2, kRows, 144, 1040, 128, {33, 130}, ACTIVATION_SITU, true},
                {"fused, relu2", false, 1, kNvfp4Lines, 208, 816, 64, {70, 11, 300}, ACTIVATION_RELU2, true},
                {"linear", false, 1, kRows, 272, 1552, 256, {333}, ACTIVATION_NONE, true, true},
                {"smallest", false, 1, kRows, 16, 16, 64, {3}, ACTIVATION_NONE, false, true}};
  if (few) all.resize(2);
  return all;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  setvbuf(stdout, nullptr, _IOLBF, 0);
  open_device();
  const CUmodule module = load_module(argv[1]);
  bool right = true;
  for (const Case& c : cases(!strcmp(argv[2], "bf16"), argc > 3)) {
    long checked = 0;
    const long bad = Run(c).check(module, checked);
    printf("%s %s: %ld of %ld values are wrong\n", bad ? "FAIL" : "PASS", c.name, bad, checked);
    right = right && bad == 0;
  }
  puts(right ? "PASS" : "FAIL");
  return right ? 0 : 1;
}
