// y = x W^T for quantized rows x and weights given as panels.
#pragma once

#include "common/panels.h"
#include "include/compress_kernels.h"

namespace compress {

// Options are checked already. `seconds`, when not null, gets the time of the product alone, rows being quantized
// already. Throws Failure.
void product(const Tile& t, const float* x, int64_t rows, const Panels& weight, const compress_options& options,
             float* y, const compress_runner* runner, double* seconds);

}  // namespace compress
