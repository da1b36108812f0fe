// A convolution as a matrix product: output channels are the rows, 64 output pixels the columns of a panel, which is
// gathered from the quantized image a chunk of weight positions at a time. Positions keep the order of the codes
// (channel, kernel row, kernel column), so packed weights are read as they are and outputs are written as they lie.
#include "qconv2d/convolution.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "common/options.h"
#include "common/panels.h"
#include "common/rows.h"
#include "common/status.h"
#include "common/tasks.h"
#include "qconv2d/image.h"

namespace compress {
namespace {

constexpr size_t kStagingPitch = 2 * kPanelColumns;  // pieces are copied 64 bytes at a time and overlap

// Decoded output channels.
struct Channels {
  int64_t padded;    // to whole tiles
  int64_t segments;
  size_t pitch;
  int8_t* values;    // [padded][pitch], zeros beyond k
  float* scales;     // [padded][segments]
  int32_t* starts;   // [padded][segments]: -panel_offset * sum of the values
  int32_t* total;    // [padded]: sum of the values of channels that are not scaled
  float* sum;        // [padded]: of the weights
  uint8_t* scaled;   // [padded]
};

Channels place_channels(Layout& layout, const WeightRows& weight, const Tile& t) {
  Channels c{};
  c.padded = round_up(weight.n(), t.rows_per_tile);
  c.segments = weight.segment() ? (weight.k() + weight.segment() - 1) / weight.segment() : 1;
  c.pitch = row_pitch(weight.k(), weight.segment());
  c.values = layout.take<int8_t>(size_t(c.padded) * c.pitch);
  c.scales = layout.take<float>(size_t(c.padded * c.segments));
  c.starts = layout.take<int32_t>(size_t(c.padded * c.segments));
  c.total = layout.take<int32_t>(size_t(c.padded));
  c.sum = layout.take<float>(size_t(c.padded));
  c.scaled = layout.take<uint8_t>(size_t(c.padded));
  return c;
}

void decode_channel(const WeightRows& weight, const Tile& t, const Channels& c, int64_t channel) {
  int8_t* values = c.values + size_t(channel) * c.pitch;
  float* scales = c.scales + channel * c.segments;
  int32_t* starts = c.starts + channel * c.segments;
  if (channel >= weight.n()) {
    std::memset(values, 0, c.pitch);
    std::fill(scales, scales + c.segments, 0.0f);
    std::fill(starts, starts + c.segments, 0);
    c.total[channel] = 0;
    c.sum[channel] = 0.0f;
    c.scaled[channel] = 0;
    return;
  }
  const int64_t k = weight.k(), segment = weight.segment() ? weight.segment() : k;
  const bool scaled = weight.scaled(channel);
  weight.decode(channel, values, scales);
  std::memset(values + k, 0, c.pitch - size_t(k));
  int32_t total = 0;
  float sum = 0.0f;
  for (int64_t s = 0; s < c.segments; ++s) {
    int32_t part = 0;
    for (int64_t i = s * segment; i < std::min(k, (s + 1) * segment); ++i) part += values[i];
    if (!scaled) scales[s] = scales[0];  // so that a tile may mix channels of both kinds
    starts[s] = -t.panel_offset * part;
    total += part;
    sum += float(part) * scales[s];
  }
  c.total[channel] = total;
  c.sum[channel] = scaled ? sum : float(total) * scales[0];
  c.scaled[channel] = scaled;
}

// Runs of output pixels whose inputs lie side by side.
struct Piece {
  int column, count;
  int64_t place;  // of the input byte under the kernel's first position
};

struct Scratch {
  uint8_t* panel;
  int8_t* staging;  // [chunk][kStagingPitch]
  int32_t* sums;    // [rows of a task][64]
  float* column_scale;
  float* column_shift;
  float* outputs;   // [64]
  float* residual;  // [64]
};

Scratch place_scratch(Layout& layout, int64_t rows) {
  Scratch s{};
  s.panel = layout.take<uint8_t>(kPanelBytes);
  s.staging = layout.take<int8_t>(size_t(kLargestChunk) * kStagingPitch + kPanelColumns);
  s.sums = layout.take<int32_t>(size_t(rows) * kPanelColumns);
  s.column_scale = layout.take<float>(kPanelColumns);
  s.column_shift = layout.take<float>(kPanelColumns);
  s.outputs = layout.take<float>(kPanelColumns);
  s.residual = layout.take<float>(kPanelColumns);
  return s;
}

class Convolution {
 public:
  Convolution(const Tile& t, const Geometry& g, const Image& image, const Channels& channels, const WeightRows& weight,
              const compress_options& options, float* y, size_t threads)
      : t_(t), g_(g), image_(image), channels_(channels), weight_(weight), options_(options), y_(y),
        columns_((g.pixels() + kPanelColumns - 1) / kPanelColumns),
        parts_(channels.padded, t.rows_per_tile, columns_, threads) {
    const int segment = weight.segment();
    if (segment) chunk_ = chunk_of(segment);
    offsets_.resize(size_t(weight.k()));
    const int64_t area = g.kernel[0] * g.kernel[1];
    for (int64_t k = 0; k < weight.k(); ++k) {
      const int64_t row = k % area / g.kernel[1] * g.dilation[0], column = k % g.kernel[1] * g.dilation[1];
      offsets_[size_t(k)] = k / area * image.channel_bytes + row * image.row_bytes +
                            column % image.phases * image.phase_width + column / image.phases;
    }
  }

  size_t tasks() const { return size_t(columns_ * parts_.count); }

  size_t scratch_bytes() const {
    Layout count;
    place_scratch(count, parts_.rows);
    return count.used();
  }

  void run(size_t task, char* memory) const {
    const int64_t column = int64_t(task) / parts_.count, part = int64_t(task) % parts_.count;
    const int64_t first = column * kPanelColumns;
    const int count = int(std::min<int64_t>(kPanelColumns, g_.pixels() - first));
    const int64_t begin = part * parts_.rows, end = std::min(begin + parts_.rows, channels_.padded);
    Layout layout(memory);
    Scratch s = place_scratch(layout, parts_.rows);
    Piece pieces[kPanelColumns];
    const int many = find_pieces(first, count, pieces);
    for (int c = 0; c < kPanelColumns; ++c) {
      const int64_t b = (first + std::min(c, count - 1)) / g_.image_pixels();
      s.column_scale[c] = image_.scale[b];
      s.column_shift[c] = image_.shift[b];
    }
    for (int64_t k0 = 0; k0 < weight_.k(); k0 += chunk_) {
      const int64_t left = std::min<int64_t>(chunk_, weight_.k() - k0);
      const int segment = weight_.segment();
      const int quads = int(round_up(left, segment ? segment : 16) / kQuad);
      gather(pieces, many, k0, left, quads, s);
      const bool last = k0 + chunk_ >= weight_.k();
      for (int64_t row = begin; row < end; row += t_.rows_per_tile) {
        int32_t* sums = s.sums + (row - begin) * kPanelColumns;
        const int8_t* values = channels_.values + size_t(row) * channels_.pitch + k0;
        if (row + t_.rows_per_tile < end)
          prefetch_rows(values + size_t(t_.rows_per_tile) * channels_.pitch, channels_.pitch, t_.rows_per_tile,
                        size_t(quads) * kQuad);
        if (last) ask_for_outputs(row, first);
        const bool scaled = any_scaled(row);
        if (scaled)
          t_.multiply_row_scaled(s.panel, values, channels_.pitch, segment / kQuad, quads * kQuad / segment,
                                 channels_.starts + row * channels_.segments + k0 / segment, size_t(channels_.segments),
                                 channels_.scales + row * channels_.segments + k0 / segment, size_t(channels_.segments),
                                 reinterpret_cast<float*>(sums), kPanelColumns, k0 > 0);
        else
          t_.multiply(s.panel, values, channels_.pitch, quads, sums, kPanelColumns, k0 > 0);
        if (last) finish(scaled, s, row, first, count, sums);
      }
    }
  }

 private:
  bool any_scaled(int64_t row) const {
    for (int r = 0; r < t_.rows_per_tile; ++r)
      if (channels_.scaled[row + r]) return true;
    return false;
  }

  int find_pieces(int64_t first, int count, Piece* pieces) const {
    // Rows of outputs whose inputs follow each other without a gap are one.
    const bool whole = g_.stride[0] == 1 && g_.stride[1] == 1 && image_.row_bytes == g_.out_width;
    int many = 0;
    for (int column = 0; column < count; ++many) {
      const int64_t pixel = first + column, b = pixel / g_.image_pixels(), at = pixel % g_.image_pixels();
      const int64_t row = at / g_.out_width, x = at % g_.out_width;
      const int run = int(std::min<int64_t>(count - column, whole ? g_.image_pixels() - at : g_.out_width - x));
      pieces[many] = {column, run, image_.start(b, g_.channels) + row * g_.stride[0] * image_.row_bytes + x};
      column += run;
    }
    return many;
  }

  // The panel of weight positions k0 to k0 + left for these pixels; what lies beyond means nothing.
  void gather(const Piece* pieces, int many, int64_t k0, int64_t left, int quads, const Scratch& s) const {
    const int8_t* rows[kLargestChunk + kQuad];
    for (int64_t i = 0; i < quads * kQuad; ++i) {
      const int8_t* from = image_.codes + offsets_[size_t(k0 + std::min(i, left - 1))];
      if (many == 1) {
        rows[i] = from + pieces[0].place;
        continue;
      }
      int8_t* to = s.staging + size_t(i) * kStagingPitch;
      rows[i] = to;
      if (i >= left) continue;
      for (int p = 0; p < many; ++p) std::memcpy(to + pieces[p].column, from + pieces[p].place, kPanelColumns);
    }
    t_.interleave(rows, quads, s.panel);
  }

  void ask_for_outputs(int64_t row, int64_t first) const {
    const int64_t image = g_.image_pixels(), end = std::min(row + t_.rows_per_tile, weight_.n());
    for (int64_t channel = row; channel < end; ++channel) {
      const float* line = y_ + (first / image * g_.n + channel) * image + first % image;
      for (int c = 0; c < kPanelColumns; c += 16) __builtin_prefetch(line + c, 1);
    }
  }

  void finish(bool scaled, const Scratch& s, int64_t row, int64_t first, int count, const int32_t* sums) const {
    const int64_t end = std::min(row + t_.rows_per_tile, weight_.n());
    for (int64_t channel = row; channel < end; ++channel, sums += kPanelColumns) {
      RowFinish how{};
      how.column_scale = s.column_scale;
      how.row_scale = scaled ? 1.0f : channels_.scales[channel * channels_.segments];
      how.row_offset = t_.panel_offset * channels_.total[channel];
      how.column_sum = image_.shifted ? s.column_shift : nullptr;
      how.row_shift = channels_.sum[channel];
      how.row_bias = options_.bias ? options_.bias[channel] : 0.0f;
      how.activation = Activation(options_.activation);
      // 64 pixels may lie in several images.
      const int64_t image = g_.image_pixels();
      if (first / image == (first + count - 1) / image) {
        const int64_t place = (first / image * g_.n + channel) * image + first % image;
        if (options_.residual) how.residual = options_.residual + place;
        finish_row(scaled, sums, how, y_ + place, count);
        continue;
      }
      copy_pieces(first, count, channel, [&](int column, int64_t place, int64_t run) {
        if (options_.residual) std::memcpy(s.residual + column, options_.residual + place, size_t(run) * sizeof(float));
      });
      if (options_.residual) how.residual = s.residual;
      finish_row(scaled, sums, how, s.outputs, count);
      copy_pieces(first, count, channel, [&](int column, int64_t place, int64_t run) {
        std::memcpy(y_ + place, s.outputs + column, size_t(run) * sizeof(float));
      });
    }
  }

  void finish_row(bool scaled, const int32_t* sums, const RowFinish& how, float* y, int count) const {
    if (scaled)
      t_.finish_float(reinterpret_cast<const float*>(sums), how, y, count);
    else
      t_.finish(sums, how, y, count);
  }

  template <typename Copy>
  void copy_pieces(int64_t first, int count, int64_t channel, Copy&& copy) const {
    const int64_t image = g_.image_pixels();
    for (int64_t column = 0; column < count;) {
      const int64_t pixel = first + column, run = std::min<int64_t>(count - column, image - pixel % image);
      copy(int(column), (pixel / image * g_.n + channel) * image + pixel % image, run);
      column += run;
    }
  }

  const Tile& t_;
  const Geometry& g_;
  const Image& image_;
  const Channels& channels_;
  const WeightRows& weight_;
  const compress_options& options_;
  float* y_;
  int chunk_ = kUsualChunk;
  int64_t columns_;
  Parts parts_;
  std::vector<int64_t> offsets_;
};

// One output channel of one image, every kernel position over a whole row of outputs.
void depthwise_plane(const Tile& t, const Geometry& g, const Image& image, const Channels& channels,
                     const compress_options& options, float* y, int64_t b, int64_t n, Borrowed& memory) {
  const int64_t channel = n / (g.n / g.groups), width = g.out_width, padded = round_up(width, kPanelColumns);
  Layout layout(memory.reserve(size_t(padded) * 4 + 1024));
  int32_t* sums = layout.take<int32_t>(size_t(padded));
  float* scale = layout.take<float>(kPanelColumns);
  float* shift = layout.take<float>(kPanelColumns);
  std::fill(scale, scale + kPanelColumns, image.scale[b]);
  std::fill(shift, shift + kPanelColumns, image.shift[b]);
  const int8_t* weights = channels.values + size_t(n) * channels.pitch;
  const int8_t* plane = image.codes + image.start(b, g.channels) + channel * image.channel_bytes;
  for (int64_t row = 0; row < g.out_height; ++row) {
    std::memset(sums, 0, size_t(padded) * sizeof *sums);
    for (int64_t i = 0; i < g.kernel[0]; ++i) {
      const int8_t* line = plane + (row * g.stride[0] + i * g.dilation[0]) * image.row_bytes;
      for (int64_t j = 0; j < g.kernel[1]; ++j) {
        const int64_t at = j * g.dilation[1];
        t.add_scaled(line + at % image.phases * image.phase_width + at / image.phases, weights[i * g.kernel[1] + j],
                     sums, int(width));
      }
    }
    float* out = y + ((b * g.n + n) * g.out_height + row) * width;
    RowFinish how{};
    how.column_scale = scale;
    how.row_scale = channels.scales[n * channels.segments];
    how.column_sum = image.shifted ? shift : nullptr;
    how.row_shift = channels.sum[n];
    how.row_bias = options.bias ? options.bias[n] : 0.0f;
    how.activation = Activation(options.activation);
    for (int64_t x = 0; x < width; x += kPanelColumns) {
      how.residual = options.residual ? options.residual + (out - y) + x : nullptr;
      t.finish(sums + x, how, out + x, int(std::min<int64_t>(kPanelColumns, width - x)));
    }
  }
}

}  // namespace

void check_convolution(const Geometry& geometry, const WeightRows& weight, const compress_options& options) {
  check_options(options, weight.k());
  if (geometry.groups > 1 && !geometry.depthwise())
    fail(COMPRESS_UNSUPPORTED, "%lld groups: one group or one a channel", static_cast<long long>(geometry.groups));
  if (options.low_rank_a) fail(COMPRESS_UNSUPPORTED, "a low-rank branch beside a convolution");
  if (weight.segment() > kLargestChunk)
    fail(COMPRESS_UNSUPPORTED, "blocks of %d positions in a convolution: up to %d", weight.segment(), kLargestChunk);
  if (geometry.depthwise() && weight.segment())
    fail(COMPRESS_UNSUPPORTED, "scales that change within the kernel of a depthwise convolution");
}

void convolution(const Tile& t, const float* x, const Geometry& g, const WeightRows& weight,
                 const compress_options& options, float* y, const compress_runner* runner) {
  if (g.batch == 0) return;
  check_act_rows(options, g.batch);
  thread_local Arena shared;
  Borrowed memory(shared);
  Image image(g, options);
  const auto place = [&](Layout& layout) {
    image.place(layout, g.batch);
    return place_channels(layout, weight, t);
  };
  Layout count;
  place(count);
  Layout layout(memory.reserve(count.used()));
  const Channels channels = place(layout);
  quantize_images(t, x, g, options, image, runner);
  parallel_for(runner, size_t(channels.padded),
               [&](size_t channel) { decode_channel(weight, t, channels, int64_t(channel)); });
  if (g.depthwise()) {
    parallel_with_memory(runner, size_t(g.batch * g.n), [&](size_t task, Borrowed& own) {
      depthwise_plane(t, g, image, channels, options, y, int64_t(task) / g.n, int64_t(task) % g.n, own);
    });
    return;
  }
  const Convolution work(t, g, image, channels, weight, options, y, threads_of(runner));
  const size_t bytes = work.scratch_bytes();
  parallel_with_memory(runner, work.tasks(), [&](size_t task, Borrowed& own) { work.run(task, own.reserve(bytes)); });
}

}  // namespace compress
