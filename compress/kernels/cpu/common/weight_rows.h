// Weights as a convolution sees them: one output channel at a time, decoded to signed bytes in the order of the codes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace compress {

class WeightRows {
 public:
  virtual ~WeightRows() = default;

  int64_t n() const { return n_; }
  int64_t k() const { return k_; }
  // Positions that share a scale, a multiple of 16; 0 when every channel has one scale.
  int segment() const { return segment_; }
  // Whether this channel's sums need scales between segments.
  virtual bool scaled(int64_t channel) const = 0;
  // The values [k] of a channel and its scales: one for each segment, or one alone when it is not scaled.
  virtual void decode(int64_t channel, int8_t* values, float* scales) const = 0;

 protected:
  int64_t n_ = 0, k_ = 0;
  int segment_ = 0;
};

}  // namespace compress
