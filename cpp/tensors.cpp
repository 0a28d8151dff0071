#include "tensors.h"

#include "error.h"

namespace nvfp4_moe_op {
namespace {

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

}  // namespace

std::string device_name(const Device& device) {
  if (device.is_cpu()) return "cpu";
  return text(device.is_cuda() ? "cuda" : "a device that is neither cpu nor cuda", ":", device.index());
}

void check_device(const Tensor& tensor, const char* name, const Device& device, const char* owner) {
  const Device actual = tensor.device();
  // Torch gives CPU tensors index -1 or 0.
  if (actual.type() == device.type() && (device.is_cpu() || actual.index() == device.index())) return;
  refuse(text(name, ".device"), device_name(actual), text("the ", owner, " is on ", device_name(device)),
         text("Move it with .to(\"", device_name(device), "\")."));
}

void check_dtype(const Tensor& tensor, const char* name, std::initializer_list<ScalarType> dtypes) {
  std::string names;
  for (ScalarType dtype : dtypes) {
    if (tensor.scalar_type() == dtype) return;
    names += text(names.empty() ? "" : " or ", dtype_name(dtype));
  }
  refuse(text(name, ".dtype"), dtype_name(tensor.scalar_type()), text("it must be ", names),
         text("Convert it with .to(torch.", dtype_name(*dtypes.begin()), ")."));
}

void check_shape(const Tensor& tensor, const char* name, std::initializer_list<Dim> dims) {
  bool fits = tensor.dim() == static_cast<int64_t>(dims.size());
  std::string names, sizes;
  int64_t i = 0;
  for (const Dim& dim : dims) {
    fits = fits && tensor.size(i) == dim.size;
    names += text(i ? ", " : "", dim.name);
    sizes += text(i ? ", " : "", dim.size);
    ++i;
  }
  if (fits) return;
  refuse(text(name, ".shape"), shape_text(tensor), text("it must be [", names, "] = [", sizes, "]"),
         "Pass the tensor that belongs to this description.");
}

void check_contiguous(const Tensor& tensor, const char* name) {
  if (tensor.is_contiguous()) return;
  refuse(name, text("a strided view of shape ", shape_text(tensor)), "it must be contiguous",
         "Call .contiguous() on it once, at load.");
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

Workspace aligned_workspace(const std::optional<Tensor>& workspace, const Device& device, const char* owner) {
  if (!workspace) return {};
  check_dtype(*workspace, "workspace", {ScalarType::Byte});
  check_device(*workspace, "workspace", device, owner);
  check_contiguous(*workspace, "workspace");
  const auto address = reinterpret_cast<uintptr_t>(mutable_data<uint8_t>(*workspace));
  const uint64_t skip = (kWorkspaceAlignment - address % kWorkspaceAlignment) % kWorkspaceAlignment;
  const auto size = static_cast<uint64_t>(workspace->numel());
  if (address == 0 || size < skip) {
    refuse("workspace.numel()", size, text("it must hold ", kWorkspaceAlignment, " bytes at least"),
           "Ask workspace_size for the number, or pass None for the library's own workspace.");
  }
  return {reinterpret_cast<void*>(address + skip), size - skip};
}

}  // namespace nvfp4_moe_op
