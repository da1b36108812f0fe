// Products of up to kFewRows rows: every code is read once and used for all of them.
#pragma once

#include "common/arena.h"
#include "common/panels.h"
#include "common/rows.h"
#include "include/compress_kernels.h"

namespace compress {

class FewRows {
 public:
  // What is given must outlive it.
  FewRows(const Tile& t, const Rows& rows, const Panels& weight, const Stream& stream, const compress_options& options,
          float* y);

  static bool computes(const Tile& t, int64_t rows, const Stream& stream) {
    return rows <= kFewRows && (stream.nibbles ? t.dot_nibbles != nullptr : t.dot_bytes != nullptr);
  }

  // Takes its memory; before all that follows.
  void place(Layout& layout);
  // Brings rows into the order that the codes have, and finds what the sums of eight positions begin with.
  void split_rows() const;
  // Each of them 64 channels; on any threads.
  size_t tasks() const { return size_t((weight_.n() + kPanelColumns - 1) / kPanelColumns); }
  void run(size_t task) const;

 private:
  // Sums of 64 channels; floats under scales that change along a row.
  union Sums {
    int32_t whole[kFewRows][kPanelColumns];
    float real[kFewRows][kPanelColumns];
  };

  void multiply(int64_t channel, int count, int column, Sums& sums) const;

  const Tile& t_;
  const Rows& rows_;
  const Panels& weight_;
  const Stream& stream_;
  const compress_options& options_;
  float* y_;
  size_t pitch_;
  int8_t* split_ = nullptr;     // [rows][pitch]
  int32_t* starts_ = nullptr;   // [rows][pitch / 8], under scales that change along a row
};

}  // namespace compress
