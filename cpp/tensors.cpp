// SPDX-License-Identifier: Apache-2.0
#include "tensors.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

namespace nvfp4_moe_op {
namespace {

// Torch's number for a dtype. Its own conversion to ScalarType refuses a number that it does not know, before any check
// here could name the tensor.
int32_t number_of(const Tensor& tensor) {
  int32_t number = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &number));
  return number;
}

const char* dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Byte: return "uint8";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    case ScalarType::Float: return "float32";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Float8_e4m3fn: return "float8_e4m3fn";
    default: return torch::headeronly::toString(dtype);
  }
}

std::string shape_text(const Tensor& tensor) {
  std::string sizes;
  for (int64_t i = 0; i < tensor.dim(); ++i) sizes += text(i ? ", " : "", tensor.size(i));
  return text("[", sizes, "]");
}

[[noreturn]] void refuse_dtype(const Tensor& tensor, const char* name, Dtypes dtypes) {
  std::string names;
  for (ScalarType dtype : dtypes) {
    if (dtype != ScalarType::Float4_e2m1fn_x2) names += text(names.empty() ? "" : " or ", dtype_name(dtype));
  }
  refuse(text(name, ".dtype"), dtype_name(static_cast<ScalarType>(number_of(tensor))), text("it must be ", names),
         text("Convert it with .to(torch.", dtype_name(*dtypes.begin()), ")."));
}

[[noreturn]] void refuse_shape(const Tensor& tensor, const char* name, Dims dims) {
  std::string names, sizes, origin;
  for (const Dim& dim : dims) {
    const bool known = dim.size != kAnySize;
    names += text(names.empty() ? "" : ", ", dim.name);
    sizes += text(sizes.empty() ? "" : ", ", known ? text(dim.size) : dim.name);
    // Which of the two tensors is wrong, only the caller knows.
    if (known && std::string(dim.name) == "T" && std::string(name) != "x") origin = ", where T is x.size(0)";
  }
  refuse(text(name, ".shape"), shape_text(tensor), text("it must be [", names, "] = [", sizes, "]", origin),
         "Pass the tensor that belongs to this description.");
}

}  // namespace

std::string device_name(const Device& device) {
  if (device.is_cpu()) return "cpu";
  return text(device.is_cuda() ? "cuda" : "a device that is neither cpu nor cuda", ":", device.index());
}

bool has_dtype(const Tensor& tensor, ScalarType dtype) { return number_of(tensor) == static_cast<int32_t>(dtype); }

void check_dtype(const Tensor& tensor, const char* name, Dtypes dtypes) {
  const int32_t number = number_of(tensor);
  for (ScalarType dtype : dtypes) {
    if (number == static_cast<int32_t>(dtype)) return;
  }
  refuse_dtype(tensor, name, dtypes);
}

void check_shape(const Tensor& tensor, const char* name, Dims dims) {
  const auto sizes = tensor.sizes();
  bool fits = sizes.size() == dims.size();
  size_t i = 0;
  for (const Dim& dim : dims) fits = fits && (sizes[i++] == dim.size || dim.size == kAnySize);
  if (!fits) refuse_shape(tensor, name, dims);
}

void check_contiguous(const Tensor& tensor, const char* name) {
  if (tensor.is_contiguous()) return;
  refuse(name, text("a strided view of shape ", shape_text(tensor)), "it must be contiguous",
         "Call .contiguous() on it once, at load.");
}

void Checks::on_device(const Tensor& tensor, const char* name) const {
  const Device actual = tensor.device();
  // Torch gives CPU tensors index -1 or 0.
  if (actual.type() == device.type() && (device.is_cpu() || actual.index() == device.index())) return;
  refuse(text(name, ".device"), device_name(actual), text("the ", owner, " is on ", device_name(device)),
         text("Move it with .to(\"", device_name(device), "\")."));
}

int64_t row_stride(const Tensor& matrix, const char* name) {
  const int64_t rows = matrix.size(0), columns = matrix.size(1);
  if (columns > 1 && rows > 0 && matrix.stride(1) != 1)
    refuse(text(name, ".stride(1)"), matrix.stride(1), "elements of a row must lie side by side, stride 1",
           "Call .contiguous() on it.");
  if (rows <= 1) return 0;
  if (matrix.stride(0) < columns)
    refuse(text(name, ".stride(0)"), matrix.stride(0), text("rows of ", columns, " elements may not overlap"),
           "Call .contiguous() on it.");
  return matrix.stride(0);
}

}  // namespace nvfp4_moe_op
