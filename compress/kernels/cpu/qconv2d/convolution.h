// Convolutions of images with weights given as rows.
#pragma once

#include "common/weight_rows.h"
#include "include/compress_kernels.h"
#include "qconv2d/geometry.h"
#include "tile/tile.h"

namespace compress {

// Throws Failure when a convolution of that kind cannot be computed; reads no data.
void check_convolution(const Geometry& geometry, const WeightRows& weight, const compress_options& options);

// Of what `check_convolution` lets pass. Throws Failure.
void convolution(const Tile& t, const float* x, const Geometry& geometry, const WeightRows& weight,
                 const compress_options& options, float* y, const compress_runner* runner);

}  // namespace compress
