// Images as a convolution reads them: quantized and padded.
#pragma once

#include <cstdint>

#include "common/arena.h"
#include "include/compress_kernels.h"
#include "qconv2d/geometry.h"
#include "tile/tile.h"

namespace compress {

// Bytes [batch][channels][padded height][stride][width of a phase]. Pixels of a row whose distance is the stride lie
// side by side, so that 64 neighbouring outputs read 64 neighbouring bytes.
struct Image {
  int64_t phases, phase_width, row_bytes, rows, channel_bytes, bytes;
  bool shifted;
  int8_t* codes = nullptr;
  float* scale = nullptr;  // [batch]
  float* shift = nullptr;  // [batch]: scale * (what the codes are short of); all 0 when not `shifted`

  Image(const Geometry& g, const compress_options& options);

  // Takes its memory.
  void place(Layout& layout, int64_t batch);
  // Where an image of so many channels begins.
  int64_t start(int64_t image, int64_t channels) const { return image * channels * channel_bytes; }
};

// Fills a placed image.
void quantize_images(const Tile& t, const float* x, const Geometry& g, const compress_options& options,
                     const Image& image, const compress_runner* runner);

}  // namespace compress
