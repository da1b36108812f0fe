// What the operators must compute, in plain double arithmetic, and random arguments for them. For the operators' tests.
//
// Every array ends at a guard page. Activations are rounded as compress/formats/activations.py does, weights decoded as
// compress/kernels/schema.py says and folded as compress/kernels/folding.py does: in float where a rounding decides.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "common/guarded.h"
#include "common/test.h"
#include "include/compress_kernels.h"

namespace compress {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kTolerance = 1e-5;       // of the norm of all outputs
constexpr double kOneRounding = 0x1p-24;  // to float, of the largest terms: they may cancel
constexpr int kMostThreads = 4;

template <typename T>
T pick(Random& random, std::initializer_list<T> values) {
  return values.begin()[random.whole(0, int64_t(values.size()) - 1)];
}

inline bool chance(Random& random, int one_in) { return random.whole(1, one_in) == 1; }

// An array that may be absent.
template <typename T>
using Maybe = std::unique_ptr<Guarded<T>>;

inline Maybe<float> random_floats(Random& random, int64_t count, float low, float high) {
  auto array = std::make_unique<Guarded<float>>(size_t(count));
  for (float& value : *array) value = random.real(low, high);
  return array;
}

template <typename T>
T* address(const Maybe<T>& array) {
  return array ? array->data() : nullptr;
}

// ------------------------------------------------------------------------------------------------------- weights

struct DecodedWeight {
  int64_t n = 0, k = 0;
  std::vector<double> values;  // [k][n]

  void resize(int64_t outputs, int64_t positions) {
    n = outputs;
    k = positions;
    values.assign(size_t(n * k), 0.0);
  }
  double& at(int64_t channel, int64_t position) { return values[size_t(position * n + channel)]; }
  double at(int64_t channel, int64_t position) const { return values[size_t(position * n + channel)]; }
};

inline int code_at(const uint8_t* bytes, int64_t index, int bits) {
  int code = 0;
  for (int bit = 0; bit < bits; ++bit) {
    const int64_t at = index * bits + bit;
    code |= (bytes[at / 8] >> (at % 8) & 1) << bit;
  }
  return code;
}

enum class Table { none, fp4, nf4, whole };

constexpr float kFp4[16] = {0, .5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -.5f, -1, -1.5f, -2, -3, -4, -6};
// Dettmers et al. 2023, appendix E.
constexpr float kNf4[16] = {-1.0f,        -0.69619280f, -0.52507305f, -0.39491749f, -0.28444138f, -0.18477343f,
                            -0.09105004f, 0.0f,         0.07958030f,  0.16093020f,  0.24611230f,  0.33791524f,
                            0.44070983f,  0.56261700f,  0.72295684f,  1.0f};

// Packed weights of qmatmul and qconv2d. Codes are random to the last bit: padding must not matter.
struct PackedWeight {
  Maybe<uint8_t> codes, zero_points;
  Maybe<float> scales, table;
  compress_weight raw{};
  Table kind = Table::none;

  PackedWeight(Random& random, int64_t n, int64_t k, int bits, int64_t block, Table table_kind, int mode) {
    const int64_t blocks = (k + block - 1) / block;
    kind = table_kind;
    raw.n = n;
    raw.k = k;
    raw.bits = bits;
    raw.mode = mode;
    raw.block_size = block;
    raw.scale_rows = chance(random, 4) ? 1 : n;
    raw.scale_columns = chance(random, 4) ? 1 : blocks;
    codes = std::make_unique<Guarded<uint8_t>>(size_t(n * blocks * ((block * bits + 7) / 8)));
    for (uint8_t& byte : *codes) byte = uint8_t(random.bits());
    scales = std::make_unique<Guarded<float>>(size_t(raw.scale_rows * raw.scale_columns));
    const float spread = pick(random, {1.9f, 3.0f, 6.0f});  // ratios above and below what is folded
    for (float& scale : *scales) scale = 0.01f * std::exp2(-random.real(0.0f, spread));
    if (chance(random, 5)) add_odd_scales(random);
    if (kind == Table::none && chance(random, 2)) add_zero_points(random, blocks);
    if (kind != Table::none) add_table(random);
    raw.codes = address(codes);
    raw.scales = address(scales);
    raw.zero_points = address(zero_points);
    raw.table = address(table);
  }

  bool grouped() const { return raw.scale_columns > 1 || (raw.zero_points && raw.zero_columns > 1); }
  bool table_is_whole() const { return kind != Table::nf4 && raw.bits <= 6; }
  bool rounds_table() const { return raw.mode == COMPRESS_MODE_FOLDED && raw.table && !table_is_whole(); }
  bool folds() const { return raw.mode == COMPRESS_MODE_FOLDED && raw.scale_columns > 1 && !rounds_table(); }

  // Why every operator may refuse it; null when none may.
  const char* refusal() const {
    if (raw.block_size < raw.k && raw.block_size * raw.bits % 8) return "blocks do not end at bytes";
    if (grouped() && raw.block_size % 16) return "blocks are not multiples of 16";
    if ((folds() || rounds_table()) && raw.bits > 6) return "too many bits to fold";
    if (raw.table && !table_is_whole() && !rounds_table()) return "the table is not whole";
    if (raw.bits == 8 && raw.zero_points && grouped()) return "8 bits, zero points and groups";
    return nullptr;
  }

  DecodedWeight decode() const {
    DecodedWeight w;
    w.resize(raw.n, raw.k);
    const int64_t blocks = (raw.k + raw.block_size - 1) / raw.block_size;
    const int64_t block_bytes = (raw.block_size * raw.bits + 7) / 8;
    float largest = float(raw.zero_points ? (1 << raw.bits) - 1 : 1 << (raw.bits - 1));
    if (raw.table) {
      largest = 0.0f;
      for (int i = 0; i < 1 << raw.bits; ++i) largest = std::max(largest, std::fabs(raw.table[i]));
    }
    for (int64_t channel = 0; channel < raw.n; ++channel) {
      float most = scale(channel, 0);
      for (int64_t block = 0; block < blocks; ++block) most = std::max(most, scale(channel, block));
      for (int64_t k = 0; k < raw.k; ++k) {
        const int64_t block = k / raw.block_size;
        const uint8_t* bytes = raw.codes + (channel * blocks + block) * block_bytes;
        const int code = code_at(bytes, k % raw.block_size, raw.bits);
        const float value = raw.table ? raw.table[code] : float(code - zero(channel, block));
        const float ratio = scale(channel, block) == most ? 1.0f : scale(channel, block) / most;
        if (folds() && ratio >= 0.25f && ratio <= 1.0f)
          w.at(channel, k) = double(std::nearbyint(value * (ratio * (127.0f / largest)))) * most * (largest / 127.0f);
        else if (rounds_table())
          w.at(channel, k) =
              double(std::nearbyint(value * (127.0f / largest))) * (largest / 127.0f) * scale(channel, block);
        else
          w.at(channel, k) = double(value) * scale(channel, block);
      }
    }
    return w;
  }

  std::string text() const {
    std::ostringstream out;
    out << "n " << raw.n << ", k " << raw.k << ", " << raw.bits << " bits, blocks of " << raw.block_size << ", scales "
        << raw.scale_rows << " x " << raw.scale_columns;
    if (raw.zero_points) out << ", zero points " << raw.zero_rows << " x " << raw.zero_columns;
    if (raw.table) out << ", table " << (kind == Table::fp4 ? "fp4" : kind == Table::nf4 ? "nf4" : "whole");
    out << (raw.mode == COMPRESS_MODE_FOLDED ? ", folded" : ", exact");
    return out.str();
  }

 private:
  // Channels of zeros, or of negative scales, and single ones of both.
  void add_odd_scales(Random& random) {
    for (int64_t row = 0; row < raw.scale_rows; ++row) {
      const int64_t kind = random.whole(0, 3);
      for (int64_t column = 0; column < raw.scale_columns; ++column) {
        float& scale = (*scales)[size_t(row * raw.scale_columns + column)];
        if (kind == 1 || (kind == 3 && chance(random, 3))) scale = 0.0f;
        if (kind == 2 || (kind == 3 && chance(random, 3))) scale = -scale;
      }
    }
  }

  void add_zero_points(Random& random, int64_t blocks) {
    raw.zero_rows = chance(random, 3) ? 1 : raw.n;
    raw.zero_columns = chance(random, 2) ? 1 : blocks;
    zero_points = std::make_unique<Guarded<uint8_t>>(size_t(raw.zero_rows * raw.zero_columns));
    for (uint8_t& zero : *zero_points) zero = uint8_t(random.whole(0, (1 << raw.bits) - 1));
  }

  void add_table(Random& random) {
    table = std::make_unique<Guarded<float>>(size_t(1) << raw.bits);
    for (size_t i = 0; i < table->size(); ++i)
      (*table)[i] = kind == Table::fp4 ? kFp4[i] : kind == Table::nf4 ? kNf4[i] : float(random.whole(-127, 127));
  }

  float scale(int64_t channel, int64_t block) const {
    return raw.scales[(raw.scale_rows > 1 ? channel : 0) * raw.scale_columns + (raw.scale_columns > 1 ? block : 0)];
  }

  int zero(int64_t channel, int64_t block) const {
    if (!raw.zero_points) return 1 << (raw.bits - 1);
    return raw.zero_points[(raw.zero_rows > 1 ? channel : 0) * raw.zero_columns + (raw.zero_columns > 1 ? block : 0)];
  }
};

// Bits, block size, table and mode at random.
inline PackedWeight random_weight(Random& random, int64_t n, int64_t k) {
  const int64_t block = pick<int64_t>(random, {k, k, 16, 32, 48, 64, 128, 512, 1024});
  const int mode = pick(random, {COMPRESS_MODE_EXACT, COMPRESS_MODE_FOLDED});
  const Table table = pick(random, {Table::none, Table::none, Table::none, Table::fp4, Table::nf4, Table::whole});
  int bits = int(random.whole(1, 8));
  if (table == Table::fp4 || table == Table::nf4 || chance(random, 3)) bits = 4;
  return PackedWeight(random, n, k, bits, block, table, mode);
}

// Vector-quantized weights of vqmatmul and vqconv2d.
struct VectorWeight {
  Maybe<uint8_t> codes;
  Maybe<float> codebook, scales;
  compress_vectors raw{};

  VectorWeight(Random& random, int64_t n, int64_t k, int bits, int64_t d, int mode, bool whole) {
    raw.n = n;
    raw.k = k;
    raw.bits = bits;
    raw.d = d;
    raw.mode = mode;
    raw.scale_rows = chance(random, 3) ? 1 : n;
    codes = std::make_unique<Guarded<uint8_t>>(size_t(n * row_bytes()));
    for (uint8_t& byte : *codes) byte = uint8_t(random.bits());
    codebook = random_floats(random, d << bits, -3.0f, 2.0f);
    if (whole)
      for (float& value : *codebook) value = float(random.whole(-128, 127));
    scales = random_floats(random, raw.scale_rows, 0.001f, 0.01f);
    raw.codes = address(codes);
    raw.codebook = address(codebook);
    raw.scales = address(scales);
  }

  int64_t row_bytes() const { return ((raw.k + raw.d - 1) / raw.d * raw.bits + 7) / 8; }

  DecodedWeight decode() const {
    DecodedWeight w;
    w.resize(raw.n, raw.k);
    float most = 0.0f;
    for (float value : *codebook) most = std::max(most, std::fabs(value));
    const bool rounds = raw.mode == COMPRESS_MODE_FOLDED;
    const double unit = rounds ? most / 127.0f : 1.0f;
    for (int64_t channel = 0; channel < raw.n; ++channel)
      for (int64_t k = 0; k < raw.k; ++k) {
        const int code = code_at(raw.codes + channel * row_bytes(), k / raw.d, raw.bits);
        const float value = raw.codebook[code * raw.d + k % raw.d];
        w.at(channel, k) = double(rounds ? std::nearbyint(value * (127.0f / most)) : value) * unit *
                           raw.scales[raw.scale_rows > 1 ? channel : 0];
      }
    return w;
  }

  std::string text() const {
    std::ostringstream out;
    out << "n " << raw.n << ", k " << raw.k << ", " << raw.bits << " bits, vectors of " << raw.d << ", "
        << raw.scale_rows << (raw.mode == COMPRESS_MODE_FOLDED ? " scales, folded" : " scales, exact");
    return out.str();
  }
};

// ---------------------------------------------------------------------------------------------------- activations

struct ActivationFormat {
  const char* name;
  int low, high;
  float most;
};

constexpr ActivationFormat kFormats[] = {
    {"int8", -128, 127, 127.0f}, {"uint8", 0, 255, 255.0f}, {"int4", -8, 7, 7.0f}, {"uint4", 0, 15, 15.0f}};

// Rows (images) of inputs, and the options of a call at random.
struct Inputs {
  Maybe<float> x, smooth, act_scale, act_zero_point, bias, low_rank_a, low_rank_b, residual;
  int64_t rows, length, run, outputs;
  compress_options raw{};
  std::string format;

  // `run` consecutive positions have one factor of `smooth`; `outputs` is the number of outputs of all rows.
  Inputs(Random& random, int64_t row_count, int64_t row_length, int64_t smooth_run, int64_t n, int64_t output_count,
         bool low_rank)
      : rows(row_count), length(row_length), run(smooth_run), outputs(output_count) {
    x = random_floats(random, rows * length, -3.0f, 2.5f);
    const ActivationFormat& f = chance(random, 2) ? kFormats[0] : kFormats[random.whole(0, 3)];
    format = f.name;
    raw.act_low = f.low;
    raw.act_high = f.high;
    raw.act_max = f.most;
    if (chance(random, 3)) smooth = random_floats(random, length / run, 0.5f, 2.0f);
    if (chance(random, 2)) add_static_scale(random, f);
    if (chance(random, 2)) bias = random_floats(random, n, -1.0f, 1.0f);
    if (low_rank && chance(random, 3)) {
      raw.rank = pick<int64_t>(random, {1, 5, 16, 70});
      low_rank_a = random_floats(random, length * raw.rank, -0.1f, 0.1f);
      low_rank_b = random_floats(random, raw.rank * n, -0.1f, 0.1f);
    }
    if (chance(random, 3)) residual = random_floats(random, outputs, -1.0f, 1.0f);
    raw.activation = chance(random, 2) ? COMPRESS_ACTIVATION_NONE : int32_t(random.whole(1, 2));
    connect();
  }

  void connect() {
    raw.smooth = address(smooth);
    raw.act_scale = address(act_scale);
    raw.act_zero_point = address(act_zero_point);
    raw.bias = address(bias);
    raw.low_rank_a = address(low_rank_a);
    raw.low_rank_b = address(low_rank_b);
    raw.residual = address(residual);
  }

  // x * smooth, as float.
  float value(int64_t row, int64_t i) const {
    const float value = (*x)[size_t(row * length + i)];
    return smooth ? value * (*smooth)[size_t(i / run)] : value;
  }

  float scale(int64_t row) const {
    if (act_scale) return (*act_scale)[raw.act_scale_rows > 1 ? size_t(row) : 0];
    float most = 0.0f;
    for (int64_t i = 0; i < length; ++i) most = std::max(most, std::fabs(value(row, i)));
    return most == 0.0f ? 1.0f : most / raw.act_max;
  }

  float zero(int64_t row) const {
    return act_zero_point ? (*act_zero_point)[raw.act_zero_rows > 1 ? size_t(row) : 0] : 0.0f;
  }

  // A row after its round trip through codes.
  std::vector<double> rounded(int64_t row) const {
    std::vector<double> result(size_t(length), 0.0);
    const float by = scale(row), z = zero(row);
    for (int64_t i = 0; i < length; ++i) {
      const float code = std::nearbyint(value(row, i) / by) + z;
      result[size_t(i)] = double(std::min(std::max(code, float(raw.act_low)), float(raw.act_high)) - z) * by;
    }
    return result;
  }

  // The largest term that a sum may be made of, for each unit of weight.
  double largest_term(int64_t row) const {
    return double(scale(row)) * (std::max(raw.act_high, -raw.act_low) + std::fabs(zero(row)));
  }

  double finished(double sum, int64_t channel, int64_t place) const {
    if (bias) sum += (*bias)[size_t(channel)];
    if (raw.activation == COMPRESS_ACTIVATION_GELU_TANH)
      sum = 0.5 * sum * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (sum + 0.044715 * sum * sum * sum)));
    else if (raw.activation == COMPRESS_ACTIVATION_SILU)
      sum = sum / (1.0 + std::exp(-sum));
    return residual ? sum + (*residual)[size_t(place)] : sum;
  }

  std::string text() const {
    std::ostringstream out;
    out << rows << " rows of " << format << (smooth ? ", smooth" : "") << (bias ? ", bias" : "")
        << (residual ? ", residual" : "") << ", rank " << raw.rank << ", activation " << raw.activation;
    if (act_scale) out << ", " << raw.act_scale_rows << " static scales";
    if (act_zero_point) out << ", " << raw.act_zero_rows << " zero points";
    return out.str();
  }

 private:
  void add_static_scale(Random& random, const ActivationFormat& f) {
    raw.act_scale_rows = chance(random, 2) ? 1 : rows;
    const float usual = 5.5f / float(f.high - f.low);  // some values are clipped
    act_scale = random_floats(random, raw.act_scale_rows, 0.7f * usual, 1.5f * usual);
    if (chance(random, 3)) return;
    raw.act_zero_rows = chance(random, 2) ? 1 : rows;
    act_zero_point = std::make_unique<Guarded<float>>(size_t(raw.act_zero_rows));
    for (float& zero : *act_zero_point) zero = float(random.whole(f.low, f.high));
  }
};

// --------------------------------------------------------------------------------------------------------- outputs

struct Expected {
  std::vector<double> y;
  double size = 0.0;  // norm of the largest terms, of which each sum may lose a rounding
};

// sums[n] = a[k] W^T.
inline void multiply_row(const DecodedWeight& w, const double* a, std::vector<double>& sums) {
  std::fill(sums.begin(), sums.end(), 0.0);
  const size_t n = size_t(w.n);
  double* const out = sums.data();
  for (int64_t k = 0; k < w.k; ++k) {
    const double value = a[k];
    const double* column = w.values.data() + size_t(k) * n;
    for (size_t c = 0; c < n; ++c) out[c] += value * column[c];
  }
}

inline std::vector<double> magnitudes(const DecodedWeight& w) {
  std::vector<double> sums(size_t(w.n), 0.0);
  for (int64_t k = 0; k < w.k; ++k)
    for (int64_t c = 0; c < w.n; ++c) sums[size_t(c)] += std::fabs(w.at(c, k));
  return sums;
}

inline Expected expected_product(const Inputs& inputs, const DecodedWeight& w) {
  Expected expected;
  expected.y.resize(size_t(inputs.rows * w.n));
  std::vector<double> sums(size_t(w.n), 0.0);
  const std::vector<double> columns = magnitudes(w);
  double columns_squared = 0.0, squared = 0.0;
  for (double column : columns) columns_squared += column * column;
  for (int64_t row = 0; row < inputs.rows; ++row) {
    multiply_row(w, inputs.rounded(row).data(), sums);
    for (int64_t r = 0; r < inputs.raw.rank; ++r) {
      double projected = 0.0;
      for (int64_t i = 0; i < w.k; ++i)
        projected += double(inputs.value(row, i)) * (*inputs.low_rank_a)[size_t(i * inputs.raw.rank + r)];
      for (int64_t c = 0; c < w.n; ++c) sums[size_t(c)] += projected * (*inputs.low_rank_b)[size_t(r * w.n + c)];
    }
    const double term = inputs.largest_term(row);
    squared += term * term * columns_squared;
    for (int64_t c = 0; c < w.n; ++c)
      expected.y[size_t(row * w.n + c)] = inputs.finished(sums[size_t(c)], c, row * w.n + c);
  }
  expected.size = std::sqrt(squared);
  return expected;
}

inline int64_t extent(const compress_geometry& g, int axis) {
  const int64_t size = axis ? g.width : g.height;
  return (size + 2 * g.padding[axis] - g.dilation[axis] * (g.kernel[axis] - 1) - 1) / g.stride[axis] + 1;
}

inline Expected expected_convolution(const Inputs& inputs, const compress_geometry& g, const DecodedWeight& w) {
  const int64_t height = extent(g, 0), width = extent(g, 1), area = g.kernel[0] * g.kernel[1];
  const int64_t per_group = g.channels / g.groups, outputs = w.n / g.groups;
  Expected expected;
  expected.y.resize(size_t(g.batch * w.n * height * width));
  std::vector<double> window(size_t(g.channels * area), 0.0), sums(size_t(w.n), 0.0);
  double columns_squared = 0.0, squared = 0.0;
  for (double column : magnitudes(w)) columns_squared += column * column;
  for (int64_t b = 0; b < g.batch; ++b) {
    const std::vector<double> image = inputs.rounded(b);
    const double term = inputs.largest_term(b);
    squared += term * term * columns_squared * double(height * width);
    for (int64_t pixel = 0; pixel < height * width; ++pixel) {
      for (int64_t i = 0; i < g.channels * area; ++i) {
        const int64_t row = pixel / width * g.stride[0] + i % area / g.kernel[1] * g.dilation[0] - g.padding[0];
        const int64_t column = pixel % width * g.stride[1] + i % g.kernel[1] * g.dilation[1] - g.padding[1];
        const bool inside = row >= 0 && row < g.height && column >= 0 && column < g.width;
        window[size_t(i)] = inside ? image[size_t((i / area * g.height + row) * g.width + column)] : 0.0;
      }
      if (g.groups == 1) multiply_row(w, window.data(), sums);
      for (int64_t c = 0; c < w.n; ++c) {
        if (g.groups > 1) {
          sums[size_t(c)] = 0.0;
          for (int64_t k = 0; k < w.k; ++k)
            sums[size_t(c)] += w.at(c, k) * window[size_t(c / outputs * per_group * area + k)];
        }
        const int64_t place = (b * w.n + c) * height * width + pixel;
        expected.y[size_t(place)] = inputs.finished(sums[size_t(c)], c, place);
      }
    }
  }
  expected.size = std::sqrt(squared);
  return expected;
}

// ----------------------------------------------------------------------------------------------------------- calls

inline std::vector<std::string> instruction_sets() {
  std::istringstream names(compress_isas());
  std::vector<std::string> all;
  for (std::string name; names >> name;) all.push_back(name);
  return all;
}

// Runners of 1 to kMostThreads threads.
class Pools {
 public:
  Pools() {
    for (int i = 0; i < kMostThreads; ++i) CHECK((pools_[i] = compress_pool_create(i + 1)) != nullptr, "no pool");
  }
  ~Pools() {
    for (compress_runner* pool : pools_) compress_pool_destroy(pool);
  }
  Pools(const Pools&) = delete;
  Pools& operator=(const Pools&) = delete;
  const compress_runner* of(int threads) const { return pools_[threads - 1]; }

 private:
  compress_runner* pools_[kMostThreads];
};

struct Tally {
  int computed = 0, refused = 0;
};

// Nothing but NaN before the call.
struct Outputs : Guarded<float> {
  explicit Outputs(int64_t count) : Guarded<float>(size_t(count)) { std::fill(begin(), end(), kNan); }
};

inline void check_outputs(const Guarded<float>& y, const Expected& expected, const std::string& what) {
  double error = 0.0, norm = 0.0, worst = -1.0;
  size_t at = 0;
  for (size_t i = 0; i < expected.y.size(); ++i) {
    const double difference = double(y[i]) - expected.y[i];
    CHECK(std::isfinite(y[i]), "%s: y[%zu] is %g, not %g", what.c_str(), i, double(y[i]), expected.y[i]);
    if (std::fabs(difference) > worst) worst = std::fabs(difference), at = i;
    error += difference * difference;
    norm += expected.y[i] * expected.y[i];
  }
  CHECK(std::sqrt(error) <= kTolerance * std::sqrt(norm) + kOneRounding * expected.size + 1e-30,
        "%s: error %.3g of %.3g (terms %.3g); worst y[%zu], %.9g, not %.9g", what.c_str(), std::sqrt(error),
        std::sqrt(norm), expected.size, at, double(y[at]), expected.y[at]);
}

// call(y, runner, message, size) under every instruction set, alone and with threads; ask(message, size) is the
// question whether it is supported. `refusal`: why it must be refused, or null.
template <typename Call, typename Ask, typename Expect>
void check_call(Random& random, const Pools& pools, int64_t outputs, const char* refusal, const std::string& what,
                Tally& tally, const Call& call, const Ask& ask, const Expect& expect) {
  Expected expected;
  if (!refusal) expected = expect();
  ++(refusal ? tally.refused : tally.computed);
  for (const std::string& isa : instruction_sets()) {
    const std::string name = isa + ", " + what;
    CHECK(compress_use_isa(isa.c_str()) == COMPRESS_OK, "%s", isa.c_str());
    Outputs y(outputs);
    Guarded<char> message(256);
    message[0] = 0;
    const compress_status status = call(y.data(), nullptr, message.data(), message.size());
    const compress_status answer = ask(message.data(), message.size());
    CHECK(status == (refusal ? COMPRESS_UNSUPPORTED : COMPRESS_OK), "%s: status %d (%s)", name.c_str(), int(status),
          message.data());
    CHECK(answer == status, "%s: status %d but supported says %d", name.c_str(), int(status), int(answer));
    if (refusal) {
      CHECK(message[0], "%s: no message", name.c_str());
      continue;
    }
    check_outputs(y, expected, name);
    for (int threads : {int(random.whole(1, 2)), int(random.whole(3, kMostThreads))}) {
      Outputs again(outputs);
      CHECK(call(again.data(), pools.of(threads), nullptr, 0) == COMPRESS_OK, "%s", name.c_str());
      CHECK(std::memcmp(y.data(), again.data(), size_t(outputs) * sizeof(float)) == 0, "%s: %d threads differ",
            name.c_str(), threads);
    }
  }
}

// A value that is not finite must spoil all outputs of its own row (image) and no others. Only infinities under a
// static scale are clipped like any large value. call(y) computes with `inputs`, `outputs` for each row.
template <typename Call>
void check_broken_rows(Random& random, Inputs& inputs, int64_t outputs, const std::string& what, const Call& call) {
  Outputs clean(inputs.outputs);
  call(clean.data());
  for (float value : {kNan, -kNan, kInfinity, -kInfinity}) {
    const int64_t row = random.whole(0, inputs.rows - 1);
    float& place = (*inputs.x)[size_t(row * inputs.length + random.whole(0, inputs.length - 1))];
    const float kept = place;
    place = value;
    Outputs y(inputs.outputs);
    call(y.data());
    place = kept;
    for (int64_t i = 0; i < inputs.outputs; ++i) {
      const float found = y[size_t(i)];
      if (i / outputs != row)
        CHECK(found == clean[size_t(i)], "%s: %g in row %lld changed y[%lld]", what.c_str(), double(value),
              static_cast<long long>(row), static_cast<long long>(i));
      else if (std::isnan(value) || !inputs.act_scale)
        CHECK(std::isnan(found), "%s: %g is not seen in y[%lld], %g", what.c_str(), double(value),
              static_cast<long long>(i), double(found));
    }
  }
}

// A call that must fail with that status (0: INVALID or UNSUPPORTED) and say why, whatever room there is to say it.
template <typename Call>
void check_refused(const char* what, const Call& call, int wanted = 0) {
  for (size_t size : {256u, 8u, 1u, 0u}) {
    Guarded<char> message(size);
    const compress_status status = call(size ? message.data() : nullptr, size);
    CHECK(wanted ? status == wanted : status == COMPRESS_INVALID || status == COMPRESS_UNSUPPORTED, "%s: status %d",
          what, int(status));
    if (size > 1) CHECK(message[0] && std::memchr(message.data(), 0, size), "%s: no message", what);
  }
}

}  // namespace compress
