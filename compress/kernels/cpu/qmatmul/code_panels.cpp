#include "qmatmul/code_panels.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/status.h"

namespace compress {
namespace {

// Positions that one scale covers inside a panel, for blocks larger than a panel: the largest divisor that fits.
int64_t part_of_block(int64_t block) {
  for (int64_t part = kLargestChunk; part >= 32; part -= 32)
    if (block % part == 0) return part;
  return 0;
}

}  // namespace

CodePanels::CodePanels(const compress_weight& weight, const Tile& tile) : codes_(weight), tile_(tile) {
  n_ = weight.n;
  k_ = weight.k;
  chunk_ = kUsualChunk;
  if (weight.bits == 4 && weight.table && !codes_.folds()) {
    float values[16];
    codes_.whole_values(0, values);
    for (int code = 0; code < 16; ++code) table_[code] = uint8_t(int(values[code]) + 128);
  }
  if (!codes_.grouped()) return;
  int64_t segment = weight.block_size;
  if (segment > kLargestChunk) segment = part_of_block(segment);
  const int64_t whole = segment % 32 ? 2 * segment : segment;
  if (!segment || whole > kLargestChunk)
    fail(COMPRESS_UNSUPPORTED, "blocks of %lld positions do not divide into panels",
         static_cast<long long>(weight.block_size));
  chunk_ = chunk_of(whole);
  if (codes_.scales_change()) segment_ = int(segment);
}

bool CodePanels::stream(Stream& stream) const {
  const compress_weight& w = codes_.raw();
  stream = {w.codes, codes_.row_bytes(), w.bits == 4, nullptr, 128, nullptr, 0, 0};
  if (codes_.folds() || codes_.zeros_change()) return false;
  if (w.bits == 8) return !codes_.scales_change() && !w.table;
  if (w.bits != 4 || w.zero_points) return false;
  stream.table = w.table ? table_ : nullptr;
  stream.offset = w.table ? 128 : 8;
  if (!codes_.scales_change()) return true;
  stream.scales = w.scales;
  stream.scales_pitch = size_t(w.scale_columns);
  stream.stretch = w.block_size;
  const bool fits = w.block_size == 16 || w.block_size == 32 || w.block_size == 64 || w.block_size % kFewChunk == 0;
  return fits && w.scale_rows == w.n;
}

bool CodePanels::scaled(int64_t first) const {
  if (!codes_.scales_change()) return false;
  if (!codes_.folds()) return true;
  for (int column = 0; column < kPanelColumns && first + column < n_; ++column)
    if (codes_.keeps_blocks(first + column)) return true;
  return false;
}

bool CodePanels::factors(int64_t first, float* scale, int32_t* zero) const {
  bool any = false;
  for (int column = 0; column < kPanelColumns; ++column) {
    const int64_t c = channel(first, column);
    scale[column] =
        codes_.folds() ? codes_.channel_scale(c) * codes_.folded_unit() : codes_.scale(c, 0) * codes_.unit();
    zero[column] = codes_.zero_after() ? codes_.zero(c, 0) - 128 : 0;
    any |= zero[column] != 0;
  }
  return any;
}

void CodePanels::prefetch(int64_t first, int64_t k0, int part, int parts) const {
  const int64_t bits = codes_.raw().bits, length = std::min<int64_t>(chunk_, k_ - k0);
  prefetch_channels(first, k0 * bits / 8, length * bits / 8, part, parts, [&](int64_t c) { return codes_.row(c); });
}

void CodePanels::expand(int64_t first, int64_t k0, PanelScratch& scratch) const {
  const int64_t length = std::min<int64_t>(chunk_, k_ - k0);
  if (segment_) write_scales(first, k0, length, scratch.scales);
  if (codes_.raw().bits <= 4)
    expand_four_bits(first, k0, length, scratch);
  else
    expand_more_bits(first, k0, length, scratch);
}

// Scales [segments][64] for panels that need them.
void CodePanels::write_scales(int64_t first, int64_t k0, int64_t length, float* scales) const {
  for (int column = 0; column < kPanelColumns; ++column) {
    const int64_t c = channel(first, column);
    for (int64_t k = k0, s = 0; k < k0 + length; k += segment_, ++s) {
      const int64_t block = k / codes_.raw().block_size;
      float scale = codes_.scale(c, block) * codes_.unit();
      if (codes_.folds() && codes_.folds_at(c, block)) scale = codes_.channel_scale(c) * codes_.folded_unit();
      scales[s * kPanelColumns + column] = scale;
    }
  }
}

// What the codes of one block stand for in the panel, as floats that are whole or will be rounded.
void CodePanels::fill_table(int64_t c, int64_t block, float* values) const {
  const int zero = codes_.zero(c, block);
  const float ratio = codes_.folds() ? codes_.fold_ratio(c, block) : 0.0f;
  if (ratio == 0.0f) {
    codes_.whole_values(zero, values);
    return;
  }
  const float factor = codes_.fold_factor(ratio);
  codes_.values(zero, values);
  for (int code = 0; code < 1 << codes_.raw().bits; ++code) values[code] *= factor;
}

// Tables of 16 panel bytes; returns how many positions share one, 0 when all columns and positions do.
int CodePanels::write_tables(int64_t first, int64_t k0, int64_t length, uint8_t* tables) const {
  float values[16] = {};
  const float one[1] = {1.0f};
  if (!codes_.folds() && !codes_.raw().zero_points) {
    fill_table(0, 0, values);
    tile_.fold_tables(values, one, 1, &tables);
    return 0;
  }
  const int stretch = codes_.grouped() ? int(std::min<int64_t>(codes_.raw().block_size, chunk_)) : kLargestChunk;
  if (codes_.folds() && !codes_.raw().zero_points) {
    // The common case: one run of values, a factor for each column and block.
    codes_.values(codes_.zero(0, 0), values);
    float whole[16] = {}, largest[kPanelColumns];
    codes_.whole_values(codes_.zero(0, 0), whole);
    for (int column = 0; column < kPanelColumns; ++column)
      largest[column] = codes_.channel_scale(channel(first, column));
    for (int64_t k = 0, s = 0; k < length; k += stretch, ++s) {
      const int64_t block = (k0 + k) / codes_.raw().block_size;
      float scales[kPanelColumns], factors[kPanelColumns];
      uint8_t* places[kPanelColumns];
      for (int column = 0; column < kPanelColumns; ++column) {
        scales[column] = codes_.scale(channel(first, column), block);
        places[column] = tables + s * 1024 + table_place(column);
      }
      for (int column = 0; column < kPanelColumns; ++column)  // apart from the loop above, four at a time
        factors[column] = codes_.fold_factor(WeightCodes::fold_ratio(scales[column], largest[column]));
      tile_.fold_tables(values, factors, kPanelColumns, places);
      for (int column = 0; column < kPanelColumns; ++column)
        if (factors[column] == 0.0f) tile_.fold_tables(whole, one, 1, &places[column]);
    }
    return stretch;
  }
  for (int64_t k = 0, s = 0; k < length; k += stretch, ++s) {
    for (int column = 0; column < kPanelColumns; ++column) {
      uint8_t* place = tables + s * 1024 + table_place(column);
      fill_table(channel(first, column), (k0 + k) / codes_.raw().block_size, values);
      tile_.fold_tables(values, one, 1, &place);
    }
  }
  return stretch;
}

void CodePanels::expand_four_bits(int64_t first, int64_t k0, int64_t length, PanelScratch& scratch) const {
  const int stretch = write_tables(first, k0, length, scratch.tables);
  const bool nibbles = codes_.raw().bits == 4;
  const int64_t whole = stretch % 32 ? 2 * stretch : 32;  // what is left must begin where a table begins
  const int64_t direct = nibbles ? length / whole * whole : 0;
  const uint8_t* columns[kPanelColumns];
  if (direct) {
    for (int column = 0; column < kPanelColumns; ++column)
      columns[column] = codes_.row(channel(first, column)) + k0 / 2;
    tile_.expand_nibbles(columns, int(direct), scratch.tables, stretch, scratch.panel);
  }
  if (direct == length) return;
  // What is left of a row, or codes of other widths, by way of nibbles in a buffer that is long enough to be read.
  const int64_t left = length - direct, padded = (left + 31) / 32 * 32;
  for (int column = 0; column < kPanelColumns; ++column) {
    uint8_t* nibbles_of = scratch.bytes + size_t(column) * kLargestChunk / 2;
    std::memset(nibbles_of, 0, size_t(padded) / 2);
    codes_.unpack_nibbles(channel(first, column), k0 + direct, left, nibbles_of);
    columns[column] = nibbles_of;
  }
  const int skipped = stretch ? int(direct / stretch) : 0;
  tile_.expand_nibbles(columns, int(padded), scratch.tables + size_t(skipped) * 1024, stretch,
                       scratch.panel + size_t(direct) * kPanelColumns);
}

void CodePanels::expand_more_bits(int64_t first, int64_t k0, int64_t length, PanelScratch& scratch) const {
  const uint8_t* columns[kPanelColumns];
  uint8_t add[kPanelColumns];
  const int bits = codes_.raw().bits;
  const bool plain = bits == 8 || (!codes_.raw().table && !codes_.folds() && !codes_.zeros_change());
  int64_t direct = 0;
  if (plain) {
    for (int column = 0; column < kPanelColumns; ++column) {
      const int zero = codes_.zero_after() ? 128 : codes_.zero(channel(first, column), 0);
      add[column] = uint8_t(tile_.panel_offset - zero);
    }
    if (bits == 8) {
      direct = length / 16 * 16;
      for (int column = 0; column < kPanelColumns; ++column) columns[column] = codes_.row(channel(first, column)) + k0;
      if (direct) tile_.expand_bytes(columns, int(direct), add, scratch.panel);
    }
  } else {
    std::memset(add, 0, sizeof add);
  }
  if (direct == length) return;
  const int64_t left = length - direct, padded = (left + 15) / 16 * 16;
  for (int column = 0; column < kPanelColumns; ++column) {
    uint8_t* bytes = scratch.bytes + size_t(column) * kLargestChunk;
    const int64_t c = channel(first, column);
    std::memset(bytes, 0, size_t(padded));
    codes_.unpack_bytes(c, k0 + direct, left, bytes);
    columns[column] = bytes;
    if (plain) continue;
    const int64_t stretch = codes_.stretch();
    for (int64_t k = 0; k < left;) {
      const int64_t block = codes_.grouped() ? (k0 + k) / stretch : 0;
      const int64_t end = std::min(left, codes_.grouped() ? (block + 1) * stretch - k0 : left);
      float values[256];
      uint8_t table[256];
      fill_table(c, block, values);
      for (int code = 0; code < 1 << bits; ++code)
        table[code] = uint8_t(int(std::nearbyint(values[code])) + tile_.panel_offset);
      for (; k < end; ++k) bytes[k] = table[bytes[k]];
    }
  }
  tile_.expand_bytes(columns, int(padded), add, scratch.panel + size_t(direct) * kPanelColumns);
}

}  // namespace compress
