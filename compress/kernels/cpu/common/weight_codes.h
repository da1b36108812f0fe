// Packed weights: what their codes mean as bytes, checked. Shared by products and convolutions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "include/compress_kernels.h"

namespace compress {

// As compress/kernels/folding.py: blocks below this share of their channel's scale are not folded, nor more bits.
constexpr float kSmallestRatio = 0.25f;
constexpr int kMostFoldedBits = 6;

// Throws Failure (COMPRESS_INVALID) when shapes and attributes contradict each other; reads no data.
void check_weight(const compress_weight& weight);
// Throws Failure (COMPRESS_INVALID) when a zero point is no code of that many bits.
void check_zero_points(const uint8_t* zero_points, int64_t count, int bits);

// How the codes of one weight become whole numbers that fit a signed byte, and which scales those need.
//
// A channel's codes are one stream: blocks whose bytes hold no padding follow each other without a gap.
class WeightCodes {
 public:
  // Throws Failure when the kernels cannot compute it; of all data only the table is read.
  explicit WeightCodes(const compress_weight& weight);

  const compress_weight& raw() const { return weight_; }
  int64_t blocks() const { return blocks_; }
  size_t row_bytes() const { return row_bytes_; }
  bool folds() const { return folds_; }
  // Positions that share scale and zero point; k when all do.
  int64_t stretch() const { return grouped() ? weight_.block_size : weight_.k; }
  // Whether scales change along a row; with `folds`, they do so in some panels only.
  bool scales_change() const { return weight_.scale_columns > 1; }
  bool zeros_change() const { return weight_.zero_points && weight_.zero_columns > 1; }
  bool grouped() const { return scales_change() || zeros_change(); }

  const uint8_t* row(int64_t channel) const { return weight_.codes + size_t(channel) * row_bytes_; }
  float scale(int64_t channel, int64_t block) const {
    return weight_.scales[(weight_.scale_rows > 1 ? channel : 0) * weight_.scale_columns +
                          (weight_.scale_columns > 1 ? block : 0)];
  }
  int zero(int64_t channel, int64_t block) const {
    if (!weight_.zero_points) return 1 << (weight_.bits - 1);
    return weight_.zero_points[(weight_.zero_rows > 1 ? channel : 0) * weight_.zero_columns +
                               (weight_.zero_columns > 1 ? block : 0)];
  }
  // 8-bit codes with zero points do not fit a signed byte; their zero is subtracted from the sums instead.
  bool zero_after() const { return weight_.bits == 8 && weight_.zero_points; }

  // Whole numbers of the codes under a zero point (ignored with a table), to be multiplied by scale * unit().
  void whole_values(int zero, float* values) const;
  float unit() const { return unit_; }

  // Folding of block scales, as compress/kernels/folding.py: values * factor rounded, to be multiplied by
  // channel scale * folded_unit().
  void values(int zero, float* values) const;
  float fold_factor(float ratio) const { return ratio * (127.0f / largest_); }
  float folded_unit() const { return largest_ / 127.0f; }
  // The largest scale of a channel's blocks, and whether some block stays exact; after `read`.
  float channel_scale(int64_t channel) const { return channels_[scale_row(channel)].largest; }
  bool keeps_blocks(int64_t channel) const { return channels_[scale_row(channel)].keeps; }
  // A block's part of its channel's largest scale; 0 where the block stays exact, because the ratio is below 1/4 or not
  // a ratio: beside negative scales, those that are not finite, and where all are 0.
  float fold_ratio(int64_t channel, int64_t block) const {
    return fold_ratio(scale(channel, block), channel_scale(channel));
  }
  static float fold_ratio(float scale, float largest) {
    const float ratio = scale / largest;
    return (ratio >= kSmallestRatio) & (ratio <= 1.0f) ? ratio : 0.0f;
  }
  bool folds_at(int64_t channel, int64_t block) const { return fold_ratio(channel, block) > 0.0f; }
  // Checks the zero points (COMPRESS_INVALID) and finds the channels' largest scales, if there is anything to fold.
  // Reads data; to be called once, before anything above is asked.
  void read(const compress_runner* runner);

  // Codes of `count` positions from `position` (a multiple of 8) as one byte each, or as nibbles.
  void unpack_bytes(int64_t channel, int64_t position, int64_t count, uint8_t* bytes) const;
  void unpack_nibbles(int64_t channel, int64_t position, int64_t count, uint8_t* nibbles) const;

 private:
  struct Channel {
    float largest;
    bool keeps;
  };

  static Channel read_channel(const float* scales, int64_t count);
  size_t scale_row(int64_t channel) const { return weight_.scale_rows > 1 ? size_t(channel) : 0; }

  compress_weight weight_;
  int64_t blocks_;
  size_t row_bytes_;
  bool folds_ = false;         // block scales, in some channels
  bool rounds_table_ = false;  // a table that is not whole
  float unit_ = 1.0f;          // of the whole numbers of a table
  float largest_ = 0.0f;       // magnitude of a value before scaling
  std::vector<Channel> channels_;  // [scale_rows] when blocks fold
};

}  // namespace compress
