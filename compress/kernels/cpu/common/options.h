// What a call does to activations: its options checked, and how values become codes.
#pragma once

#include <cstdint>

#include "include/compress_kernels.h"
#include "tile/tile.h"

namespace compress {

// Throws Failure when options cannot be computed for products of length k; reads no data.
void check_options(const compress_options& options, int64_t k);
// Throws Failure when static activation scales or zero points do not belong to that many rows (images), or when a zero
// point is no code (COMPRESS_UNSUPPORTED).
void check_act_rows(const compress_options& options, int64_t rows);

// Whether codes may be short of the values they stand for, so that the sums of the weights are needed.
inline bool shifts(const compress_options& options) { return options.act_zero_point || options.act_high > 127; }
// The scale of a row (image) of that largest magnitude; NaN where the row holds a NaN, or an infinity that is not
// clipped.
float activation_scale(const compress_options& options, float largest, int64_t row);
RowCoding coding_of(const compress_options& options, float scale, int64_t row);

}  // namespace compress
