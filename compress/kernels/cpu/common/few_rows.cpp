#include "common/few_rows.h"

#include <algorithm>
#include <cstring>

namespace compress {

FewRows::FewRows(const Tile& t, const Rows& rows, const Panels& weight, const Stream& stream,
                 const compress_options& options, float* y)
    : t_(t), rows_(rows), weight_(weight), stream_(stream), options_(options), y_(y) {
  pitch_ = size_t(round_up(weight.k(), kFewChunk));
}

void FewRows::place(Layout& layout) {
  split_ = layout.take<int8_t>(size_t(rows_.count) * pitch_);
  if (stream_.scales) starts_ = layout.take<int32_t>(size_t(rows_.count) * pitch_ / 8);
}

void FewRows::split_rows() const {
  for (int64_t row = 0; row < rows_.count; ++row) {
    const int8_t* codes = rows_.codes + size_t(row) * rows_.pitch;
    int8_t* out = split_ + size_t(row) * pitch_;
    const int64_t have = std::min<int64_t>(int64_t(rows_.pitch), int64_t(pitch_));
    std::memset(out, 0, pitch_);
    if (!stream_.nibbles) {
      std::memcpy(out, codes, size_t(have));
      continue;
    }
    for (int64_t k = 0; k < have; ++k) out[k / kFewChunk * kFewChunk + k % 2 * 64 + k % kFewChunk / 2] = codes[k];
    if (!stream_.scales) continue;
    int32_t* starts = starts_ + size_t(row) * pitch_ / 8;
    std::memset(starts, 0, pitch_ / 2);
    for (int64_t k = 0; k < have; ++k) starts[k / 8] -= stream_.offset * codes[k];
  }
}

void FewRows::run(size_t task) const {
  const int64_t first = int64_t(task) * kPanelColumns;
  const int columns = int(std::min<int64_t>(kPanelColumns, weight_.n() - first));
  alignas(64) Sums sums;
  alignas(64) float scale[kPanelColumns], bias[kPanelColumns] = {};
  alignas(64) int32_t zero[kPanelColumns];
  const bool zeros = !stream_.scales && weight_.factors(first, scale, zero);
  if (options_.bias) std::memcpy(bias, options_.bias + first, size_t(columns) * sizeof(float));
  for (int c = 0; c < columns; c += kFewColumns) multiply(first + c, std::min(kFewColumns, columns - c), c, sums);
  for (int64_t r = 0; r < rows_.count; ++r) {
    alignas(64) float addend[kPanelColumns] = {};
    RowFinish how{};
    how.column_scale = stream_.scales ? nullptr : scale;
    how.column_zero = zeros ? zero : nullptr;
    how.bias = options_.bias ? bias : nullptr;
    how.residual = options_.residual ? options_.residual + r * weight_.n() + first : nullptr;
    how.row_scale = rows_.scale[r] * (stream_.scales ? weight_.unit() : 1.0f);
    how.row_sum = rows_.total[r];
    how.row_offset = stream_.offset * rows_.total[r];
    how.activation = Activation(options_.activation);
    if (rows_.low_rank) {
      t_.accumulate(rows_.low_rank + r * options_.rank, nullptr, options_.rank, options_.low_rank_b + first,
                    size_t(weight_.n()), addend, columns);
      how.addend = addend;
    }
    float* y = y_ + r * weight_.n() + first;
    if (stream_.scales)
      t_.finish_float(sums.real[r], how, y, columns);
    else
      t_.finish(sums.whole[r], how, y, columns);
  }
}

void FewRows::multiply(int64_t channel, int count, int column, Sums& sums) const {
  const uint8_t* codes[kFewColumns];
  const float* scales[kFewColumns] = {};
  for (int c = 0; c < count; ++c) {
    codes[c] = stream_.codes + size_t(channel + c) * stream_.row_bytes;
    if (stream_.scales) scales[c] = stream_.scales + size_t(channel + c) * stream_.scales_pitch;
  }
  const int rows = int(rows_.count);
  if (stream_.scales) {
    float found[kFewRows * kFewColumns];
    t_.dot_nibbles_scaled(codes, count, weight_.k(), stream_.table, scales, stream_.stretch, split_, pitch_, starts_,
                          pitch_ / 8, rows, found);
    for (int r = 0; r < rows; ++r) std::memcpy(sums.real[r] + column, found + r * kFewColumns, size_t(count) * 4);
    return;
  }
  int32_t found[kFewRows * kFewColumns];
  if (stream_.nibbles)
    t_.dot_nibbles(codes, count, weight_.k(), stream_.table, split_, pitch_, rows, found);
  else
    t_.dot_bytes(codes, count, weight_.k(), split_, pitch_, rows, found);
  for (int r = 0; r < rows; ++r) std::memcpy(sums.whole[r] + column, found + r * kFewColumns, size_t(count) * 4);
}

}  // namespace compress
