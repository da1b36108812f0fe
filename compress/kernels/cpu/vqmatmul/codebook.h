// Vector codes: what they mean as bytes, checked. Shared by vqmatmul and vqconv2d.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "include/compress_kernels.h"

namespace compress {

constexpr float kSmallestLargest = 0x1p-100f;  // codebooks of smaller values, or zeros, are rounded to zeros

class Codebook {
 public:
  // Throws Failure when the weight is malformed or cannot be computed; of all data only the codebook is read.
  // `offset` is added to every byte.
  Codebook(const compress_vectors& weight, int offset);

  const compress_vectors& raw() const { return weight_; }
  float scale(int64_t channel) const { return weight_.scales[weight_.scale_rows > 1 ? channel : 0] * unit_; }
  const uint8_t* row(int64_t channel) const { return weight_.codes + size_t(channel) * row_bytes_; }
  // Entries of four bytes each, for d = 4 only.
  const uint32_t* quads() const { return quads_.data(); }
  // Values of `count` positions from `position` (a multiple of 8 d), as bytes plus the offset.
  void decode(int64_t channel, int64_t position, int64_t count, uint8_t* values) const;

 private:
  compress_vectors weight_;
  size_t row_bytes_;
  float unit_;
  std::vector<uint8_t> entries_;  // [2^bits][d]
  std::vector<uint32_t> quads_;
};

}  // namespace compress
