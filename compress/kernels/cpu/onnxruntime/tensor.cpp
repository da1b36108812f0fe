#include "onnxruntime/tensor.h"

#include "onnxruntime/formats.h"

namespace compress {
namespace {

constexpr int64_t kLargestExtent = int64_t(1) << 40;  // sums and products of a few still fit 64 bits

template <typename T, typename Convert>
std::vector<float> converted(const Tensor& tensor, Convert&& convert) {
  std::vector<float> out(size_t(tensor.count()));
  const T* values = tensor.as<T>();
  for (size_t i = 0; i < out.size(); ++i) out[i] = convert(values[i]);
  return out;
}

}  // namespace

Tensor read_tensor(const ort::Api& api, const ort::TensorInfo* info) {
  Tensor tensor;
  check(api, api.element_type(info, &tensor.type));
  check(api, api.rank(info, &tensor.rank));
  if (tensor.rank > kLargestRank) fail(COMPRESS_INVALID, "a tensor has %zu axes", tensor.rank);
  check(api, api.shape(info, tensor.shape, tensor.rank));
  int64_t product = 1;
  for (size_t i = 0; i < tensor.rank; ++i) {
    const int64_t extent = tensor.shape[i];
    if (extent > kLargestExtent) fail(COMPRESS_INVALID, "a tensor has an extent of %lld", (long long)extent);
    if (extent > 0 && __builtin_mul_overflow(product, extent, &product))
      fail(COMPRESS_INVALID, "a tensor has more elements than can be counted");
  }
  return tensor;
}

Tensor read_tensor(const ort::Api& api, const ort::Value* value) {
  ort::TensorInfo* info = nullptr;
  check(api, api.tensor_info(value, &info));
  struct Release {
    const ort::Api& api;
    ort::TensorInfo* info;
    ~Release() { api.release_tensor_info(info); }
  } release{api, info};
  Tensor tensor = read_tensor(api, info);
  for (size_t i = 0; i < tensor.rank; ++i)
    if (tensor.shape[i] < 0) fail(COMPRESS_INVALID, "a tensor has an extent of %lld", (long long)tensor.shape[i]);
  void* data = nullptr;
  check(api, api.tensor_data(const_cast<ort::Value*>(value), &data));
  tensor.data = data;
  return tensor;
}

std::vector<float> to_float(const Tensor& tensor) {
  switch (tensor.type) {
    case ort::kFloat:
      return converted<float>(tensor, [](float v) { return v; });
    case ort::kFloat16:
      return converted<uint16_t>(tensor, float_of_half);
    case ort::kFloat8E4M3:
      return converted<uint8_t>(tensor, float_of_e4m3);
    case ort::kUint8:
      return converted<uint8_t>(tensor, float_of_e8m0);
    case ort::kInt8:
      return converted<int8_t>(tensor, [](int8_t v) { return float(v); });
    default:
      fail(COMPRESS_INVALID, "a tensor of ONNX type %d cannot become float32", tensor.type);
  }
}

std::string describe(const Tensor& tensor) {
  std::string text = "[";
  for (size_t i = 0; i < tensor.rank; ++i) {
    if (i) text += ", ";
    text += tensor.shape[i] < 0 ? "?" : std::to_string(tensor.shape[i]);
  }
  return text + "]";
}

}  // namespace compress
