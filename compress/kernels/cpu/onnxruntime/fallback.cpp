#include "onnxruntime/fallback.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "common/status.h"
#include "common/tasks.h"
#include "common/weight_codes.h"
#include "vqmatmul/codebook.h"

// One copy for each instruction set, picked when the library is loaded.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__)
#define COMPRESS_CLONES __attribute__((target_clones("default", "arch=haswell", "arch=skylake-avx512")))
#else
#define COMPRESS_CLONES
#endif

namespace compress {
namespace {

constexpr int kColumns = 16;               // output channels multiplied at a time
constexpr int kRows = 6;                   // with that many rows
constexpr int64_t kDepth = 512;            // positions summed before they are added to the total
constexpr int64_t kTaskColumns = 64;
constexpr int64_t kTaskRows = 480;
constexpr int64_t kGathered = 48;          // rows of a convolution laid out at a time
constexpr double kPanelMax = 127.0;        // folding.py

using Lanes = float __attribute__((vector_size(kColumns * sizeof(float))));

using Multiply = void (*)(const float* const* rows, const float* panel, int64_t depth, float* sums);

// sums[kRows][kColumns] += rows * panel[depth][kColumns]. A macro, because vectors of a fixed length become
// instructions before the compiler makes its copies: those would all be the oldest.
#define COMPRESS_DEFINE_MULTIPLY(NAME, TARGET)                                                          \
  TARGET void NAME(const float* const* rows, const float* panel, int64_t depth, float* sums) {          \
    Lanes total[kRows] = {};                                                                            \
    for (int64_t p = 0; p < depth; ++p) {                                                               \
      Lanes weights;                                                                                    \
      std::memcpy(&weights, panel + p * kColumns, sizeof weights);                                      \
      for (int r = 0; r < kRows; ++r) total[r] += rows[r][p] * weights;                                 \
    }                                                                                                   \
    for (int r = 0; r < kRows; ++r)                                                                     \
      for (int c = 0; c < kColumns; ++c) sums[r * kColumns + c] += total[r][c];                         \
  }

COMPRESS_DEFINE_MULTIPLY(multiply_anywhere, )
#if defined(__x86_64__) && defined(__GNUC__)
COMPRESS_DEFINE_MULTIPLY(multiply_avx2, __attribute__((target("avx2"))))
COMPRESS_DEFINE_MULTIPLY(multiply_avx512, __attribute__((target("avx512f"))))
#endif

Multiply best_multiply() {
#if defined(__x86_64__) && defined(__GNUC__)
  if (__builtin_cpu_supports("avx512f")) return multiply_avx512;
  if (__builtin_cpu_supports("avx2")) return multiply_avx2;
#endif
  return multiply_anywhere;
}

// sums[rank] += x[k] * a[k][rank]
COMPRESS_CLONES void project(const float* x, const float* a, int64_t k, int64_t rank, float* sums) {
  for (int64_t p = 0; p < k; ++p)
    for (int64_t j = 0; j < rank; ++j) sums[j] += x[p] * a[p * rank + j];
}

// Largest magnitude; NaN if there is one.
float largest_magnitude(const float* x, int64_t count) {
  float largest = 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    const float magnitude = std::fabs(x[i]);
    if (magnitude > largest || magnitude != magnitude) largest = magnitude;
  }
  return largest;
}

COMPRESS_CLONES void round_integers(float* x, int64_t count, float low, float high, float scale, float zero) {
  for (int64_t i = 0; i < count; ++i) {
    float code = std::rint(x[i] / scale) + zero;
    code = code < low ? low : code;  // NaN stays
    code = code > high ? high : code;
    x[i] = (code - zero) * scale;
  }
}

COMPRESS_CLONES void round_floats(float* x, int64_t count, float largest, int mantissa, int smallest, float scale) {
  for (int64_t i = 0; i < count; ++i) {
    const float value = x[i] / scale;
    float magnitude = std::fabs(value);
    magnitude = magnitude > largest ? largest : magnitude;
    const int exponent = std::max(int(to_bits(magnitude) >> 23) - 127, smallest);
    const float step = from_bits(uint32_t(exponent - mantissa + 127) << 23);
    x[i] = std::copysign(std::rint(magnitude / step) * step, value) * scale;
  }
}

// Weights of one output channel at a time.
class Decoder {
 public:
  virtual ~Decoder() = default;
  virtual void decode(int64_t channel, float* out) const = 0;  // out[k]
};

// Code i of a bit stream that is `bytes` long.
inline unsigned code_at(const uint8_t* stream, int64_t bytes, int64_t i, int bits) {
  const int64_t bit = i * bits, byte = bit >> 3;
  unsigned word = stream[byte];
  if (byte + 1 < bytes) word |= unsigned(stream[byte + 1]) << 8;
  return word >> (bit & 7) & ((1u << bits) - 1);
}

class BlockDecoder : public Decoder {
 public:
  explicit BlockDecoder(const compress_weight& weight) : w_(weight) {
    blocks_ = (w_.k + w_.block_size - 1) / w_.block_size;
    block_bytes_ = (w_.block_size * w_.bits + 7) / 8;
    const int64_t entries = int64_t(1) << w_.bits;
    const bool folded = w_.mode == COMPRESS_MODE_FOLDED, fractions = w_.table && !whole_table(entries);
    folds_ = folded && w_.scale_columns > 1 && !fractions;
    if (folds_ && w_.bits > kMostFoldedBits)
      fail(COMPRESS_INVALID, "weights of %d bits cannot be folded into an int8 panel: use mode exact", w_.bits);
    largest_ = w_.table         ? std::max(largest_magnitude(w_.table, entries), kSmallestLargest)
               : w_.zero_points ? float(entries - 1)
                                : float(entries / 2);
    if (!folded || !fractions) return;
    // folding.round_table: whole numbers, and the unit they count.
    unit_ = largest_ / float(kPanelMax);
    for (int64_t i = 0; i < entries; ++i)
      rounded_.push_back(std::rint(w_.table[i] * float(kPanelMax / double(largest_))));
    w_.table = rounded_.data();
  }

  void decode(int64_t channel, float* out) const override {
    const float most = folds_ ? largest_scale(channel) : 0.0f;
    for (int64_t block = 0; block < blocks_; ++block) {
      const int64_t begin = block * w_.block_size, count = std::min(w_.block_size, w_.k - begin);
      values(channel, block, count, out + begin);
      apply(scale(channel, block), most, count, out + begin);
    }
  }

 private:
  bool whole_table(int64_t entries) const {
    const float largest = largest_magnitude(w_.table, entries);
    if (w_.bits > kMostFoldedBits || !(largest > 0.0f) || !std::isfinite(largest)) return false;
    const double factor = std::exp2(std::floor(std::log2(kPanelMax / double(largest))));
    return std::all_of(w_.table, w_.table + entries, [&](float v) {
      const double scaled = double(v) * factor;
      return scaled == std::floor(scaled);
    });
  }

  float scale(int64_t channel, int64_t block) const {
    const int64_t row = w_.scale_rows > 1 ? channel : 0, column = w_.scale_columns > 1 ? block : 0;
    return w_.scales[row * w_.scale_columns + column];
  }

  float largest_scale(int64_t channel) const {
    float most = scale(channel, 0);
    for (int64_t block = 1; block < blocks_; ++block) {
      const float s = scale(channel, block);
      if (s > most || s != s) most = s;
    }
    return most;
  }

  void values(int64_t channel, int64_t block, int64_t count, float* out) const {
    const uint8_t* stream = w_.codes + (channel * blocks_ + block) * block_bytes_;
    if (w_.table) {
      for (int64_t i = 0; i < count; ++i) out[i] = w_.table[code_at(stream, block_bytes_, i, w_.bits)];
      return;
    }
    int zero = 1 << (w_.bits - 1);
    if (w_.zero_points) {
      const int64_t row = w_.zero_rows > 1 ? channel : 0, column = w_.zero_columns > 1 ? block : 0;
      zero = w_.zero_points[row * w_.zero_columns + column];
    }
    for (int64_t i = 0; i < count; ++i) out[i] = float(int(code_at(stream, block_bytes_, i, w_.bits)) - zero);
  }

  // Scales the values of a block, with folding's rounding where the block is folded.
  void apply(float scale, float most, int64_t count, float* values) const {
    const float ratio = scale == most ? 1.0f : scale / most;  // scales may all be 0
    if (!folds_ || !(ratio >= kSmallestRatio && ratio <= 1.0f)) {
      for (int64_t i = 0; i < count; ++i) values[i] *= scale * unit_;
      return;
    }
    const float factor = ratio * float(kPanelMax / double(largest_)), unit = most * float(double(largest_) / kPanelMax);
    for (int64_t i = 0; i < count; ++i) values[i] = std::rint(values[i] * factor) * unit;
  }

  compress_weight w_;
  int64_t blocks_, block_bytes_;
  float largest_, unit_ = 1.0f;
  bool folds_;
  std::vector<float> rounded_;
};

class VectorDecoder : public Decoder {
 public:
  explicit VectorDecoder(const compress_vectors& weight) : w_(weight), codebook_(weight.codebook) {
    count_ = (w_.k + w_.d - 1) / w_.d;
    bytes_ = (count_ * w_.bits + 7) / 8;
    if (w_.mode != COMPRESS_MODE_FOLDED) return;
    const int64_t entries = (int64_t(1) << w_.bits) * w_.d;
    const float most = float(kPanelMax), largest = std::max(largest_magnitude(w_.codebook, entries), kSmallestLargest);
    folded_.resize(size_t(entries));
    for (int64_t i = 0; i < entries; ++i) folded_[size_t(i)] = std::rint(w_.codebook[i] * (most / largest));
    codebook_ = folded_.data();
    unit_ = largest / most;
  }

  void decode(int64_t channel, float* out) const override {
    const float scale = w_.scales[w_.scale_rows > 1 ? channel : 0] * unit_;
    const uint8_t* stream = w_.codes + channel * bytes_;
    for (int64_t i = 0; i < count_; ++i) {
      const float* word = codebook_ + int64_t(code_at(stream, bytes_, i, w_.bits)) * w_.d;
      const int64_t begin = i * w_.d, length = std::min(w_.d, w_.k - begin);
      for (int64_t j = 0; j < length; ++j) out[begin + j] = word[j] * scale;
    }
  }

 private:
  const compress_vectors w_;
  const float* codebook_;
  std::vector<float> folded_;
  float unit_ = 1.0f;
  int64_t count_, bytes_;
};

// The rows that are multiplied: those of x, or for convolutions what each output pixel sees.
class Patches {
 public:
  Patches(const compress_geometry* geometry, int64_t rows, int64_t k) : g_(geometry), count_(rows), k_(k) {
    if (!g_) return;
    height_ = output(g_->height, 0);
    width_ = output(g_->width, 1);
    count_ = rows * height_ * width_;
  }

  int64_t count() const { return count_; }
  int64_t pixels() const { return height_ * width_; }
  bool gathers() const { return g_ != nullptr; }

  // Row i of images (or rows) x; copied to `buffer` [k] if it has to be.
  const float* row(const float* x, int64_t i, int64_t group, float* buffer) const {
    if (!g_) return x + i * k_;
    const int64_t image = i / pixels(), pixel = i % pixels(), channels = g_->channels / g_->groups;
    const int64_t top = pixel / width_ * g_->stride[0] - g_->padding[0];
    const int64_t left = pixel % width_ * g_->stride[1] - g_->padding[1];
    const float* plane = x + (image * g_->channels + group * channels) * g_->height * g_->width;
    float* out = buffer;
    for (int64_t c = 0; c < channels; ++c, plane += g_->height * g_->width) {
      for (int64_t v = 0; v < g_->kernel[0]; ++v) {
        const int64_t line = top + v * g_->dilation[0];
        for (int64_t u = 0; u < g_->kernel[1]; ++u) {
          const int64_t place = left + u * g_->dilation[1];
          const bool inside = line >= 0 && line < g_->height && place >= 0 && place < g_->width;
          *out++ = inside ? plane[line * g_->width + place] : 0.0f;
        }
      }
    }
    return buffer;
  }

 private:
  int64_t output(int64_t size, int axis) const {
    return (size + 2 * g_->padding[axis] - g_->dilation[axis] * (g_->kernel[axis] - 1) - 1) / g_->stride[axis] + 1;
  }

  const compress_geometry* g_;
  int64_t count_, k_, height_ = 1, width_ = 1;
};

class FloatProduct {
 public:
  FloatProduct(const GeneralCall& call, float* y, const compress_runner* runner)
      : call_(call), options_(*call.options), y_(y), runner_(runner),
        n_(call.weight ? call.weight->n : call.vectors->n), k_(call.weight ? call.weight->k : call.vectors->k),
        patches_(call.geometry, call.rows, k_) {
    if (call.weight)
      decoder_ = std::make_unique<BlockDecoder>(*call.weight);
    else
      decoder_ = std::make_unique<VectorDecoder>(*call.vectors);
    groups_ = call.geometry ? call.geometry->groups : 1;
    length_ = call.geometry ? call.geometry->channels * call.geometry->height * call.geometry->width : k_;
  }

  void run() {
    round_activations();
    project_rows();
    const int64_t channels = n_ / groups_;
    const int64_t columns = (channels + kTaskColumns - 1) / kTaskColumns;
    const int64_t parts = (patches_.count() + kTaskRows - 1) / kTaskRows;
    parallel(groups_ * columns * parts, [&](int64_t task) {
      const int64_t part = task / (groups_ * columns), column = task % (groups_ * columns);
      const int64_t group = column / columns, first = column % columns * kTaskColumns;
      const int64_t count = std::min(kTaskColumns, channels - first);
      const int64_t begin = part * kTaskRows, end = std::min(begin + kTaskRows, patches_.count());
      product(group, group * channels + first, count, begin, end);
    });
  }

 private:
  template <typename Work>
  void parallel(int64_t count, Work&& work) {
    parallel_try(runner_, size_t(count), [&](size_t i) { work(int64_t(i)); });
  }

  void round_activations() {
    smoothed_ = rounded_ = call_.x;
    const bool rounds = call_.format->kind != ActivationFormat::kNone;
    if (!options_.smooth && !rounds) return;
    const size_t size = size_t(call_.rows) * size_t(length_);
    rounded_store_.reset(new float[size]);
    if (options_.smooth && rounds && options_.rank) smoothed_store_.reset(new float[size]);
    parallel(call_.rows, [&](int64_t row) {
      float* out = rounded_store_.get() + row * length_;
      smooth(call_.x + row * length_, out);
      if (smoothed_store_) std::copy(out, out + length_, smoothed_store_.get() + row * length_);
      if (rounds) round_row(row, out);
    });
    rounded_ = rounded_store_.get();
    if (options_.smooth) smoothed_ = smoothed_store_ ? smoothed_store_.get() : rounded_;
  }

  void smooth(const float* x, float* out) const {
    if (!options_.smooth) {
      std::copy(x, x + length_, out);
      return;
    }
    const int64_t run = call_.geometry ? call_.geometry->height * call_.geometry->width : 1;
    for (int64_t i = 0; i < length_; i += run)
      for (int64_t j = 0; j < run; ++j) out[i + j] = x[i + j] * options_.smooth[i / run];
  }

  void round_row(int64_t row, float* x) const {
    const ActivationFormat& format = *call_.format;
    const int64_t group = call_.act_group ? call_.act_group : length_, groups = (length_ + group - 1) / group;
    for (int64_t g = 0; g < groups; ++g) {
      float* part = x + g * group;
      const int64_t count = std::min(group, length_ - g * group), place = row * groups + g;
      float scale;
      if (options_.act_scale) {
        scale = options_.act_scale[call_.act_scale_count > 1 ? place : 0];
      } else {
        scale = largest_magnitude(part, count) / format.largest;
        if (scale == 0.0f) scale = 1.0f;
      }
      const float zero = options_.act_zero_point ? options_.act_zero_point[call_.act_zero_count > 1 ? place : 0] : 0.0f;
      if (format.kind == ActivationFormat::kInteger)
        round_integers(part, count, float(format.low), float(format.high), scale, zero);
      else
        round_floats(part, count, format.largest, format.mantissa_bits, format.smallest_exponent, scale);
    }
  }

  // Rows times low_rank_a, before rounding.
  void project_rows() {
    if (!options_.rank) return;
    const int64_t rank = options_.rank, parts = (patches_.count() + kGathered - 1) / kGathered;
    projected_.assign(size_t(patches_.count() * rank), 0.0f);
    parallel(parts, [&](int64_t part) {
      std::vector<float> buffer(patches_.gathers() ? size_t(k_) : 0);
      const int64_t begin = part * kGathered, end = std::min(begin + kGathered, patches_.count());
      for (int64_t i = begin; i < end; ++i)
        project(patches_.row(smoothed_, i, 0, buffer.data()), options_.low_rank_a, k_, rank,
                &projected_[size_t(i * rank)]);
    });
  }

  void product(int64_t group, int64_t first, int64_t count, int64_t begin, int64_t end) const {
    const int64_t tiles = (count + kColumns - 1) / kColumns;
    std::vector<float> panel(size_t(tiles * kColumns * k_)), channel(static_cast<size_t>(k_));
    for (int64_t c = 0; c < count; ++c) {
      decoder_->decode(first + c, channel.data());
      float* out = panel.data() + c / kColumns * kColumns * k_ + c % kColumns;
      for (int64_t p = 0; p < k_; ++p) out[p * kColumns] = channel[size_t(p)];
    }
    std::vector<float> gathered(patches_.gathers() ? size_t(kGathered * k_) : 0);
    for (int64_t some = begin; some < end; some += kGathered) {
      const int64_t rows = std::min(kGathered, end - some);
      const float* lines[kGathered + kRows];
      for (int64_t r = 0; r < rows; ++r)
        lines[r] = patches_.row(rounded_, some + r, group, patches_.gathers() ? &gathered[size_t(r * k_)] : nullptr);
      for (int r = 0; r < kRows; ++r) lines[rows + r] = lines[rows - 1];  // of the last tile: not written
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const float* weights = panel.data() + tile * kColumns * k_;
        const int64_t columns = std::min<int64_t>(kColumns, count - tile * kColumns);
        for (int64_t r = 0; r < rows; r += kRows)
          finish(lines + r, weights, some + r, std::min<int64_t>(kRows, rows - r), first + tile * kColumns, columns);
      }
    }
  }

  void finish(const float* const* lines, const float* weights, int64_t row, int64_t rows, int64_t channel,
              int64_t columns) const {
    static const Multiply multiply = best_multiply();
    float sums[kRows * kColumns] = {};
    for (int64_t p = 0; p < k_; p += kDepth) {
      const float* moved[kRows];
      for (int r = 0; r < kRows; ++r) moved[r] = lines[r] + p;
      multiply(moved, weights + p * kColumns, std::min(kDepth, k_ - p), sums);
    }
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < columns; ++c) write(row + r, channel + c, sums[r * kColumns + c]);
  }

  void write(int64_t row, int64_t channel, float value) const {
    if (options_.bias) value += options_.bias[channel];
    if (options_.rank) {
      float sum = 0.0f;
      for (int64_t j = 0; j < options_.rank; ++j)
        sum += projected_[size_t(row * options_.rank + j)] * options_.low_rank_b[j * n_ + channel];
      value += sum;
    }
    if (options_.activation == COMPRESS_ACTIVATION_GELU_TANH)
      value *= 0.5f * (1.0f + std::tanh(0.7978845608028654f * (value + 0.044715f * value * value * value)));
    else if (options_.activation == COMPRESS_ACTIVATION_SILU)
      value /= 1.0f + std::exp(-value);
    const int64_t pixels = patches_.pixels();
    const int64_t place = (row / pixels * n_ + channel) * pixels + row % pixels;
    y_[place] = options_.residual ? value + options_.residual[place] : value;
  }

  const GeneralCall& call_;
  const compress_options& options_;
  float* y_;
  const compress_runner* runner_;
  int64_t n_, k_, groups_, length_;  // length_: of a row or an image
  Patches patches_;
  std::unique_ptr<Decoder> decoder_;
  std::unique_ptr<float[]> rounded_store_, smoothed_store_;
  const float *rounded_ = nullptr, *smoothed_ = nullptr;
  std::vector<float> projected_;
};

}  // namespace

void compute_in_float(const GeneralCall& call, float* y, const compress_runner* runner) {
  FloatProduct(call, y, runner).run();
}

}  // namespace compress
