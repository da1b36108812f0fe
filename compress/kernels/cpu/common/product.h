// y = x W^T for quantized rows x and weights given as panels.
#pragma once

#include "common/panels.h"
#include "include/compress_kernels.h"

namespace compress {

// Throws Failure when options cannot be computed for products of length k; reads no data.
void check_options(const compress_options& options, int64_t k);
// Throws Failure when static activation scales or zero points do not belong to that many rows (images).
void check_act_rows(const compress_options& options, int64_t rows);

// `seconds`, when not null, gets the time of the product alone, rows being quantized already.
void product(const float* x, int64_t rows, const Panels& weight, const compress_options& options, float* y,
             const compress_runner* runner, double* seconds);

}  // namespace compress
