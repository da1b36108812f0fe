#include "common/options.h"

#include <cmath>

#include "common/panels.h"
#include "common/status.h"

namespace compress {
namespace {

using Long = long long;

}  // namespace

void check_options(const compress_options& options, int64_t k) {
  if (options.act_low > options.act_high || options.act_low < -128 || options.act_high > 255 ||
      (options.act_low < 0 && options.act_high > 127))
    fail(COMPRESS_UNSUPPORTED, "activation codes from %d to %d are not 8-bit", options.act_low, options.act_high);
  if (!(options.act_max > 0.0f && std::isfinite(options.act_max)))
    fail(COMPRESS_INVALID, "the largest activation value is %g", double(options.act_max));
  if (options.act_zero_point && !options.act_scale) fail(COMPRESS_INVALID, "act_zero_point without act_scale");
  if (!options.low_rank_a != !options.low_rank_b) fail(COMPRESS_INVALID, "low_rank_a and low_rank_b go together");
  if (options.rank < 0 || options.rank > kLargestK || (options.rank > 0) != (options.low_rank_a != nullptr))
    fail(COMPRESS_INVALID, "a low-rank branch of rank %lld", Long(options.rank));
  if (options.activation < COMPRESS_ACTIVATION_NONE || options.activation > COMPRESS_ACTIVATION_SILU)
    fail(COMPRESS_INVALID, "activation %d is not known", options.activation);
  if (k < 1 || k > kLargestK) fail(COMPRESS_UNSUPPORTED, "sums over %lld positions could overflow 32 bits", Long(k));
}

void check_act_rows(const compress_options& options, int64_t rows) {
  if (options.act_scale && options.act_scale_rows != 1 && options.act_scale_rows != rows)
    fail(COMPRESS_INVALID, "%lld activation scales for %lld rows", Long(options.act_scale_rows), Long(rows));
  if (!options.act_zero_point) return;
  if (options.act_zero_rows != 1 && options.act_zero_rows != rows)
    fail(COMPRESS_INVALID, "%lld activation zero points for %lld rows", Long(options.act_zero_rows), Long(rows));
  for (int64_t row = 0; row < options.act_zero_rows; ++row) {
    const float zero = options.act_zero_point[row];
    if (!(zero >= float(options.act_low) && zero <= float(options.act_high) && zero == std::nearbyint(zero)))
      fail(COMPRESS_UNSUPPORTED, "the activation zero point %g is not one of the codes from %d to %d", double(zero),
           options.act_low, options.act_high);
  }
}

float activation_scale(const compress_options& options, float largest, int64_t row) {
  if (std::isnan(largest)) return largest;
  if (options.act_scale) return options.act_scale[options.act_scale_rows > 1 ? row : 0];
  const float scale = largest / options.act_max;
  if (scale == 0.0f) return 1.0f;
  return std::isfinite(scale) ? scale : std::nanf("");
}

RowCoding coding_of(const compress_options& options, float scale, int64_t row) {
  RowCoding coding{};
  coding.scale = scale;
  if (options.act_zero_point) coding.zero = options.act_zero_point[options.act_zero_rows > 1 ? row : 0];
  coding.low = float(options.act_low);
  coding.high = float(options.act_high);
  coding.shift = options.act_high > 127 ? 128.0f : 0.0f;
  return coding;
}

}  // namespace compress
