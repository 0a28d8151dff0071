// What the library cannot see through a pointer, checked here: dtype, shape, strides and device of tensors.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>

namespace nvfp4_moe_op {

using torch::headeronly::DeviceType;
using torch::headeronly::ScalarType;
using torch::stable::Device;
using torch::stable::Tensor;

// One expected dimension: what it is called in the header, and how long it must be.
struct Dim {
  const char* name;
  int64_t size;
};

// "cpu" or "cuda:0".
std::string device_name(const Device& device);

// Refuse a tensor that is not on `device`, where `owner` (a layer, a linear) lives.
void check_device(const Tensor& tensor, const char* name, const Device& device, const char* owner);

// Refuse a tensor of another dtype than those listed; the first one is what the remedy names.
void check_dtype(const Tensor& tensor, const char* name, std::initializer_list<ScalarType> dtypes);

void check_shape(const Tensor& tensor, const char* name, std::initializer_list<Dim> dims);

void check_contiguous(const Tensor& tensor, const char* name);

// Elements between the rows of a matrix whose rows are contiguous and do not overlap.
// 0 for at most one row, whose stride means nothing: the library then takes its own.
int64_t row_stride(const Tensor& matrix, const char* name);

// Address of the first element.
template <class T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <class T>
T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// Scratch memory as the library wants it.
struct Workspace {
  void* address = nullptr;  // nullptr: the library's own
  uint64_t size = 0;
};

// The library wants scratch aligned to 256 bytes; torch aligns host memory to 64.
constexpr uint64_t kWorkspaceAlignment = 256;

// The aligned part of a u8 tensor; workspace_size ops answer with room for this.
Workspace aligned_workspace(const std::optional<Tensor>& workspace, const Device& device, const char* owner);

}  // namespace nvfp4_moe_op
