// SPDX-License-Identifier: Apache-2.0
// What the library cannot see through a pointer, checked here: dtype, shape, strides and device of tensors.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>

#include "error.h"

namespace nvfp4_moe_op {

using torch::headeronly::DeviceType;
using torch::headeronly::ScalarType;
using torch::stable::Device;
using torch::stable::Tensor;

constexpr int64_t kAnySize = -1;

// One expected dimension: what it is called in the header, and how long it must be, or kAnySize.
struct Dim {
  const char* name;
  int64_t size;
};

using Dtypes = std::initializer_list<ScalarType>;
using Dims = std::initializer_list<Dim>;

// Pairs of e2m1: bytes, or torch's own type for them. Block scales: e4m3, or its bytes.
constexpr Dtypes kPackedTypes = {ScalarType::Byte, ScalarType::Float4_e2m1fn_x2};
constexpr Dtypes kScaleTypes = {ScalarType::Float8_e4m3fn, ScalarType::Byte};

// "cpu" or "cuda:0".
std::string device_name(const Device& device);

bool has_dtype(const Tensor& tensor, ScalarType dtype);

// Refuse a tensor of another dtype than those listed; the first one is what the remedy names.
void check_dtype(const Tensor& tensor, const char* name, Dtypes dtypes);

void check_shape(const Tensor& tensor, const char* name, Dims dims);

void check_contiguous(const Tensor& tensor, const char* name);

// The checks of one call: every tensor must be where the `owner` (a layer, a linear) lives.
struct Checks {
  const Device& device;
  const char* owner;

  void on_device(const Tensor& tensor, const char* name) const;

  // A tensor whose rows may be strided.
  void operator()(const Tensor& tensor, const char* name, Dtypes dtypes, Dims dims) const {
    check_dtype(tensor, name, dtypes);
    check_shape(tensor, name, dims);
    on_device(tensor, name);
  }

  void contiguous(const Tensor& tensor, const char* name, Dtypes dtypes, Dims dims) const {
    (*this)(tensor, name, dtypes, dims);
    check_contiguous(tensor, name);
  }
};

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

}  // namespace nvfp4_moe_op
