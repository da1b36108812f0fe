#include "common/weight_codes.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/parallel.h"
#include "common/status.h"

namespace compress {
namespace {

using Long = long long;

constexpr float kSmallestTable = 0x1p-100f;  // tables of smaller values, or of zeros, fold to zeros
constexpr int64_t kChannelsAtOnce = 64;

bool broadcasts(int64_t extent, int64_t to) { return extent == 1 || extent == to; }

// The power of two that a table's entries are whole multiples of, up to 127 of them; 0 when there is none.
float table_unit(const float* table, int entries) {
  float most = 0.0f;
  for (int i = 0; i < entries; ++i) {
    if (!std::isfinite(table[i])) return 0.0f;
    most = std::max(most, std::fabs(table[i]));
  }
  if (most == 0.0f) return 1.0f;
  if (most < kSmallestTable) return 0.0f;
  const float unit = std::ldexp(1.0f, -int(std::floor(std::log2(127.0f / most))));
  for (int i = 0; i < entries; ++i)
    if (table[i] / unit != std::nearbyint(table[i] / unit)) return 0.0f;
  return unit;
}

// Eight codes of `bits` bits from a byte-aligned stream.
inline uint64_t eight_codes(const uint8_t* stream, int bits) {
  uint64_t word = 0;
  std::memcpy(&word, stream, size_t(bits));
  return word;
}

}  // namespace

void check_weight(const compress_weight& w) {
  if (!w.codes || !w.scales) fail(COMPRESS_INVALID, "no codes or no scales");
  if (w.bits < 1 || w.bits > 8) fail(COMPRESS_INVALID, "codes of %d bits: 1 to 8 exist", w.bits);
  if (w.n < 1 || w.k < 1 || w.n > INT32_MAX || w.k > INT32_MAX)
    fail(COMPRESS_INVALID, "a weight of %lld x %lld", Long(w.n), Long(w.k));
  if (w.block_size < 1 || w.block_size > INT32_MAX) fail(COMPRESS_INVALID, "blocks of %lld", Long(w.block_size));
  const int64_t blocks = (w.k + w.block_size - 1) / w.block_size;
  if (!broadcasts(w.scale_rows, w.n) || !broadcasts(w.scale_columns, blocks))
    fail(COMPRESS_INVALID, "scales [%lld, %lld] do not broadcast against [%lld, %lld]", Long(w.scale_rows),
         Long(w.scale_columns), Long(w.n), Long(blocks));
  if (w.zero_points && (!broadcasts(w.zero_rows, w.n) || !broadcasts(w.zero_columns, blocks)))
    fail(COMPRESS_INVALID, "zero points [%lld, %lld] do not broadcast against [%lld, %lld]", Long(w.zero_rows),
         Long(w.zero_columns), Long(w.n), Long(blocks));
  if (w.table && w.zero_points) fail(COMPRESS_INVALID, "a table and zero points exclude each other");
  if (w.mode != COMPRESS_MODE_EXACT && w.mode != COMPRESS_MODE_FOLDED) fail(COMPRESS_INVALID, "mode %d", w.mode);
}

void check_zero_points(const uint8_t* zero_points, int64_t count, int bits) {
  unsigned any = 0;  // has a bit beyond the codes' exactly when some zero point has
  for (int64_t i = 0; i < count; ++i) any |= zero_points[i];
  if (any >> bits) fail(COMPRESS_INVALID, "a zero point is not below %d, as codes of %d bits are", 1 << bits, bits);
}

WeightCodes::WeightCodes(const compress_weight& weight) : weight_(weight) {
  const compress_weight& w = weight_;
  check_weight(w);
  blocks_ = (w.k + w.block_size - 1) / w.block_size;
  row_bytes_ = size_t(blocks_) * size_t((w.block_size * w.bits + 7) / 8);
  if (blocks_ > 1 && w.block_size * w.bits % 8)
    fail(COMPRESS_UNSUPPORTED, "blocks of %lld codes of %d bits do not end at a byte", Long(w.block_size), w.bits);
  if (grouped() && w.block_size % 16)
    fail(COMPRESS_UNSUPPORTED, "scales change every %lld positions, not a multiple of 16", Long(w.block_size));
  largest_ = float(w.zero_points ? (1 << w.bits) - 1 : 1 << (w.bits - 1));
  if (w.table) {
    largest_ = 0.0f;
    for (int i = 0; i < 1 << w.bits; ++i) {
      if (!std::isfinite(w.table[i])) fail(COMPRESS_INVALID, "the code table holds values that are not finite");
      largest_ = std::max(largest_, std::fabs(w.table[i]));
    }
    unit_ = w.bits <= kMostFoldedBits ? table_unit(w.table, 1 << w.bits) : 0.0f;
    largest_ = std::max(largest_, kSmallestTable);
  }
  const bool folded = w.mode == COMPRESS_MODE_FOLDED;
  rounds_table_ = folded && unit_ == 0.0f;
  if (rounds_table_) unit_ = largest_ / 127.0f;
  folds_ = folded && scales_change() && !rounds_table_;
  if ((folds_ || rounds_table_) && w.bits > kMostFoldedBits)
    fail(COMPRESS_UNSUPPORTED, "weights of %d bits cannot be folded into bytes", w.bits);
  if (unit_ == 0.0f) fail(COMPRESS_UNSUPPORTED, "the code table is not a run of whole numbers; mode folded rounds it");
  if (zero_after() && (scales_change() || zeros_change()))
    fail(COMPRESS_UNSUPPORTED, "8-bit codes with zero points under scales that change along a row");
}

void WeightCodes::whole_values(int zero, float* values) const {
  const float factor = 127.0f / largest_;
  for (int code = 0; code < 1 << weight_.bits; ++code) {
    if (!weight_.table)
      values[code] = float(code - zero);
    else
      values[code] = rounds_table_ ? std::nearbyint(weight_.table[code] * factor) : weight_.table[code] / unit_;
  }
}

void WeightCodes::values(int zero, float* values) const {
  for (int code = 0; code < 1 << weight_.bits; ++code)
    values[code] = weight_.table ? weight_.table[code] : float(code - zero);
}

WeightCodes::Channel WeightCodes::read_channel(const float* scales, int64_t count) {
  constexpr int kLanes = 8;  // that do not wait for each other
  float most[kLanes], least[kLanes];
  int32_t broken[kLanes] = {};
  std::fill_n(most, kLanes, scales[0]);
  std::fill_n(least, kLanes, scales[0]);
  const auto take = [&](float scale, int lane) {
    broken[lane] |= scale != scale;
    most[lane] = scale > most[lane] ? scale : most[lane];
    least[lane] = scale < least[lane] ? scale : least[lane];
  };
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) take(scales[i + lane], lane);
  for (; i < count; ++i) take(scales[i], 0);
  const float largest = *std::max_element(most, most + kLanes), smallest = *std::min_element(least, least + kLanes);
  const bool nan = std::any_of(broken, broken + kLanes, [](int32_t lane) { return lane != 0; });
  // Equal scales need no factors of their own, even where they are all 0.
  return {largest, nan || !(smallest == largest || fold_ratio(smallest, largest) > 0.0f)};
}

void WeightCodes::read(const compress_runner* runner) {
  const compress_weight& w = weight_;
  if (w.zero_points) check_zero_points(w.zero_points, w.zero_rows * w.zero_columns, w.bits);
  if (!folds_) return;
  channels_.resize(size_t(w.scale_rows));
  parallel_for(runner, size_t((w.scale_rows + kChannelsAtOnce - 1) / kChannelsAtOnce), [&](size_t group) {
    const int64_t begin = int64_t(group) * kChannelsAtOnce, end = std::min(begin + kChannelsAtOnce, w.scale_rows);
    for (int64_t row = begin; row < end; ++row)
      channels_[size_t(row)] = read_channel(w.scales + row * w.scale_columns, w.scale_columns);
  });
}

void WeightCodes::unpack_bytes(int64_t channel, int64_t position, int64_t count, uint8_t* bytes) const {
  const int bits = weight_.bits;
  const uint8_t* stream = row(channel) + size_t(position) * size_t(bits) / 8;
  if (bits == 8) {
    std::memcpy(bytes, stream, size_t(count));
    return;
  }
  if (bits == 4) {
    for (int64_t i = 0; i < count / 2; ++i) {
      bytes[2 * i] = stream[i] & 15;
      bytes[2 * i + 1] = stream[i] >> 4;
    }
    if (count % 2) bytes[count - 1] = stream[count / 2] & 15;
    return;
  }
  const uint8_t* end = weight_.codes + size_t(weight_.n) * row_bytes_;
  const uint64_t mask = (uint64_t(1) << bits) - 1;
  for (int64_t i = 0; i < count; i += 8, stream += bits) {
    uint64_t word = 0;
    if (stream + bits <= end)
      word = eight_codes(stream, bits);
    else
      std::memcpy(&word, stream, size_t(end - stream));
    for (int64_t j = 0; j < std::min<int64_t>(8, count - i); ++j) bytes[i + j] = uint8_t(word >> (bits * j) & mask);
  }
}

void WeightCodes::unpack_nibbles(int64_t channel, int64_t position, int64_t count, uint8_t* nibbles) const {
  uint8_t bytes[64];
  for (int64_t i = 0; i < count; i += 64) {
    const int64_t some = std::min<int64_t>(64, count - i);
    unpack_bytes(channel, position + i, some, bytes);
    for (int64_t j = 0; j < some; j += 2)
      nibbles[(i + j) / 2] = uint8_t(bytes[j] | (j + 1 < some ? bytes[j + 1] << 4 : 0));
  }
}

}  // namespace compress
