// Sizes of a convolution, checked.
#pragma once

#include <cstdint>

#include "include/compress_kernels.h"

namespace compress {

struct Geometry {
  explicit Geometry(const compress_geometry& given, int64_t n, int64_t k);  // throws Failure

  int64_t batch, channels, height, width, groups, n;
  int64_t kernel[2], stride[2], padding[2], dilation[2];
  int64_t out_height, out_width;

  int64_t pixels() const { return batch * out_height * out_width; }
  int64_t image_pixels() const { return out_height * out_width; }
  bool depthwise() const { return groups > 1 && groups == channels; }
};

}  // namespace compress
