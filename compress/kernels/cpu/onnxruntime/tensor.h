// Tensors and statuses of onnxruntime as values.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/status.h"
#include "onnxruntime/abi.h"

namespace compress {

constexpr size_t kLargestRank = 8;

// A dense tensor in onnxruntime's memory, or what is known of one before there is data.
struct Tensor {
  int type = ort::kUndefined;
  size_t rank = 0;
  int64_t shape[kLargestRank] = {};
  const void* data = nullptr;

  int64_t count() const {
    int64_t product = 1;
    for (size_t i = 0; i < rank; ++i) product *= shape[i];
    return product;
  }
  template <typename T>
  const T* as() const {
    return static_cast<const T*>(data);
  }
};

// Throws Failure with onnxruntime's own words.
inline void check(const ort::Api& api, ort::Status status) {
  if (!status) return;
  const std::string text = api.message(status);
  api.release_status(status);
  throw Failure(COMPRESS_INVALID, "onnxruntime says: " + text);
}

// Throws Failure when a tensor has more than 8 axes, or absurd extents.
Tensor read_tensor(const ort::Api& api, const ort::TensorInfo* info);
Tensor read_tensor(const ort::Api& api, const ort::Value* value);

// The values as float32: float16, float8 E4M3, int8, and uint8 as powers of two (E8M0).
std::vector<float> to_float(const Tensor& tensor);

// "[2, 3]", "?" for extents that are not known.
std::string describe(const Tensor& tensor);

}  // namespace compress
