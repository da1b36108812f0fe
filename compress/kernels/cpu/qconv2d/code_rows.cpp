#include "qconv2d/code_rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/status.h"

namespace compress {

CodeRows::CodeRows(const compress_weight& weight) : codes_(weight) {
  n_ = weight.n;
  k_ = weight.k;
  if (codes_.zero_after()) fail(COMPRESS_UNSUPPORTED, "8-bit codes with zero points in a convolution");
  if (codes_.scales_change()) segment_ = int(std::min<int64_t>(weight.block_size, (k_ + 15) / 16 * 16));
}

bool CodeRows::scaled(int64_t channel) const {
  if (!segment_) return false;
  return !codes_.folds() || codes_.keeps_blocks(channel);
}

void CodeRows::decode(int64_t channel, int8_t* values, float* scales) const {
  const bool with_scales = scaled(channel);
  // Codes are read where their values go; each is replaced in place.
  codes_.unpack_bytes(channel, 0, k_, reinterpret_cast<uint8_t*>(values));
  const int64_t stretch = codes_.stretch();
  for (int64_t k = 0, block = 0; k < k_; k += stretch, ++block) {
    const float ratio = codes_.folds() ? codes_.fold_ratio(channel, block) : 0.0f;
    decode_stretch(channel, block, ratio, std::min(stretch, k_ - k), values + k);
    if (!with_scales && block > 0) continue;
    scales[block] = ratio > 0.0f ? codes_.channel_scale(channel) * codes_.folded_unit()
                                 : codes_.scale(channel, block) * codes_.unit();
  }
}

// `values` holds codes and gets what they stand for; `ratio` is 0 where they are not folded.
void CodeRows::decode_stretch(int64_t channel, int64_t block, float ratio, int64_t count, int8_t* values) const {
  const int zero = codes_.zero(channel, block);
  const compress_weight& w = codes_.raw();
  if (!codes_.folds() && !w.table) {
    for (int64_t i = 0; i < count; ++i) values[i] = int8_t(uint8_t(values[i]) - zero);
    return;
  }
  float table[256];
  int8_t entries[256];
  if (ratio > 0.0f) {
    codes_.values(zero, table);
    const float factor = codes_.fold_factor(ratio);
    for (int code = 0; code < 1 << w.bits; ++code) table[code] *= factor;
  } else {
    codes_.whole_values(zero, table);
  }
  for (int code = 0; code < 1 << w.bits; ++code) entries[code] = int8_t(std::nearbyint(table[code]));
  for (int64_t i = 0; i < count; ++i) values[i] = entries[uint8_t(values[i])];
}

}  // namespace compress
