#include "common/product.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>

#include "common/arena.h"
#include "common/parallel.h"
#include "common/status.h"
#include "tile/dispatch.h"

namespace compress {
namespace {

constexpr int64_t kMostRows = 504;  // of one task: their sums and a chunk of their codes stay in the second-level cache
constexpr int64_t kRowsAtOnce = 16;
constexpr int64_t kMostElements = int64_t(1) << 46;  // of x and of y: sizes cannot overflow

int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

// Quantized rows and all that the sums need of them.
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

Rows lay_out(Layout& layout, int64_t count, const Panels& weight, const compress_options& options, const Tile& t) {
  Rows rows{};
  rows.count = count;
  rows.padded = round_up(count, t.rows_per_tile);
  const int64_t segment = weight.segment();
  rows.segments = segment ? (weight.k() + segment - 1) / segment : 1;
  int64_t lines = round_up(round_up(weight.k(), segment ? segment : 32), 64) / 64;
  lines |= 1;  // an odd number of cache lines spreads the rows of a tile over the cache's sets
  rows.pitch = size_t(lines) * 64;
  rows.codes = layout.take<int8_t>(size_t(rows.padded) * rows.pitch);
  rows.scale = layout.take<float>(size_t(rows.padded));
  rows.total = layout.take<int32_t>(size_t(rows.padded));
  rows.starts = layout.take<int32_t>(size_t(rows.padded * rows.segments));
  if (options.act_zero_point || options.act_low >= 0) {
    rows.shift = layout.take<float>(size_t(rows.padded));
    rows.ones = layout.take<int8_t>(rows.pitch);
    rows.ones_starts = layout.take<int32_t>(size_t(rows.segments));
  }
  if (options.rank) rows.low_rank = layout.take<float>(size_t(count * options.rank));
  return rows;
}

RowCoding coding_of(const Tile& t, const float* x, int64_t row, int64_t k, const compress_options& options) {
  RowCoding coding{};
  const float largest = t.largest(x, options.smooth, size_t(k));
  if (options.act_scale) {
    coding.scale = std::isnan(largest) ? largest : options.act_scale[options.act_scale_rows > 1 ? row : 0];
  } else {
    coding.scale = largest / options.act_max;
    if (coding.scale == 0.0f) coding.scale = 1.0f;
    if (!std::isfinite(coding.scale)) coding.scale = std::nanf("");
  }
  if (options.act_zero_point) coding.zero = options.act_zero_point[options.act_zero_rows > 1 ? row : 0];
  coding.low = float(options.act_low);
  coding.high = float(options.act_high);
  coding.shift = options.act_high > 127 ? 128.0f : 0.0f;
  return coding;
}

void encode_row(const Tile& t, const float* x, int64_t row, const Panels& weight, const compress_options& options,
                const Rows& rows) {
  const int64_t k = weight.k();
  int8_t* codes = rows.codes + size_t(row) * rows.pitch;
  int32_t* starts = rows.starts + row * rows.segments;
  if (row >= rows.count) {  // of the last tile
    std::memset(codes, 0, rows.pitch);
    std::memset(starts, 0, size_t(rows.segments) * sizeof *starts);
    rows.scale[row] = 0.0f;
    rows.total[row] = 0;
    if (rows.shift) rows.shift[row] = 0.0f;
    return;
  }
  const float* values = x + row * k;
  const RowCoding coding = coding_of(t, values, row, k, options);
  const size_t segment = weight.segment() ? size_t(weight.segment()) : rows.pitch;
  const size_t padded = weight.segment() ? segment * size_t(rows.segments) : rows.pitch;
  t.encode(values, options.smooth, size_t(k), padded, coding, codes, segment, starts);
  if (padded < rows.pitch) std::memset(codes + padded, 0, rows.pitch - padded);
  int32_t total = 0;
  for (int64_t s = 0; s < rows.segments; ++s) {
    total += starts[s];
    starts[s] *= -t.panel_offset;
  }
  rows.total[row] = total;
  rows.scale[row] = coding.scale;
  if (rows.shift) rows.shift[row] = coding.scale * (coding.shift - coding.zero);
  if (rows.low_rank) {
    float* projected = rows.low_rank + row * options.rank;
    std::memset(projected, 0, size_t(options.rank) * sizeof(float));
    t.accumulate(values, options.smooth, k, options.low_rank_a, size_t(options.rank), projected, int(options.rank));
  }
}

void encode_ones(const Tile& t, const Panels& weight, const Rows& rows) {
  std::memset(rows.ones, 0, rows.pitch);
  std::memset(rows.ones, 1, size_t(weight.k()));
  const int64_t segment = weight.segment() ? weight.segment() : weight.k();
  for (int64_t s = 0; s < rows.segments; ++s)
    rows.ones_starts[s] = int32_t(-t.panel_offset * std::min(segment, weight.k() - s * segment));
}

// What one thread needs for its panel, besides the panel itself.
struct Scratch {
  PanelScratch panel;
  int32_t* sums;  // [rows of a task][64], floats for scaled panels
  float* column_scale;
  int32_t* column_zero;
  int32_t* column_part;  // [rows_per_tile][64]: sums of the weights over k
  float* column_sum;
  float* addend;
  float* bias;
};

Scratch lay_out_scratch(Layout& layout, int64_t rows, int rows_per_tile) {
  Scratch s{};
  s.panel.panel = layout.take<uint8_t>(kPanelBytes);
  s.panel.scales = layout.take<float>(kPanelScales);
  s.panel.tables = layout.take<uint8_t>(kPanelTables);
  s.panel.bytes = layout.take<uint8_t>(kPanelCodes);
  s.sums = layout.take<int32_t>(size_t(rows) * kPanelColumns);
  s.column_scale = layout.take<float>(kPanelColumns);
  s.column_zero = layout.take<int32_t>(kPanelColumns);
  s.column_part = layout.take<int32_t>(size_t(rows_per_tile) * kPanelColumns);
  s.column_sum = layout.take<float>(kPanelColumns);
  s.addend = layout.take<float>(kPanelColumns);
  s.bias = layout.take<float>(kPanelColumns);
  return s;
}

class Product {
 public:
  Product(const Tile& t, const Rows& rows, const Panels& weight, const compress_options& options, float* y,
          size_t threads)
      : t_(t), rows_(rows), weight_(weight), options_(options), y_(y) {
    panels_ = (weight.n() + kPanelColumns - 1) / kPanelColumns;
    const int64_t tiles = rows.padded / t.rows_per_tile;
    int64_t parts = (rows.padded + kMostRows - 1) / kMostRows;
    // Enough tasks to keep every thread busy to the end, where there are rows to split.
    while (threads > 1 && panels_ * parts < int64_t(4 * threads) && parts < tiles / 4) ++parts;
    rows_per_task_ = (tiles + parts - 1) / parts * t.rows_per_tile;
    parts_ = (rows.padded + rows_per_task_ - 1) / rows_per_task_;
  }

  size_t tasks() const { return size_t(parts_ * panels_); }

  size_t scratch_bytes() const {
    Layout count;
    lay_out_scratch(count, rows_per_task_, t_.rows_per_tile);
    return count.used();
  }

  // One panel of channels for one part of the rows. Consecutive tasks share the rows.
  void run(size_t task, char* memory) const {
    const int64_t panel = int64_t(task) % panels_, part = int64_t(task) / panels_;
    const int64_t first = panel * kPanelColumns;
    const int64_t begin = part * rows_per_task_, end = std::min(begin + rows_per_task_, rows_.padded);
    Layout layout(memory);
    Scratch s = lay_out_scratch(layout, rows_per_task_, t_.rows_per_tile);
    const bool scaled = weight_.scaled(first);
    const bool zeros = !scaled && weight_.factors(first, s.column_scale, s.column_zero);
    const int columns = int(std::min<int64_t>(kPanelColumns, weight_.n() - first));
    if (options_.bias) {
      std::memset(s.bias, 0, kPanelColumns * sizeof(float));
      std::memcpy(s.bias, options_.bias + first, size_t(columns) * sizeof(float));
    }
    const int64_t next_panel = (panel + 1) % panels_ * kPanelColumns;
    const int tiles = int((end - begin) / t_.rows_per_tile);
    for (int64_t k0 = 0; k0 < weight_.k(); k0 += weight_.chunk()) {
      weight_.expand(first, k0, s.panel);
      const bool last = k0 + weight_.chunk() >= weight_.k();
      const int quads = quads_of(k0);
      if (rows_.ones) multiply(scaled, s, rows_.ones, 0, rows_.ones_starts, 0, k0, quads, s.column_part);
      if (rows_.ones && last) sum_columns(scaled, zeros, s);
      for (int tile = 0; tile < tiles; ++tile) {
        const int64_t row = begin + int64_t(tile) * t_.rows_per_tile;
        weight_.prefetch(last ? next_panel : first, last ? 0 : k0 + weight_.chunk(), tile, tiles);
        if (tile + 1 < tiles)
          prefetch_rows(rows_.codes + size_t(row + t_.rows_per_tile) * rows_.pitch + k0, rows_.pitch, t_.rows_per_tile,
                        size_t(quads) * kQuad);
        if (last) ask_for_outputs(row, first);
        int32_t* sums = s.sums + (row - begin) * kPanelColumns;
        multiply(scaled, s, rows_.codes + size_t(row) * rows_.pitch, rows_.pitch, rows_.starts + row * rows_.segments,
                 size_t(rows_.segments), k0, quads, sums);
        if (last) finish(scaled, zeros, s, row, first, columns, sums);
      }
    }
  }

 private:
  int quads_of(int64_t k0) const {
    const int64_t left = std::min<int64_t>(weight_.chunk(), weight_.k() - k0);
    return int(round_up(left, weight_.segment() ? weight_.segment() : 16) / kQuad);
  }

  void multiply(bool scaled, const Scratch& s, const int8_t* codes, size_t pitch, const int32_t* starts,
                size_t starts_pitch, int64_t k0, int quads, int32_t* sums) const {
    if (!scaled) {
      t_.multiply(s.panel.panel, codes + k0, pitch, quads, sums, kPanelColumns, k0 > 0);
      return;
    }
    const int segment = weight_.segment();
    t_.multiply_scaled(s.panel.panel, codes + k0, pitch, segment / kQuad, quads * kQuad / segment,
                       starts + k0 / segment, starts_pitch, s.panel.scales, reinterpret_cast<float*>(sums),
                       kPanelColumns, k0 > 0);
  }

  // Weights summed over k, from the product with a row of ones.
  void sum_columns(bool scaled, bool zeros, const Scratch& s) const {
    const int32_t k = int32_t(weight_.k());
    for (int c = 0; c < kPanelColumns; ++c) {
      if (scaled) {
        s.column_sum[c] = reinterpret_cast<const float*>(s.column_part)[c];
      } else {
        const int32_t zero = t_.panel_offset + (zeros ? s.column_zero[c] : 0);
        s.column_sum[c] = float(s.column_part[c] - zero * k) * s.column_scale[c];
      }
    }
  }

  void ask_for_outputs(int64_t row, int64_t first) const {
    const int64_t end = std::min(row + t_.rows_per_tile, rows_.count);
    for (int64_t r = row; r < end; ++r) {
      const float* line = y_ + r * weight_.n() + first;
      for (int c = 0; c < kPanelColumns; c += 16) __builtin_prefetch(line + c, 1);
    }
  }

  void finish(bool scaled, bool zeros, const Scratch& s, int64_t row, int64_t first, int columns,
              const int32_t* sums) const {
    const int64_t end = std::min(row + t_.rows_per_tile, rows_.count);
    RowFinish how{};
    how.column_scale = scaled ? nullptr : s.column_scale;
    how.column_zero = zeros ? s.column_zero : nullptr;
    how.column_sum = rows_.ones ? s.column_sum : nullptr;
    how.bias = options_.bias ? s.bias : nullptr;
    how.activation = Activation(options_.activation);
    for (int64_t r = row; r < end; ++r, sums += kPanelColumns) {
      const int64_t place = r * weight_.n() + first;
      how.row_scale = rows_.scale[r];
      how.row_sum = rows_.total[r];
      how.row_offset = t_.panel_offset * rows_.total[r];
      if (rows_.shift) how.row_shift = rows_.shift[r];
      if (options_.residual) how.residual = options_.residual + place;
      if (rows_.low_rank) {
        std::memset(s.addend, 0, kPanelColumns * sizeof(float));
        t_.accumulate(rows_.low_rank + r * options_.rank, nullptr, options_.rank, options_.low_rank_b + first,
                      size_t(weight_.n()), s.addend, columns);
        how.addend = s.addend;
      }
      if (scaled)
        t_.finish_float(reinterpret_cast<const float*>(sums), how, y_ + place, columns);
      else
        t_.finish(sums, how, y_ + place, columns);
    }
  }

  const Tile& t_;
  const Rows& rows_;
  const Panels& weight_;
  const compress_options& options_;
  float* y_;
  int64_t panels_ = 0, parts_ = 0, rows_per_task_ = 0;
};

// Up to kFewRows rows: every code is read once and used for all of them.
class FewRows {
 public:
  FewRows(const Tile& t, const Rows& rows, const Panels& weight, const Stream& stream, const compress_options& options,
          float* y)
      : t_(t), rows_(rows), weight_(weight), stream_(stream), options_(options), y_(y) {
    pitch_ = size_t(round_up(weight.k(), kFewChunk));
  }

  static bool computes(const Tile& t, int64_t rows, const Stream& stream) {
    return rows <= kFewRows && (stream.nibbles ? t.dot_nibbles != nullptr : t.dot_bytes != nullptr);
  }

  void lay_out(Layout& layout) {
    split_ = layout.take<int8_t>(size_t(rows_.count) * pitch_);
    if (stream_.scales) starts_ = layout.take<int32_t>(size_t(rows_.count) * pitch_ / 8);
  }

  // Rows in the order that the codes have, and what the sums of eight positions begin with.
  void split_rows() const {
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

  size_t tasks() const { return size_t((weight_.n() + kPanelColumns - 1) / kPanelColumns); }

  void run(size_t task) const {
    const int64_t first = int64_t(task) * kPanelColumns;
    const int columns = int(std::min<int64_t>(kPanelColumns, weight_.n() - first));
    alignas(64) int32_t sums[kFewRows][kPanelColumns];
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
        t_.finish_float(reinterpret_cast<const float*>(sums[r]), how, y, columns);
      else
        t_.finish(sums[r], how, y, columns);
    }
  }

 private:
  void multiply(int64_t channel, int count, int column, int32_t (*sums)[kPanelColumns]) const {
    const uint8_t* codes[kFewColumns];
    const float* scales[kFewColumns] = {};
    for (int c = 0; c < count; ++c) {
      codes[c] = stream_.codes + size_t(channel + c) * stream_.row_bytes;
      if (stream_.scales) scales[c] = stream_.scales + size_t(channel + c) * stream_.scales_pitch;
    }
    int32_t found[kFewRows * kFewColumns];
    const int rows = int(rows_.count);
    if (!stream_.nibbles)
      t_.dot_bytes(codes, count, weight_.k(), split_, pitch_, rows, found);
    else if (!stream_.scales)
      t_.dot_nibbles(codes, count, weight_.k(), stream_.table, split_, pitch_, rows, found);
    else
      t_.dot_nibbles_scaled(codes, count, weight_.k(), stream_.table, scales, stream_.stretch, split_, pitch_, starts_,
                            pitch_ / 8, rows, reinterpret_cast<float*>(found));
    for (int r = 0; r < rows; ++r) std::memcpy(sums[r] + column, found + r * kFewColumns, size_t(count) * 4);
  }

  const Tile& t_;
  const Rows& rows_;
  const Panels& weight_;
  const Stream& stream_;
  const compress_options& options_;
  float* y_;
  size_t pitch_;
  int8_t* split_ = nullptr;
  int32_t* starts_ = nullptr;
};

}  // namespace

void check_options(const compress_options& options, int64_t k) {
  if (options.act_low > options.act_high || options.act_low < -128 || options.act_high > 255 ||
      (options.act_low < 0 && options.act_high > 127))
    fail(COMPRESS_UNSUPPORTED, "activation codes from %d to %d are not 8-bit", options.act_low, options.act_high);
  if (!(options.act_max > 0.0f && std::isfinite(options.act_max)))
    fail(COMPRESS_INVALID, "the largest activation value is %g", double(options.act_max));
  if (options.act_zero_point && !options.act_scale) fail(COMPRESS_INVALID, "act_zero_point without act_scale");
  if (!options.low_rank_a != !options.low_rank_b) fail(COMPRESS_INVALID, "low_rank_a and low_rank_b go together");
  if (options.rank < 0 || options.rank > kLargestK || (options.rank > 0) != (options.low_rank_a != nullptr))
    fail(COMPRESS_INVALID, "a low-rank branch of rank %lld", static_cast<long long>(options.rank));
  if (options.activation < COMPRESS_ACTIVATION_NONE || options.activation > COMPRESS_ACTIVATION_SILU)
    fail(COMPRESS_INVALID, "activation %d is not known", options.activation);
  if (k < 1 || k > kLargestK)
    fail(COMPRESS_UNSUPPORTED, "sums over %lld positions could overflow 32 bits", static_cast<long long>(k));
}

void check_act_rows(const compress_options& options, int64_t rows) {
  if (options.act_scale && options.act_scale_rows != 1 && options.act_scale_rows != rows)
    fail(COMPRESS_INVALID, "%lld activation scales for %lld rows", static_cast<long long>(options.act_scale_rows),
         static_cast<long long>(rows));
  if (options.act_zero_point && options.act_zero_rows != 1 && options.act_zero_rows != rows)
    fail(COMPRESS_INVALID, "%lld activation zero points for %lld rows", static_cast<long long>(options.act_zero_rows),
         static_cast<long long>(rows));
}

void product(const float* x, int64_t rows, const Panels& weight, const compress_options& options, float* y,
             const compress_runner* runner, double* seconds) {
  if (rows == 0) return;
  if (rows > kMostElements / std::max({weight.n(), weight.k(), options.rank}))
    fail(COMPRESS_INVALID, "%lld rows", static_cast<long long>(rows));
  check_act_rows(options, rows);
  const Tile& t = tile();
  thread_local Arena shared;
  Layout count;
  lay_out(count, rows, weight, options, t);
  Layout layout(shared.reserve(count.used()));
  const Rows coded = lay_out(layout, rows, weight, options, t);
  const int64_t groups = (coded.padded + kRowsAtOnce - 1) / kRowsAtOnce;
  parallel_for(runner, size_t(groups), [&](size_t group) {
    const int64_t begin = int64_t(group) * kRowsAtOnce, end = std::min(begin + kRowsAtOnce, coded.padded);
    for (int64_t row = begin; row < end; ++row) encode_row(t, x, row, weight, options, coded);
  });
  if (coded.ones) encode_ones(t, weight, coded);

  const auto began = std::chrono::steady_clock::now();
  const auto ended = [&] {
    if (seconds) *seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  };
  Stream stream{};
  if (!coded.ones && weight.stream(stream) && FewRows::computes(t, rows, stream)) {
    thread_local Arena split;
    FewRows work(t, coded, weight, stream, options, y);
    Layout needed;
    work.lay_out(needed);
    Layout placed(split.reserve(needed.used()));
    work.lay_out(placed);
    work.split_rows();
    parallel_for(runner, work.tasks(), [&](size_t task) { work.run(task); });
    ended();
    return;
  }
  const Product work(t, coded, weight, options, y, threads_of(runner));
  const size_t bytes = work.scratch_bytes();
  std::atomic<bool> short_of_memory{false};
  parallel_for(runner, work.tasks(), [&](size_t task) {
    thread_local Arena own;
    try {
      work.run(task, own.reserve(bytes));
    } catch (const std::bad_alloc&) {
      short_of_memory = true;
    }
  });
  ended();
  shared.trim();
  if (short_of_memory) throw std::bad_alloc();
}

}  // namespace compress
