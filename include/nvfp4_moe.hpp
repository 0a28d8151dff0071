// SPDX-License-Identifier: Apache-2.0
// nvfp4_moe.hpp: RAII over nvfp4_moe.h for C++17, header-only. The C header is the manual.
//
//   auto desc = nvfp4_moe::sized<nvfp4_moe_layer_desc>();
//   desc.hidden_size = 4096; ...
//   nvfp4_moe::Layer layer(desc);
//   layer.prepare(weights);
//   layer.forward(args);
//
// Handles are move-only. Every status but OK is thrown as nvfp4_moe::Error with the library's text.
#ifndef NVFP4_MOE_HPP
#define NVFP4_MOE_HPP

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "nvfp4_moe.h"

namespace nvfp4_moe {

using Stream = CUstream_st*;

/// A call that failed: its status code, and the text of nvfp4_moe_last_error() as what().
class Error : public std::runtime_error {
 public:
  Error(int32_t status, const std::string& text) : std::runtime_error(text), status_(status) {}
  int32_t status() const noexcept { return status_; }

 private:
  int32_t status_;
};

namespace detail {

/// The text that `copy(buf, size) -> full length` has, whatever its length.
template <typename Copy>
std::string text_of(Copy copy) {
  std::string text(copy(nullptr, 0), '\0');
  copy(text.data(), text.size() + 1);  // data() has room for the NUL
  return text;
}

inline void check(int32_t status) {
  if (status != NVFP4_MOE_OK) throw Error(status, text_of(nvfp4_moe_last_error));
}

template <typename T, void (*destroy)(T*)>
struct Destroy {
  void operator()(T* handle) const noexcept { destroy(handle); }
};
template <typename T, void (*destroy)(T*)>
using Handle = std::unique_ptr<T, Destroy<T, destroy>>;

}  // namespace detail

/// A zeroed struct of the C ABI with its struct_size set: 0 is every field's default.
template <typename Struct>
Struct sized() {
  Struct value{};
  value.struct_size = static_cast<uint32_t>(sizeof(Struct));
  return value;
}

/// major * 10000 + minor * 100 + patch of the loaded library.
inline uint32_t version() noexcept { return nvfp4_moe_version(); }
inline std::string cpu_isa() { return detail::text_of(nvfp4_moe_cpu_isa); }
inline std::string build_info() { return detail::text_of(nvfp4_moe_build_info); }
inline void set_num_threads(int32_t num_threads) { detail::check(nvfp4_moe_set_num_threads(num_threads)); }

inline nvfp4_moe_device_status device_status(int32_t kind, int32_t ordinal = 0, Stream stream = nullptr) {
  auto status = sized<nvfp4_moe_device_status>();
  detail::check(nvfp4_moe_device_status_read(kind, ordinal, &status, stream));
  return status;
}
inline void device_status_reset(int32_t kind, int32_t ordinal = 0, Stream stream = nullptr) {
  detail::check(nvfp4_moe_device_status_reset(kind, ordinal, stream));
}

inline void quantize(const nvfp4_moe_quantize_args& args) { detail::check(nvfp4_moe_quantize(&args)); }
inline void dequantize(const uint8_t* packed, const uint8_t* block_scale, float global_scale, int64_t num_rows,
                       int64_t num_cols, float* out) {
  detail::check(nvfp4_moe_dequantize(packed, block_scale, global_scale, num_rows, num_cols, out));
}
/// Fills block_scale; returns the global scale.
inline float cast_mxfp4(const uint8_t* packed, const uint8_t* e8m0_scale, int64_t num_rows, int64_t num_cols,
                        uint8_t* block_scale) {
  float global_scale = 0;
  detail::check(nvfp4_moe_cast_mxfp4(packed, e8m0_scale, num_rows, num_cols, block_scale, &global_scale));
  return global_scale;
}

/// The MoE layer. Const members may be called from many threads at once.
class Layer {
 public:
  explicit Layer(const nvfp4_moe_layer_desc& desc) {
    nvfp4_moe_layer* handle = nullptr;
    detail::check(nvfp4_moe_layer_create(&desc, &handle));
    handle_.reset(handle);
  }

  uint64_t storage_size() const {
    uint64_t bytes = 0;
    detail::check(nvfp4_moe_layer_storage_size(get(), &bytes));
    return bytes;
  }
  void prepare(const nvfp4_moe_layer_weights& weights, void* storage = nullptr, uint64_t storage_size = 0,
               Stream stream = nullptr) {
    detail::check(nvfp4_moe_layer_prepare(get(), &weights, storage, storage_size, stream));
  }
  nvfp4_moe_weight_error weight_error() const {
    auto error = sized<nvfp4_moe_weight_error>();
    detail::check(nvfp4_moe_layer_weight_error(get(), &error));
    return error;
  }
  uint64_t workspace_size(int32_t max_tokens) const {
    uint64_t bytes = 0;
    detail::check(nvfp4_moe_layer_workspace_size(get(), max_tokens, &bytes));
    return bytes;
  }
  void forward(const nvfp4_moe_layer_args& args, Stream stream = nullptr) const {
    detail::check(nvfp4_moe_layer_forward(get(), &args, stream));
  }
  void calibrate(const nvfp4_moe_layer_args& args, Stream stream = nullptr) {
    detail::check(nvfp4_moe_layer_calibrate(get(), &args, stream));
  }
  /// {w13_input_scale, w2_input_scale}
  std::pair<float, float> calibrated_scales() {
    std::pair<float, float> scales{};
    detail::check(nvfp4_moe_layer_calibrated_scales(get(), &scales.first, &scales.second));
    return scales;
  }
  void set_input_scales(float w13_input_scale, float w2_input_scale) {
    detail::check(nvfp4_moe_layer_set_input_scales(get(), w13_input_scale, w2_input_scale));
  }

  nvfp4_moe_layer* get() const noexcept { return handle_.get(); }

 private:
  detail::Handle<nvfp4_moe_layer, nvfp4_moe_layer_destroy> handle_;
};

/// The linear. Const members may be called from many threads at once.
class Linear {
 public:
  explicit Linear(const nvfp4_moe_linear_desc& desc) {
    nvfp4_moe_linear* handle = nullptr;
    detail::check(nvfp4_moe_linear_create(&desc, &handle));
    handle_.reset(handle);
  }

  uint64_t storage_size() const {
    uint64_t bytes = 0;
    detail::check(nvfp4_moe_linear_storage_size(get(), &bytes));
    return bytes;
  }
  void prepare(const nvfp4_moe_linear_weights& weights, void* storage = nullptr, uint64_t storage_size = 0,
               Stream stream = nullptr) {
    detail::check(nvfp4_moe_linear_prepare(get(), &weights, storage, storage_size, stream));
  }
  uint64_t workspace_size(int32_t max_tokens) const {
    uint64_t bytes = 0;
    detail::check(nvfp4_moe_linear_workspace_size(get(), max_tokens, &bytes));
    return bytes;
  }
  void forward(const nvfp4_moe_linear_args& args, Stream stream = nullptr) const {
    detail::check(nvfp4_moe_linear_forward(get(), &args, stream));
  }
  void calibrate(const nvfp4_moe_linear_args& args, Stream stream = nullptr) {
    detail::check(nvfp4_moe_linear_calibrate(get(), &args, stream));
  }
  float calibrated_scale() {
    float input_scale = 0;
    detail::check(nvfp4_moe_linear_calibrated_scale(get(), &input_scale));
    return input_scale;
  }
  void set_input_scale(float input_scale) { detail::check(nvfp4_moe_linear_set_input_scale(get(), input_scale)); }

  nvfp4_moe_linear* get() const noexcept { return handle_.get(); }

 private:
  detail::Handle<nvfp4_moe_linear, nvfp4_moe_linear_destroy> handle_;
};

/// A directory of safetensors files, opened for reading layers.
class Checkpoint {
 public:
  /// `prefix`: only tensors whose names begin so, one tower of several.
  explicit Checkpoint(const std::string& directory, const std::string& prefix = "") {
    nvfp4_moe_checkpoint* handle = nullptr;
    detail::check(nvfp4_moe_checkpoint_open_prefix(directory.c_str(), prefix.c_str(), &handle));
    handle_.reset(handle);
  }

  nvfp4_moe_checkpoint_layer_info layer_info(int32_t layer) const {
    auto info = sized<nvfp4_moe_checkpoint_layer_info>();
    detail::check(nvfp4_moe_checkpoint_layer_info_read(get(), layer, &info));
    return info;
  }
  void read_layer(int32_t layer, const nvfp4_moe_checkpoint_buffers& buffers) const {
    detail::check(nvfp4_moe_checkpoint_read_layer(get(), layer, &buffers));
  }
  /// The report of `nvfp4-moe inspect`.
  std::string inspect(bool as_json) const {
    return detail::text_of([&](char* buf, size_t size) {
      size_t full_length = 0;
      detail::check(nvfp4_moe_checkpoint_inspect(get(), as_json, buf, size, &full_length));
      return full_length;
    });
  }

  nvfp4_moe_checkpoint* get() const noexcept { return handle_.get(); }

 private:
  detail::Handle<nvfp4_moe_checkpoint, nvfp4_moe_checkpoint_destroy> handle_;
};

}  // namespace nvfp4_moe

#endif  // NVFP4_MOE_HPP
