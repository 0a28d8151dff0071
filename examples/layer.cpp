// SPDX-License-Identifier: Apache-2.0
// A tiny MoE layer on the CPU, from weights to a checked result, with RAII and exceptions. C++17:
//
//   c++ -std=c++17 examples/layer.cpp $(pkg-config --cflags --libs nvfp4_moe) -o layer
//
// Every weight is the same number, so that the answer can be written down: with tokens whose values are all c,
// gate = up = c, h = c * sigmoid(c) * c, and expert e gives (e + 1) * h.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "nvfp4_moe.hpp"

namespace {

constexpr int kTokens = 3, kHidden = 64, kInter = 32, kExperts = 4, kTopK = 2;
constexpr uint8_t kOnesE2m1 = 0x22, kOneE4m3 = 0x38;  // two codes of 1 in a byte; a block scale of 1

// bf16 is the upper half of a float; exact for the small numbers used here.
uint16_t to_bf16(float value) {
  uint32_t wide;
  std::memcpy(&wide, &value, sizeof wide);
  return static_cast<uint16_t>(wide >> 16);
}

float from_bf16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

// A layer with the memory that it reads: on the CPU weights are used in place.
struct OwnedLayer {
  std::vector<uint8_t> w13 = std::vector<uint8_t>(kExperts * 2 * kInter * kHidden / 2, kOnesE2m1);
  std::vector<uint8_t> w13_block_scale = std::vector<uint8_t>(kExperts * 2 * kInter * kHidden / 16, kOneE4m3);
  std::vector<float> w13_global_scale = std::vector<float>(kExperts * 2, 1.0f / kHidden);
  std::vector<uint8_t> w2 = std::vector<uint8_t>(kExperts * kHidden * kInter / 2, kOnesE2m1);
  std::vector<uint8_t> w2_block_scale = std::vector<uint8_t>(kExperts * kHidden * kInter / 16, kOneE4m3);
  std::vector<float> w2_global_scale;
  nvfp4_moe::Layer layer;

  OwnedLayer() : layer(description()) {
    for (int e = 0; e < kExperts; e++) w2_global_scale.push_back(static_cast<float>(e + 1) / kInter);
    auto weights = nvfp4_moe::sized<nvfp4_moe_layer_weights>();
    weights.w13 = w13.data();
    weights.w13_block_scale = w13_block_scale.data();
    weights.w13_global_scale = w13_global_scale.data();
    weights.w2 = w2.data();
    weights.w2_block_scale = w2_block_scale.data();
    weights.w2_global_scale = w2_global_scale.data();
    layer.prepare(weights);
  }

  static nvfp4_moe_layer_desc description() {
    auto desc = nvfp4_moe::sized<nvfp4_moe_layer_desc>();
    desc.device_kind = NVFP4_MOE_DEVICE_CPU;
    desc.hidden_size = kHidden;
    desc.intermediate_size = kInter;
    desc.num_experts = desc.num_local_experts = kExperts;
    desc.top_k = kTopK;
    return desc;
  }
};

bool run() {
  const OwnedLayer owned;
  std::vector<uint16_t> x(kTokens * kHidden), out(kTokens * kHidden);
  for (int i = 0; i < kTokens * kHidden; i++) x[i] = to_bf16(static_cast<float>(i / kHidden + 1));
  const int32_t topk_ids[] = {0, 1, 2, 3, 3, -1};  // -1: the last token asks for one expert only
  const float topk_weights[] = {0.5f, 0.5f, 0.75f, 0.25f, 1, 1};

  auto args = nvfp4_moe::sized<nvfp4_moe_layer_args>();
  args.num_tokens = kTokens;
  args.x = x.data();
  args.topk_ids = topk_ids;
  args.topk_ids_dtype = NVFP4_MOE_DTYPE_I32;
  args.topk_weights = topk_weights;
  args.out = out.data();
  owned.layer.forward(args);

  bool correct = true;
  for (int t = 0; t < kTokens; t++) {
    const float c = static_cast<float>(t + 1), h = c / (1 + std::exp(-c)) * c;
    float wanted = 0;
    for (int s = t * kTopK; s < (t + 1) * kTopK; s++)
      if (topk_ids[s] >= 0) wanted += topk_weights[s] * static_cast<float>(topk_ids[s] + 1) * h;
    for (int i = 0; i < kHidden; i++)
      correct &= std::fabs(from_bf16(out[t * kHidden + i]) - wanted) < 0.01f * wanted;  // a NaN is not
    std::printf("token %d: %.3f, wanted %.3f\n", t, from_bf16(out[t * kHidden]), wanted);
  }
  return correct;
}

}  // namespace

int main() {
  try {
    const bool correct = run();
    std::printf("layer.cpp: %s\n", correct ? "correct" : "WRONG");
    return correct ? 0 : 1;
  } catch (const nvfp4_moe::Error& error) {
    std::printf("layer.cpp: status %d: %s\n", error.status(), error.what());
    return 1;
  }
}
