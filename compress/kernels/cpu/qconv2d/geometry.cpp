#include "qconv2d/geometry.h"

#include "common/rows.h"
#include "common/status.h"

namespace compress {
namespace {

using Long = long long;

constexpr int64_t kLargestExtent = int64_t(1) << 30;

int64_t extent(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  const int64_t room = size + 2 * padding - dilation * (kernel - 1) - 1;
  return room < 0 ? 0 : room / stride + 1;
}

}  // namespace

Geometry::Geometry(const compress_geometry& g, int64_t outputs, int64_t k)
    : batch(g.batch), channels(g.channels), height(g.height), width(g.width), groups(g.groups), n(outputs) {
  for (int64_t value : {channels, height, width, groups, n})
    if (value < 1 || value > kLargestExtent)
      fail(COMPRESS_INVALID, "an image of %lld channels, %lld x %lld, in %lld groups", Long(channels), Long(height),
           Long(width), Long(groups));
  if (batch < 0 || batch > kLargestExtent) fail(COMPRESS_INVALID, "a batch of %lld", Long(batch));
  for (int axis = 0; axis < 2; ++axis) {
    kernel[axis] = g.kernel[axis];
    stride[axis] = g.stride[axis];
    padding[axis] = g.padding[axis];
    dilation[axis] = g.dilation[axis];
    if (kernel[axis] < 1 || kernel[axis] > 32767 || stride[axis] < 1 || stride[axis] > 32767 || padding[axis] < 0 ||
        padding[axis] > 32767 || dilation[axis] < 1 || dilation[axis] > 32767)
      fail(COMPRESS_INVALID, "kernel %lld, stride %lld, padding %lld, dilation %lld", Long(kernel[axis]),
           Long(stride[axis]), Long(padding[axis]), Long(dilation[axis]));
  }
  if (channels % groups || n % groups)
    fail(COMPRESS_INVALID, "%lld channels and %lld outputs in %lld groups", Long(channels), Long(n), Long(groups));
  if (channels / groups * kernel[0] * kernel[1] != k)
    fail(COMPRESS_INVALID, "%lld weights a channel, the convolution needs %lld", Long(k),
         Long(channels / groups * kernel[0] * kernel[1]));
  out_height = extent(height, kernel[0], stride[0], padding[0], dilation[0]);
  out_width = extent(width, kernel[1], stride[1], padding[1], dilation[1]);
  if (out_height < 1 || out_width < 1)
    fail(COMPRESS_INVALID, "the kernel is larger than the padded image of %lld x %lld", Long(height), Long(width));
  const __int128 elements = __int128(batch) * channels * (height + 2 * padding[0]) * (width + 2 * padding[1]);
  const __int128 outputs_in_all = __int128(batch) * n * out_height * out_width;
  if (elements > kMostElements || outputs_in_all > kMostElements) fail(COMPRESS_INVALID, "the image is absurdly large");
}

}  // namespace compress
