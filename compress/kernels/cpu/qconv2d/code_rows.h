// Output channels of packed codes.
#pragma once

#include "common/weight_codes.h"
#include "common/weight_rows.h"

namespace compress {

class CodeRows : public WeightRows {
 public:
  // Throws Failure when the weight is malformed or cannot be computed.
  explicit CodeRows(const compress_weight& weight);
  // Before the rows are used; reads data. Throws Failure when zero points are no codes.
  void read(const compress_runner* runner) { codes_.read(runner); }

  bool scaled(int64_t channel) const override;
  void decode(int64_t channel, int8_t* values, float* scales) const override;

 private:
  void decode_stretch(int64_t channel, int64_t block, float ratio, int64_t count, int8_t* values) const;

  WeightCodes codes_;
};

}  // namespace compress
