// Every function of every tile that this CPU runs, against plain loops. All arrays end at a guard page.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "common/guarded.h"
#include "common/test.h"
#include "tile/dispatch.h"

namespace compress {

#ifdef COMPRESS_TEST_EVEX
extern const Tile avxvnni_evex_tile;  // avxvnni.cpp for AVX512-VL
#endif

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kEpsilon = 0x1p-24;  // of one rounding to float

enum class Fill { random, least, most };

template <typename T>
void fill(Guarded<T>& array, Random& random, int low, int high, Fill how = Fill::random) {
  for (T& value : array)
    value = T(how == Fill::least ? low : how == Fill::most ? high : int(random.whole(low, high)));
}

void fill_real(Guarded<float>& array, Random& random, float low, float high) {
  for (float& value : array) value = random.real(low, high);
}

template <typename T>
using Columns = std::vector<std::unique_ptr<Guarded<T>>>;

template <typename T>
Columns<T> random_columns(size_t columns, size_t size, Random& random, int low, int high) {
  Columns<T> arrays;
  for (size_t c = 0; c < columns; ++c) {
    arrays.push_back(std::make_unique<Guarded<T>>(size));
    fill(*arrays.back(), random, low, high);
  }
  return arrays;
}

template <typename T>
std::vector<const T*> pointers(const Columns<T>& arrays) {
  std::vector<const T*> result;
  for (const auto& array : arrays) result.push_back(array->data());
  return result;
}

// Place of position k of column c in a panel.
size_t place(int k, int c) { return size_t(k / kQuad) * kQuadBytes + size_t(c * kQuad + k % kQuad); }

int panel_value(const Tile& t, uint8_t byte) { return t.panel_offset ? int(byte) : int(int8_t(byte)); }

int64_t dot(const Tile& t, const uint8_t* panel, const int8_t* a, int quads, int column) {
  int64_t sum = 0;
  for (int k = 0; k < quads * kQuad; ++k) sum += int64_t(panel_value(t, panel[place(k, column)])) * a[k];
  return sum;
}

void test_multiply(const Tile& t, Random& random) {
  const int rows = t.rows_per_tile;
  for (int quads : {1, 2, 3, 4, 5, 7, 8, 12, 33, 96, 129, 300}) {
    for (int variant = 0; variant < 12; ++variant) {
      const Fill panel_fill = Fill(variant % 3), row_fill = Fill(variant / 3 % 3);
      const bool accumulate = variant % 2;
      const size_t lda = size_t(quads * kQuad + (variant % 4 ? variant : 0)), ldc = variant % 5 ? 64 + variant : 64;
      Guarded<uint8_t> panel(size_t(quads) * kQuadBytes);
      Guarded<int8_t> a((rows - 1) * lda + size_t(quads) * kQuad);
      Guarded<int32_t> c((rows - 1) * ldc + kPanelColumns), before(c.size());
      fill(panel, random, 0, 255, panel_fill);
      fill(a, random, -128, 127, row_fill);
      if (accumulate) fill(c, random, -1000000, 1000000);
      std::copy(c.begin(), c.end(), before.begin());
      t.multiply(panel.data(), a.data(), lda, quads, c.data(), ldc, accumulate);
      for (size_t i = 0; i < c.size(); ++i) {
        const int row = int(i / ldc), column = int(i % ldc);
        int64_t want = before[i];
        if (column < kPanelColumns)
          want = (accumulate ? before[i] : 0) + dot(t, panel.data(), a.data() + row * lda, quads, column);
        CHECK(c[i] == want, "%s multiply, %d quads: c[%d][%d] is %d, not %lld", t.name, quads, row, column, c[i],
              static_cast<long long>(want));
      }
    }
  }
}

void test_multiply_scaled(const Tile& t, Random& random, bool row_scaled) {
  const int rows = t.rows_per_tile;
  for (int quads : {2, 4, 6, 8, 16, 32, 130}) {
    for (int segments : {1, 2, 3, 9, 20}) {
      for (int variant = 0; variant < 4; ++variant) {
        const bool accumulate = variant % 2;
        const int k = quads * kQuad * segments;
        const size_t lda = size_t(k + 3 * variant), ldc = size_t(64 + 5 * variant);
        const size_t stride = size_t(segments + variant);  // of starts and of row scales
        Guarded<uint8_t> panel(size_t(k) * kPanelColumns);
        Guarded<int8_t> a((rows - 1) * lda + size_t(k));
        Guarded<int32_t> start((rows - 1) * stride + size_t(segments));
        Guarded<float> scales(row_scaled ? start.size() : size_t(segments) * kPanelColumns);
        Guarded<float> c((rows - 1) * ldc + kPanelColumns), before(c.size());
        fill(panel, random, 0, 255, variant == 3 ? Fill::most : Fill::random);
        fill(a, random, -128, 127, variant == 3 ? Fill::least : Fill::random);
        fill(start, random, -100000, 100000);
        fill_real(scales, random, -1.0f, 1.0f);
        if (accumulate) fill_real(c, random, -1e5f, 1e5f);
        std::copy(c.begin(), c.end(), before.begin());
        if (row_scaled)
          t.multiply_row_scaled(panel.data(), a.data(), lda, quads, segments, start.data(), stride, scales.data(),
                                stride, c.data(), ldc, accumulate);
        else
          t.multiply_scaled(panel.data(), a.data(), lda, quads, segments, start.data(), stride, scales.data(), c.data(),
                            ldc, accumulate);
        for (size_t i = 0; i < c.size(); ++i) {
          const int row = int(i / ldc), column = int(i % ldc);
          if (column >= kPanelColumns) {
            CHECK(std::memcmp(&c[i], &before[i], sizeof(float)) == 0, "%s wrote past column 64", t.name);
            continue;
          }
          double want = accumulate ? before[i] : 0.0, size = std::fabs(want);
          for (int s = 0; s < segments; ++s) {
            const size_t first = size_t(s) * quads;
            const double scale = row_scaled ? scales[row * stride + s] : scales[size_t(s * kPanelColumns + column)];
            const double term = scale * double(start[row * stride + s] +
                                               dot(t, panel.data() + first * kQuadBytes,
                                                   a.data() + row * lda + first * kQuad, quads, column));
            want += term;
            size += std::fabs(term);
          }
          CHECK(std::fabs(c[i] - want) <= (segments + 3) * kEpsilon * size,
                "%s %s, %d quads, %d segments: c[%d][%d] is %.9g, not %.9g", t.name,
                row_scaled ? "multiply_row_scaled" : "multiply_scaled", quads, segments, row, column, c[i], want);
        }
      }
    }
  }
}

void test_largest(const Tile& t, Random& random) {
  for (size_t count = 0; count < 401; count += count < 70 ? 1 : 47) {
    Guarded<float> x(count), smooth(count);
    fill_real(x, random, -4.0f, 4.0f);
    fill_real(smooth, random, -4.0f, 4.0f);
    float plain = 0.0f, smoothed = 0.0f;
    for (size_t i = 0; i < count; ++i) {
      plain = std::max(plain, std::fabs(x[i]));
      smoothed = std::max(smoothed, std::fabs(x[i] * smooth[i]));
    }
    CHECK(t.largest(x.data(), nullptr, count) == plain, "%s largest of %zu", t.name, count);
    CHECK(t.largest(x.data(), smooth.data(), count) == smoothed, "%s largest of %zu, smoothed", t.name, count);
    for (size_t i = 0; i < count; i += 1 + count / 20) {
      const float kept = x[i];
      x[i] = i % 2 ? kInfinity : -kInfinity;
      CHECK(t.largest(x.data(), nullptr, count) == kInfinity, "%s largest with infinity at %zu", t.name, i);
      x[i] = std::copysign(std::nanf(""), i % 2 ? 1.0f : -1.0f);
      CHECK(std::isnan(t.largest(x.data(), nullptr, count)), "%s largest with NaN at %zu of %zu", t.name, i, count);
      CHECK(std::isnan(t.largest(x.data(), smooth.data(), count)), "%s largest with NaN at %zu", t.name, i);
      x[i] = kInfinity;
      const float kept_smooth = smooth[i];
      smooth[i] = 0.0f;
      CHECK(std::isnan(t.largest(x.data(), smooth.data(), count)), "%s largest with inf * 0 at %zu", t.name, i);
      x[i] = kept;
      smooth[i] = kept_smooth;
    }
  }
}

int wanted_code(float value, const RowCoding& coding) {
  const float ratio = value / coding.scale, low = coding.low - coding.zero, high = coding.high - coding.zero;
  const float clamped = std::isnan(ratio) ? low : std::min(std::max(ratio, low), high);
  return int(std::nearbyint(clamped) + coding.zero - coding.shift);
}

void check_encode(const Tile& t, Guarded<float>& x, Guarded<float>* smooth, size_t padded, size_t segment,
                  const RowCoding& coding) {
  Guarded<int8_t> codes(padded);
  Guarded<int32_t> sums(segment >= padded ? 1 : (padded + segment - 1) / segment);
  t.encode(x.data(), smooth ? smooth->data() : nullptr, x.size(), padded, coding, codes.data(), segment, sums.data());
  for (size_t s = 0; s < sums.size(); ++s) {
    int32_t sum = 0;
    for (size_t i = s * segment; i < std::min(padded, (s + 1) * segment); ++i) {
      const float value = i >= x.size() ? 0.0f : smooth ? x[i] * (*smooth)[i] : x[i];
      const int want = i < x.size() ? wanted_code(value, coding) : 0;
      CHECK(codes[i] == want, "%s encode: %.9g / %.9g became %d, not %d (position %zu of %zu)", t.name, value,
            coding.scale, codes[i], want, i, x.size());
      sum += want;
    }
    CHECK(sums[s] == sum, "%s encode: sum of segment %zu is %d, not %d", t.name, s, sums[s], sum);
  }
}

void test_encode(const Tile& t, Random& random) {
  const RowCoding formats[] = {{1.0f, 0.0f, -128.0f, 127.0f, 0.0f},
                               {1.0f, 37.0f, 0.0f, 255.0f, 128.0f},
                               {1.0f, 0.0f, -8.0f, 7.0f, 0.0f},
                               {1.0f, 9.0f, 0.0f, 15.0f, 0.0f}};
  const float scales[] = {1.0f, 0.125f, 0.0123456789f, 3.7e-5f, 8.3e4f, 1e-39f, 1e-38f, 3e-39f, 2.5e38f};
  for (const RowCoding& format : formats) {
    for (float scale : scales) {
      RowCoding coding = format;
      coding.scale = scale;
      for (size_t count : {1u, 15u, 16u, 17u, 31u, 33u, 64u, 401u, 1152u}) {
        Guarded<float> x(count), smooth(count);
        for (size_t i = 0; i < count; ++i) {
          const float code = float(random.whole(-140, 140));
          switch (random.whole(0, 3)) {
            case 0: x[i] = (code + 0.5f) * scale; break;  // a half, or next to one
            case 1: x[i] = std::nextafter((code + 0.5f) * scale, random.whole(0, 1) ? kInfinity : -kInfinity); break;
            case 2: x[i] = code * scale; break;
            default: x[i] = random.real(-150.0f, 150.0f) * scale;
          }
        }
        const float odd[] = {std::nanf(""), kInfinity, -kInfinity, 3e38f, -3e38f, 1e-42f, -0.0f};
        if (count > 100)
          for (float value : odd) x[size_t(random.whole(0, int64_t(count) - 1))] = value;
        fill_real(smooth, random, -2.0f, 2.0f);
        const size_t least = (count + 15) / 16 * 16;
        for (size_t padded : {least, least + 16, least + 48})
          for (size_t segment : {size_t(16), size_t(32), size_t(48), size_t(128), padded, padded + 64}) {
            check_encode(t, x, nullptr, padded, segment, coding);
            check_encode(t, x, &smooth, padded, segment, coding);
          }
      }
    }
  }
}

void test_expand_nibbles(const Tile& t, Random& random) {
  for (int length : {32, 64, 96, 320})
    for (int stretch : {0, 16, 32, 48, 64, 128, 512}) {
      const auto codes = random_columns<uint8_t>(kPanelColumns, size_t(length) / 2, random, 0, 255);
      Guarded<uint8_t> tables(stretch ? size_t((length + stretch - 1) / stretch) * 1024 : 16);
      fill(tables, random, 0, 255);
      Guarded<uint8_t> panel(size_t(length) * kPanelColumns);
      t.expand_nibbles(pointers(codes).data(), length, tables.data(), stretch, panel.data());
      for (int c = 0; c < kPanelColumns; ++c)
        for (int k = 0; k < length; ++k) {
          const int code = (*codes[size_t(c)])[size_t(k) / 2] >> (k % 2 * 4) & 15;
          const size_t table = stretch ? size_t(k / stretch) * 1024 + size_t(table_place(c)) : 0;
          CHECK(panel[place(k, c)] == tables[table + size_t(code)], "%s expand_nibbles %d, stretch %d: k %d, column %d",
                t.name, length, stretch, k, c);
        }
    }
}

void test_expand_bytes(const Tile& t, Random& random) {
  for (int length : {16, 32, 48, 336}) {
    const auto codes = random_columns<uint8_t>(kPanelColumns, size_t(length), random, 0, 255);
    Guarded<uint8_t> add(kPanelColumns), panel(size_t(length) * kPanelColumns);
    fill(add, random, 0, 255);
    t.expand_bytes(pointers(codes).data(), length, add.data(), panel.data());
    for (int c = 0; c < kPanelColumns; ++c)
      for (int k = 0; k < length; ++k)
        CHECK(panel[place(k, c)] == uint8_t((*codes[size_t(c)])[size_t(k)] + add[size_t(c)]),
              "%s expand_bytes %d: k %d, column %d", t.name, length, k, c);
  }
}

void test_fold_tables(const Tile& t, Random& random) {
  for (int count : {1, 2, 7, 64}) {
    Guarded<float> values(16), factors((size_t(count)));
    Columns<uint8_t> tables = random_columns<uint8_t>(size_t(count), 16, random, 0, 255);
    std::vector<uint8_t*> places;
    for (const auto& table : tables) places.push_back(table->data());
    for (size_t i = 0; i < 16; ++i) values[i] = i % 2 ? random.real(-127.0f, 127.0f) : float(random.whole(-63, 63));
    for (float& factor : factors) factor = random.whole(0, 2) ? random.real(0.0f, 1.0f) : 0.5f;
    t.fold_tables(values.data(), factors.data(), count, places.data());
    for (size_t i = 0; i < size_t(count); ++i)
      for (size_t code = 0; code < 16; ++code) {
        const float product = values[code] * factors[i];
        CHECK((*tables[i])[code] == uint8_t(int(std::nearbyint(product)) + t.panel_offset),
              "%s fold_tables: %.9g became %d", t.name, product, (*tables[i])[code]);
      }
  }
}

void test_expand_vectors(const Tile& t, Random& random) {
  for (int entries : {16, 256})
    for (int quads : {1, 2, 3, 4, 5, 8, 11, 72}) {
      const auto codes = random_columns<uint8_t>(kPanelColumns, size_t(quads), random, 0, entries - 1);
      Guarded<uint32_t> book((size_t(entries)));
      for (uint32_t& entry : book) entry = uint32_t(random.bits());
      Guarded<uint8_t> panel(size_t(quads) * kQuadBytes);
      t.expand_vectors(pointers(codes).data(), quads, book.data(), panel.data());
      for (int q = 0; q < quads; ++q)
        for (int c = 0; c < kPanelColumns; ++c)
          CHECK(std::memcmp(panel.data() + place(kQuad * q, c), &book[(*codes[size_t(c)])[size_t(q)]], 4) == 0,
                "%s expand_vectors: quad %d of %d, column %d", t.name, q, quads, c);
    }
}

void test_interleave(const Tile& t, Random& random) {
  for (int quads : {1, 2, 9}) {
    const auto rows = random_columns<int8_t>(size_t(quads * kQuad), 67, random, -128, 127);
    std::vector<const int8_t*> first = pointers(rows);
    for (const int8_t*& row : first) row += random.whole(0, 3);  // 3: the row ends at the guard page
    Guarded<uint8_t> panel(size_t(quads) * kQuadBytes);
    t.interleave(first.data(), quads, panel.data());
    for (int k = 0; k < quads * kQuad; ++k)
      for (int c = 0; c < kPanelColumns; ++c)
        CHECK(panel[place(k, c)] == uint8_t(first[size_t(k)][c] + t.panel_offset), "%s interleave: k %d, column %d",
              t.name, k, c);
  }
}

double activated(double y, Activation activation) {
  if (activation == Activation::gelu_tanh)
    return 0.5 * y * (1.0 + std::tanh(std::sqrt(2.0 / 3.14159265358979323846) * (y + 0.044715 * y * y * y)));
  if (activation == Activation::silu) return y / (1.0 + std::exp(-y));
  return y;
}

constexpr Activation kActivations[] = {Activation::none, Activation::gelu_tanh, Activation::silu};

// One row with the optional inputs whose bits are set in `chosen`.
void check_finish(const Tile& t, Random& random, int chosen, Activation activation, int count) {
  Guarded<int32_t> sums(kPanelColumns), zero(kPanelColumns);
  Guarded<float> floats(kPanelColumns), scale(kPanelColumns), column_sum(kPanelColumns), bias(kPanelColumns);
  Guarded<float> addend(kPanelColumns), residual((size_t(count)));
  fill(sums, random, -3000000, 3000000);
  fill(zero, random, 0, 255);
  for (size_t i = 0; i < kPanelColumns; ++i) floats[i] = random.real(-3e6f, 3e6f);
  for (Guarded<float>* array : {&scale, &column_sum, &bias, &addend, &residual}) fill_real(*array, random, -2.0f, 2.0f);
  RowFinish how = {};
  how.column_scale = scale.data();
  how.column_zero = chosen & 1 ? zero.data() : nullptr;
  how.column_sum = chosen & 2 ? column_sum.data() : nullptr;
  how.bias = chosen & 4 ? bias.data() : nullptr;
  how.addend = chosen & 8 ? addend.data() : nullptr;
  how.residual = chosen & 16 ? residual.data() : nullptr;
  how.row_bias = chosen & 32 ? random.real(-2.0f, 2.0f) : 0.0f;
  how.row_scale = random.real(0.5e-6f, 3e-6f);
  how.row_shift = random.real(-2.0f, 2.0f);
  how.row_offset = int32_t(random.whole(-1000000, 1000000));
  how.row_sum = int32_t(random.whole(-5000, 5000));
  how.activation = activation;
  for (bool whole : {true, false}) {
    if (!whole && chosen & 1) how.column_scale = nullptr;
    Guarded<float> y((size_t(count)));
    if (whole)
      t.finish(sums.data(), how, y.data(), count);
    else
      t.finish_float(floats.data(), how, y.data(), count);
    for (size_t i = 0; i < size_t(count); ++i) {
      const int sum = sums[i] - how.row_offset - (how.column_zero ? zero[i] * how.row_sum : 0);
      double value = double(how.row_scale) * (whole ? sum : floats[i]) * (how.column_scale ? scale[i] : 1.0f);
      double size = std::fabs(value);
      const auto add = [&](double term) {
        value += term;
        size += std::fabs(term);
      };
      if (how.column_sum) add(double(how.row_shift) * column_sum[i]);
      if (how.bias) add(bias[i]);
      if (how.addend) add(addend[i]);
      add(how.row_bias);
      const double rest = how.residual ? residual[i] : 0.0;
      const double want = activated(value, activation) + rest;
      const double own = activation == Activation::none ? 0.0 : 2e-6 * (1.0 + std::fabs(want));
      CHECK(std::fabs(y[i] - want) <= own + 8.0 * kEpsilon * (size + std::fabs(rest)),
            "%s %s, inputs %d, activation %d: y[%zu of %d] is %.9g, not %.9g", t.name,
            whole ? "finish" : "finish_float", chosen, int(activation), i, count, y[i], want);
    }
  }
}

void test_finish(const Tile& t, Random& random) {
  for (int chosen = 0; chosen < 64; ++chosen)
    for (Activation activation : kActivations)
      for (int count : {1, 7, 8, 15, 16, 17, 33, 48, 63, 64}) check_finish(t, random, chosen, activation, count);
}

void test_activations(const Tile& t) {
  RowFinish how = {};
  how.row_scale = 1.0f;
  Guarded<float> x(kPanelColumns), y(kPanelColumns);
  for (Activation activation : kActivations) {
    how.activation = activation;
    for (float first = -100.0f; first < 100.0f; first += kPanelColumns / 256.0f) {
      for (size_t i = 0; i < kPanelColumns; ++i) x[i] = first + float(i) / 256.0f;
      t.finish_float(x.data(), how, y.data(), kPanelColumns);
      for (size_t i = 0; i < kPanelColumns; ++i) {
        const double want = activated(x[i], activation);
        CHECK(std::fabs(y[i] - want) <= 6e-7 * (1.0 + std::fabs(want)), "%s activation %d of %.9g is %.9g, not %.9g",
              t.name, int(activation), x[i], y[i], want);
      }
    }
    for (float large : {1e3f, 1e15f, 3e38f}) {
      x[0] = large;
      x[1] = -large;
      x[2] = std::nanf("");
      t.finish_float(x.data(), how, y.data(), 3);
      CHECK(y[0] == large, "%s activation %d of %g is %g", t.name, int(activation), large, y[0]);
      if (activation != Activation::none)
        CHECK(std::fabs(y[1]) <= 3e-38 * large + 1e-30, "%s activation %d of -%g is %g", t.name, int(activation), large,
              y[1]);
      CHECK(std::isnan(y[2]), "%s activation %d of NaN is %g", t.name, int(activation), y[2]);
    }
  }
}

void test_accumulate(const Tile& t, Random& random) {
  for (int count : {0, 1, 2, 5, 33, 128})
    for (int columns : {1, 7, 16, 63, 64, 65, 130, 200})
      for (bool scaled : {false, true}) {
        const size_t ldb = size_t(columns) + (columns % 2 ? 3 : 0);
        Guarded<float> a((size_t(count))), scale((size_t(count))), y((size_t(columns))), before((size_t(columns)));
        Guarded<float> b(count ? size_t(count - 1) * ldb + size_t(columns) : 0);
        for (Guarded<float>* array : {&a, &scale, &b, &y}) fill_real(*array, random, -2.0f, 2.0f);
        std::copy(y.begin(), y.end(), before.begin());
        t.accumulate(a.data(), scaled ? scale.data() : nullptr, count, b.data(), ldb, y.data(), columns);
        for (size_t c = 0; c < size_t(columns); ++c) {
          double want = before[c], size = std::fabs(want);
          for (size_t i = 0; i < size_t(count); ++i) {
            const double term = double(a[i]) * (scaled ? scale[i] : 1.0f) * b[i * ldb + c];
            want += term;
            size += std::fabs(term);
          }
          CHECK(std::fabs(y[c] - want) <= (count + 3) * kEpsilon * size,
                "%s accumulate %d: y[%zu of %d] is %.9g, not %.9g", t.name, count, c, columns, y[c], want);
        }
      }
}

void test_add_scaled(const Tile& t, Random& random) {
  for (int count = 0; count < 100; ++count)
    for (int weight : {-128, -37, 0, 127, 100000}) {
      Guarded<int8_t> a((size_t(count)));
      Guarded<int32_t> sums((size_t(count))), before((size_t(count)));
      fill(a, random, -128, 127, Fill(count % 3));
      fill(sums, random, -1000000, 1000000);
      std::copy(sums.begin(), sums.end(), before.begin());
      t.add_scaled(a.data(), weight, sums.data(), count);
      for (size_t i = 0; i < size_t(count); ++i)
        CHECK(sums[i] == before[i] + weight * a[i], "%s add_scaled: sum %zu of %d", t.name, i, count);
    }
}

void test_tile(const Tile& t) {
  Random random(2026);
  CHECK(t.rows_per_tile > 0, "%s", t.name);
  CHECK(t.panel_offset == 0 || t.panel_offset == 128, "%s", t.name);
  test_multiply(t, random);
  test_multiply_scaled(t, random, false);
  test_multiply_scaled(t, random, true);
  test_largest(t, random);
  test_encode(t, random);
  test_expand_nibbles(t, random);
  test_expand_bytes(t, random);
  test_fold_tables(t, random);
  test_expand_vectors(t, random);
  test_interleave(t, random);
  test_finish(t, random);
  test_activations(t);
  test_accumulate(t, random);
  test_add_scaled(t, random);
  std::printf("%s: %d rows, offset %d: passed\n", t.name, t.rows_per_tile, t.panel_offset);
}

// The choice is made once a process, so each value of the variable needs a process of its own.
void check_environment(const char* value, const char* wanted) {
  std::fflush(nullptr);
  const pid_t child = fork();
  CHECK(child >= 0, "fork failed");
  if (child == 0) {
    setenv("COMPRESS_KERNEL", value, 1);
    _exit(std::strcmp(tile().name, wanted) == 0 ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "COMPRESS_KERNEL=%s does not lead to %s", value, wanted);
}

void test_dispatch() {
  const std::vector<const Tile*>& tiles = available_tiles();
  CHECK(!tiles.empty() && std::strcmp(tiles.back()->name, "scalar") == 0, "the scalar tile is not the last");
  for (const Tile* t : tiles) check_environment(t->name, t->name);
  check_environment("abacus", tiles.front()->name);
  check_environment("", tiles.front()->name);
  for (const Tile* t : tiles) {
    CHECK(use_tile(t->name), "%s is available but cannot be used", t->name);
    CHECK(!use_tile("abacus"), "a tile that does not exist was accepted");
    CHECK(&tile() == t, "%s was chosen, %s is used", t->name, tile().name);
  }
  use_tile(tiles.front()->name);
}

}  // namespace
}  // namespace compress

int main() {
  compress::test_dispatch();
  for (const compress::Tile* t : compress::available_tiles()) compress::test_tile(*t);
#ifdef COMPRESS_TEST_EVEX
  if (std::strcmp(compress::available_tiles().front()->name, "avx512vnni") == 0)
    compress::test_tile(compress::avxvnni_evex_tile);
#endif
  return 0;
}
