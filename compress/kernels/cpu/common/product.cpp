#include "common/product.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "common/few_rows.h"
#include "common/options.h"
#include "common/rows.h"
#include "common/status.h"
#include "common/tasks.h"

namespace compress {
namespace {

constexpr int64_t kRowsAtOnce = 16;

Rows place_rows(Layout& layout, int64_t count, const Panels& weight, const compress_options& options, const Tile& t) {
  Rows rows{};
  rows.count = count;
  rows.padded = round_up(count, t.rows_per_tile);
  const int64_t segment = weight.segment();
  rows.segments = segment ? (weight.k() + segment - 1) / segment : 1;
  rows.pitch = row_pitch(weight.k(), weight.segment());
  rows.codes = layout.take<int8_t>(size_t(rows.padded) * rows.pitch);
  rows.scale = layout.take<float>(size_t(rows.padded));
  rows.total = layout.take<int32_t>(size_t(rows.padded));
  rows.starts = layout.take<int32_t>(size_t(rows.padded * rows.segments));
  if (shifts(options)) {
    rows.shift = layout.take<float>(size_t(rows.padded));
    rows.ones = layout.take<int8_t>(rows.pitch);
    rows.ones_starts = layout.take<int32_t>(size_t(rows.segments));
  }
  if (options.rank) rows.low_rank = layout.take<float>(size_t(count * options.rank));
  return rows;
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
  const float largest = t.largest(values, options.smooth, size_t(k));
  const RowCoding coding = coding_of(options, activation_scale(options, largest, row), row);
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

Scratch place_scratch(Layout& layout, int64_t rows, int rows_per_tile) {
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
      : t_(t), rows_(rows), weight_(weight), options_(options), y_(y),
        panels_((weight.n() + kPanelColumns - 1) / kPanelColumns),
        parts_(rows.padded, t.rows_per_tile, panels_, threads) {}

  size_t tasks() const { return size_t(parts_.count * panels_); }

  size_t scratch_bytes() const {
    Layout count;
    place_scratch(count, parts_.rows, t_.rows_per_tile);
    return count.used();
  }

  // One panel of channels for one part of the rows. Consecutive tasks share the rows.
  void run(size_t task, char* memory) const {
    const int64_t panel = int64_t(task) % panels_, part = int64_t(task) / panels_;
    const int64_t first = panel * kPanelColumns;
    const int64_t begin = part * parts_.rows, end = std::min(begin + parts_.rows, rows_.padded);
    Layout layout(memory);
    Scratch s = place_scratch(layout, parts_.rows, t_.rows_per_tile);
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
  int64_t panels_;
  Parts parts_;
};

}  // namespace

void product(const Tile& t, const float* x, int64_t rows, const Panels& weight, const compress_options& options,
             float* y, const compress_runner* runner, double* seconds) {
  if (seconds) *seconds = 0.0;
  if (rows == 0) return;
  if (rows > kMostElements / std::max({weight.n(), weight.k(), options.rank}))
    fail(COMPRESS_INVALID, "%lld rows", static_cast<long long>(rows));
  check_act_rows(options, rows);
  thread_local Arena shared;
  Borrowed memory(shared);
  Layout count;
  place_rows(count, rows, weight, options, t);
  Layout layout(memory.reserve(count.used()));
  const Rows coded = place_rows(layout, rows, weight, options, t);
  const int64_t groups = (coded.padded + kRowsAtOnce - 1) / kRowsAtOnce;
  parallel_for(runner, size_t(groups), [&](size_t group) {
    const int64_t begin = int64_t(group) * kRowsAtOnce, end = std::min(begin + kRowsAtOnce, coded.padded);
    for (int64_t row = begin; row < end; ++row) encode_row(t, x, row, weight, options, coded);
  });
  if (coded.ones) encode_ones(t, weight, coded);

  const auto began = std::chrono::steady_clock::now();
  Stream stream{};
  if (!coded.ones && weight.stream(stream) && FewRows::computes(t, rows, stream)) {
    thread_local Arena split;
    Borrowed more(split);
    FewRows work(t, coded, weight, stream, options, y);
    Layout needed;
    work.place(needed);
    Layout placed(more.reserve(needed.used()));
    work.place(placed);
    work.split_rows();
    parallel_for(runner, work.tasks(), [&](size_t task) { work.run(task); });
  } else {
    const Product work(t, coded, weight, options, y, threads_of(runner));
    const size_t bytes = work.scratch_bytes();
    parallel_with_memory(runner, work.tasks(), [&](size_t task, Borrowed& own) { work.run(task, own.reserve(bytes)); });
  }
  if (seconds) *seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
}

}  // namespace compress
