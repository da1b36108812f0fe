// Weights as the product sees them: 64 output channels at a time, expanded to bytes a chunk of positions at a time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tile/tile.h"

namespace compress {

constexpr int kUsualChunk = 384;
constexpr int kLargestChunk = 512;     // positions: the panel is 32 KiB then
constexpr int64_t kLargestK = 65535;   // 255 * 128 * k fits in int32

// Positions that are expanded at a time where they must be a multiple of `unit`, which is at most kLargestChunk.
inline int chunk_of(int64_t unit) {
  const int64_t room = unit > kUsualChunk ? kLargestChunk : kUsualChunk;
  return int(room / unit * unit);
}

// Working memory of one task, of the sizes below.
struct PanelScratch {
  uint8_t* panel;   // [kLargestChunk / 4][64][4]
  float* scales;    // [kLargestChunk / 16][64]
  uint8_t* tables;  // [kLargestChunk / 16][1024]
  uint8_t* bytes;   // [64][kLargestChunk]
};

constexpr size_t kPanelBytes = size_t(kLargestChunk) * kPanelColumns;
constexpr size_t kPanelScales = size_t(kLargestChunk) / 16 * kPanelColumns;
constexpr size_t kPanelTables = size_t(kLargestChunk) / 16 * 1024;
constexpr size_t kPanelCodes = size_t(kPanelColumns) * kLargestChunk;

// Codes that few rows can be multiplied with as they lie; see Tile::dot_nibbles.
struct Stream {
  const uint8_t* codes;
  size_t row_bytes;
  bool nibbles;          // else bytes
  const uint8_t* table;  // 16 bytes or null, for nibbles
  int offset;            // of the bytes above the values
  const float* scales;   // [n][scales_pitch] or null: Panels::factors
  size_t scales_pitch;
  int64_t stretch;
};

class Panels {
 public:
  virtual ~Panels() = default;

  int64_t n() const { return n_; }
  int64_t k() const { return k_; }
  // Positions expanded at a time, a multiple of 32 and of `segment`, at most kLargestChunk.
  int chunk() const { return chunk_; }
  // Positions that share a scale, a multiple of 16 that divides `chunk`; 0 when every channel has one scale.
  int segment() const { return segment_; }
  // Whether the panel that starts at channel `first` needs its scales between segments.
  virtual bool scaled(int64_t first) const = 0;
  // Panel bytes of positions from k0 to k0 + chunk, as far as there are any, to scratch.panel; for scaled panels the
  // scales [segments][64] too. Bytes of positions beyond k mean nothing, nor do channels beyond n.
  virtual void expand(int64_t first, int64_t k0, PanelScratch& scratch) const = 0;
  // Panels that are not scaled: scales of the 64 channels and what to subtract for each unit of the row's sum. Returns
  // whether any of the latter is not 0.
  virtual bool factors(int64_t first, float* scale, int32_t* zero) const = 0;
  // Asks for the cache lines `expand` will read: part `part` of `parts`.
  virtual void prefetch(int64_t first, int64_t k0, int part, int parts) const = 0;
  // Whether the codes can be streamed, and how.
  virtual bool stream(Stream&) const { return false; }
  // What sums under the stream's scales are short of: the unit of whole numbers.
  virtual float unit() const { return 1.0f; }

 protected:
  // The channel of a column; those beyond the last repeat it.
  int64_t channel(int64_t first, int column) const { return first + column < n_ ? first + column : n_ - 1; }

  // Asks for part `part` of `parts` of `bytes` from byte `at` on of each of the 64 channels; row(channel) is its first.
  template <typename Row>
  void prefetch_channels(int64_t first, int64_t at, int64_t bytes, int part, int parts, Row&& row) const {
    constexpr int64_t kLine = 64;
    const int64_t total = (bytes + kLine - 1) / kLine * kPanelColumns;
    for (int64_t i = total * part / parts; i < total * (part + 1) / parts; ++i) {
      const int64_t c = first + i % kPanelColumns;
      if (c < n_) __builtin_prefetch(row(c) + at + i / kPanelColumns * kLine, 0, 2);
    }
  }

  int64_t n_ = 0, k_ = 0;
  int chunk_ = 0, segment_ = 0;
};

}  // namespace compress
