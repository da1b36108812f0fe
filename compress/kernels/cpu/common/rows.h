// Rows of bytes as the tiles read them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace compress {

constexpr int64_t kMostElements = int64_t(1) << 46;  // of an input or output: sizes cannot overflow

inline int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

// Bytes from row to row of k positions in segments (0: none): whole cache lines, an odd number of them, which spreads
// the rows of a tile over the cache's sets.
inline size_t row_pitch(int64_t k, int segment) {
  const int64_t lines = round_up(round_up(k, segment ? segment : 32), 64) / 64;
  return size_t(lines | 1) * 64;
}

// Quantized rows of a product and all that its sums need of them.
struct Rows {
  int64_t count;
  int64_t padded;        // to whole tiles
  int64_t segments;      // of a row, 1 when the weight has none
  size_t pitch;          // bytes from row to row
  int8_t* codes;         // [padded][pitch]
  float* scale;          // [padded]
  float* shift;          // [padded]: scale * (what the codes are short of), or null
  int32_t* total;        // [padded]: sum of the codes
  int32_t* starts;       // [padded][segments]: -panel_offset * sum of the segment's codes
  float* low_rank;       // [count][rank] or null
  int8_t* ones;          // [pitch] or null: a row of ones, to sum the weights
  int32_t* ones_starts;  // [segments]
};

}  // namespace compress
