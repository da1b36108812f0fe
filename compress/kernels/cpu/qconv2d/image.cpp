#include "qconv2d/image.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "common/options.h"
#include "common/rows.h"
#include "common/tasks.h"

namespace compress {

Image::Image(const Geometry& g, const compress_options& options) {
  phases = g.stride[1];
  phase_width = (g.width + 2 * g.padding[1] + phases - 1) / phases;
  row_bytes = phases * phase_width;
  rows = g.height + 2 * g.padding[0];
  channel_bytes = rows * row_bytes;
  bytes = g.batch * g.channels * channel_bytes + kPanelColumns;  // the last pixels are read 64 at a time
  shifted = shifts(options);
}

void Image::place(Layout& layout, int64_t batch) {
  codes = layout.take<int8_t>(size_t(bytes));
  scale = layout.take<float>(size_t(batch));
  shift = layout.take<float>(size_t(batch));
}

namespace {

// One channel of one image. `line` holds the codes of the channel in their order.
void quantize_channel(const Tile& t, const float* x, const Geometry& g, const compress_options& options,
                      const Image& image, int64_t b, int64_t c, Borrowed& memory) {
  const int64_t count = g.height * g.width, padded = round_up(count, 16);
  Layout layout(memory.reserve(size_t(padded) + (options.smooth ? size_t(count) * 4 : 0) + 256));
  int8_t* line = layout.take<int8_t>(size_t(padded));
  const float* smooth = nullptr;
  if (options.smooth) {
    float* same = layout.take<float>(size_t(count));
    std::fill(same, same + count, options.smooth[c]);
    smooth = same;
  }
  const RowCoding coding = coding_of(options, image.scale[b], b);
  int32_t unused;
  t.encode(x + (b * g.channels + c) * count, smooth, size_t(count), size_t(padded), coding, line, size_t(padded),
           &unused);
  // The padding is an exact zero: the code that stands for it.
  const float zero = std::min(std::max(coding.zero, coding.low), coding.high) - coding.shift;
  int8_t* out = image.codes + image.start(b, g.channels) + c * image.channel_bytes;
  if (g.padding[0] || g.padding[1] || image.row_bytes != g.width)
    std::memset(out, int(zero) & 0xff, size_t(image.channel_bytes));
  for (int64_t row = 0; row < g.height; ++row) {
    int8_t* target = out + (row + g.padding[0]) * image.row_bytes;
    const int8_t* source = line + row * g.width;
    if (image.phases == 1) {
      std::memcpy(target + g.padding[1], source, size_t(g.width));
    } else {
      for (int64_t phase = 0; phase < image.phases; ++phase) {
        int64_t i = (phase - g.padding[1] % image.phases + image.phases) % image.phases;  // the first pixel of this phase
        int8_t* side = target + phase * image.phase_width + (i + g.padding[1]) / image.phases;
        for (; i < g.width; i += image.phases) *side++ = source[i];
      }
    }
  }
}

}  // namespace

void quantize_images(const Tile& t, const float* x, const Geometry& g, const compress_options& options,
                     const Image& image, const compress_runner* runner) {
  const int64_t count = g.height * g.width, planes = g.batch * g.channels;
  std::vector<float> most(size_t(planes), 0.0f);
  parallel_for(runner, size_t(planes), [&](size_t plane) {
    most[plane] = t.largest(x + int64_t(plane) * count, nullptr, size_t(count));
    if (options.smooth) most[plane] *= std::fabs(options.smooth[int64_t(plane) % g.channels]);
  });
  for (int64_t b = 0; b < g.batch; ++b) {
    float largest = 0.0f;
    for (int64_t c = 0; c < g.channels; ++c) {
      const float value = most[size_t(b * g.channels + c)];
      if (!(value <= largest)) largest = value;  // keeps NaN
      if (std::isnan(largest)) break;
    }
    image.scale[b] = activation_scale(options, largest, b);
    const RowCoding coding = coding_of(options, image.scale[b], b);
    image.shift[b] = coding.scale * (coding.shift - coding.zero);
  }
  parallel_with_memory(runner, size_t(planes), [&](size_t plane, Borrowed& memory) {
    quantize_channel(t, x, g, options, image, int64_t(plane) / g.channels, int64_t(plane) % g.channels, memory);
  });
  std::memset(image.codes + image.bytes - kPanelColumns, 0, kPanelColumns);
}

}  // namespace compress
