// The tile in portable C++: the scalar tile, and the parts that compilers vectorize well enough under each instruction
// set's own flags. Everything is in an anonymous namespace because each file that includes this compiles it its way.
#pragma once

#include <algorithm>
#include <cstring>

#include "tile/tile.h"

namespace compress {
namespace {
namespace portable {

template <int rows, int offset>
struct Products {
  static void multiply(const uint8_t* panel, const int8_t* a, size_t lda, int quads, int32_t* c, size_t ldc,
                       bool accumulate) {
    for (int r = 0; r < rows; ++r) {
      int32_t sums[kPanelColumns];
      for (int i = 0; i < kPanelColumns; ++i) sums[i] = accumulate ? c[r * ldc + i] : 0;
      add(panel, a + r * lda, quads, sums);
      for (int i = 0; i < kPanelColumns; ++i) c[r * ldc + i] = sums[i];
    }
  }

  static void multiply_scaled(const uint8_t* panel, const int8_t* a, size_t lda, int quads, int segments,
                              const int32_t* start, size_t start_stride, const float* scales, float* c, size_t ldc,
                              bool accumulate) {
    for (int r = 0; r < rows; ++r) {
      float* out = c + r * ldc;
      if (!accumulate) std::memset(out, 0, kPanelColumns * sizeof(float));
      for (int s = 0; s < segments; ++s) {
        int32_t sums[kPanelColumns];
        for (int i = 0; i < kPanelColumns; ++i) sums[i] = start[r * start_stride + s];
        add(panel + size_t(s) * quads * kQuadBytes, a + r * lda + size_t(s) * quads * kQuad, quads, sums);
        const float* scale = scales + s * kPanelColumns;
        for (int i = 0; i < kPanelColumns; ++i) out[i] += float(sums[i]) * scale[i];
      }
    }
  }

  static void multiply_row_scaled(const uint8_t* panel, const int8_t* a, size_t lda, int quads, int segments,
                                  const int32_t* start, size_t start_stride, const float* scales, size_t scale_stride,
                                  float* c, size_t ldc, bool accumulate) {
    for (int r = 0; r < rows; ++r) {
      float* out = c + r * ldc;
      if (!accumulate) std::memset(out, 0, kPanelColumns * sizeof(float));
      for (int s = 0; s < segments; ++s) {
        int32_t sums[kPanelColumns];
        for (int i = 0; i < kPanelColumns; ++i) sums[i] = start[r * start_stride + s];
        add(panel + size_t(s) * quads * kQuadBytes, a + r * lda + size_t(s) * quads * kQuad, quads, sums);
        const float scale = scales[r * scale_stride + s];
        for (int i = 0; i < kPanelColumns; ++i) out[i] += float(sums[i]) * scale;
      }
    }
  }

 private:
  static void add(const uint8_t* panel, const int8_t* a, int quads, int32_t* sums) {
    for (int q = 0; q < quads; ++q, panel += kQuadBytes, a += kQuad) {
      for (int i = 0; i < kPanelColumns; ++i) {
        int32_t sum = 0;
        for (int k = 0; k < kQuad; ++k) {
          const int p = offset ? int(panel[kQuad * i + k]) : int(int8_t(panel[kQuad * i + k]));
          sum += p * int(a[k]);
        }
        sums[i] += sum;
      }
    }
  }
};

// Magnitudes of floats are ordered as their bits are, and NaN's are the largest: integers make this a plain reduction,
// which compilers vectorize without relaxed floating point.
inline int32_t magnitude_bits(float value) {
  int32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits & 0x7fffffff;
}

inline float largest(const float* x, const float* smooth, size_t count) {
  int32_t most = 0;
  if (smooth)
    for (size_t i = 0; i < count; ++i) most = std::max(most, magnitude_bits(x[i] * smooth[i]));
  else
    for (size_t i = 0; i < count; ++i) most = std::max(most, magnitude_bits(x[i]));
  float value;
  std::memcpy(&value, &most, sizeof value);
  return value;
}

// Rounds half to even for magnitudes below 2^22, which clamped codes are.
inline float nearest(float value) {
  constexpr float magic = 12582912.0f;  // 1.5 * 2^23
  return (value + magic) - magic;
}

inline void encode(const float* x, const float* smooth, size_t count, size_t padded, const RowCoding& coding,
                   int8_t* codes, size_t segment, int32_t* sums) {
  // The bytes written below may alias what is read, so all that is constant is read first.
  const float scale = coding.scale, least = coding.low - coding.zero, most = coding.high - coding.zero;
  const float shift = coding.zero - coding.shift;
  const auto code = [=](float value) {
    value /= scale;
    value = value > least ? value : least;  // NaN becomes the lowest code; its scale makes the row NaN
    value = value < most ? value : most;
    return int8_t(int(nearest(value) + shift));
  };
  if (smooth)
    for (size_t i = 0; i < count; ++i) codes[i] = code(x[i] * smooth[i]);
  else
    for (size_t i = 0; i < count; ++i) codes[i] = code(x[i]);
  std::memset(codes + count, 0, padded - count);
  for (size_t first = 0, s = 0; first < padded; first += segment, ++s) {
    const size_t last = first + segment < padded ? first + segment : padded;
    int32_t sum = 0;
    for (size_t i = first; i < last; ++i) sum += codes[i];
    sums[s] = sum;
  }
}

inline void expand_nibbles(const uint8_t* const* columns, int length, const uint8_t* tables, int stretch,
                           uint8_t* panel) {
  for (int c = 0; c < kPanelColumns; ++c) {
    for (int k = 0; k < length; ++k) {
      const uint8_t* table = stretch ? tables + size_t(k / stretch) * 1024 + table_place(c) : tables;
      const uint8_t code = k % 2 ? columns[c][k / 2] >> 4 : columns[c][k / 2] & 15;
      panel[size_t(k / kQuad) * kQuadBytes + c * kQuad + k % kQuad] = table[code];
    }
  }
}

inline void expand_bytes(const uint8_t* const* columns, int length, const uint8_t* add, uint8_t* panel) {
  for (int c = 0; c < kPanelColumns; ++c)
    for (int k = 0; k < length; ++k)
      panel[size_t(k / kQuad) * kQuadBytes + c * kQuad + k % kQuad] = uint8_t(columns[c][k] + add[c]);
}

template <int offset>
inline void fold_tables(const float* values, const float* factors, int count, uint8_t* const* tables) {
  float own[16];  // the bytes written below may alias `values`
  std::memcpy(own, values, sizeof own);
  for (int i = 0; i < count; ++i) {
    const float factor = factors[i];
    uint8_t entries[16];
    for (int code = 0; code < 16; ++code) entries[code] = uint8_t(int(nearest(own[code] * factor)) + offset);
    std::memcpy(tables[i], entries, sizeof entries);
  }
}

inline void expand_vectors(const uint8_t* const* columns, int quads, const uint32_t* book, uint8_t* panel) {
  for (int q = 0; q < quads; ++q)
    for (int c = 0; c < kPanelColumns; ++c)
      std::memcpy(panel + size_t(q) * kQuadBytes + c * kQuad, &book[columns[c][q]], 4);
}

template <int offset>
inline void interleave(const int8_t* const* rows, int quads, uint8_t* panel) {
  for (int q = 0; q < quads; ++q, rows += kQuad) {
    const int8_t *const r0 = rows[0], *const r1 = rows[1], *const r2 = rows[2], *const r3 = rows[3];
    uint8_t* const out = panel + size_t(q) * kQuadBytes;
    for (int c = 0; c < kPanelColumns; ++c) {
      out[4 * c] = uint8_t(r0[c] + offset);
      out[4 * c + 1] = uint8_t(r1[c] + offset);
      out[4 * c + 2] = uint8_t(r2[c] + offset);
      out[4 * c + 3] = uint8_t(r3[c] + offset);
    }
  }
}

// a * b + c, rounded once where the CPU does so; contraction is off otherwise, because fold_tables must round twice.
inline float multiply_add(float a, float b, float c) {
#if defined(__FMA__) || defined(__aarch64__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

// exp(x) for -87 <= x <= 88, relative error below 1e-6: 2^n * p(r) with r = x - n log 2, p a Taylor polynomial of
// degree 7 on |r| <= 0.35.
inline float exponential(float x) {
  const float n = nearest(x * 1.44269504f);
  const float r = (x - n * 0.693145752f) - n * 1.42860677e-6f;  // log 2 in two parts: n * the first is exact
  float p = 1.0f / 5040.0f;
  p = multiply_add(p, r, 1.0f / 720.0f);
  p = multiply_add(p, r, 1.0f / 120.0f);
  p = multiply_add(p, r, 1.0f / 24.0f);
  p = multiply_add(p, r, 1.0f / 6.0f);
  p = multiply_add(p, r, 0.5f);
  p = multiply_add(p, r, 1.0f);
  p = multiply_add(p, r, 1.0f);
  const int32_t bits = (int32_t(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, 4);
  return p * power;
}

// y *= 1 / (1 + exp(x)). The clamp is a loop of its own because compilers turn it into jumps beside the polynomial.
inline void multiply_logistic(const float* x, float* y) {
  float clamped[kPanelColumns];
  for (int i = 0; i < kPanelColumns; ++i) {
    const float below = x[i] < 88.0f ? x[i] : 88.0f;
    clamped[i] = below > -87.0f ? below : -87.0f;
  }
  for (int i = 0; i < kPanelColumns; ++i) y[i] = y[i] / (1.0f + exponential(clamped[i]));
}

inline void activate(Activation activation, float* y) {
  float x[kPanelColumns];
  if (activation == Activation::gelu_tanh) {
    // y * 1/2 (1 + tanh(u)) = y * logistic(2 u), u = sqrt(2 / pi) (y + 0.044715 y^3): Hendrycks and Gimpel 2016.
    for (int i = 0; i < kPanelColumns; ++i) x[i] = -1.59576912f * (y[i] + 0.044715f * y[i] * y[i] * y[i]);
    multiply_logistic(x, y);
  } else if (activation == Activation::silu) {
    for (int i = 0; i < kPanelColumns; ++i) x[i] = -y[i];
    multiply_logistic(x, y);
  }
}

// What follows the scales; `out` holds 64 values and may be changed.
inline void finish_row(float* out, const RowFinish& how, float* y, int count) {
  if (how.column_sum)
    for (int i = 0; i < kPanelColumns; ++i) out[i] += how.row_shift * how.column_sum[i];
  if (how.bias)
    for (int i = 0; i < kPanelColumns; ++i) out[i] += how.bias[i];
  if (how.addend)
    for (int i = 0; i < kPanelColumns; ++i) out[i] += how.addend[i];
  if (how.row_bias != 0.0f) {
    const float bias = how.row_bias;
    for (int i = 0; i < kPanelColumns; ++i) out[i] += bias;
  }
  activate(how.activation, out);
  if (how.residual)
    for (int i = 0; i < count; ++i) out[i] += how.residual[i];
  std::memcpy(y, out, size_t(count) * sizeof(float));
}

inline void finish(const int32_t* sums, const RowFinish& how, float* y, int count) {
  const int32_t *const zero = how.column_zero, row_offset = how.row_offset, row_sum = how.row_sum;
  const float *const scale = how.column_scale, row_scale = how.row_scale;
  float out[kPanelColumns];
  if (zero)
    for (int i = 0; i < kPanelColumns; ++i)
      out[i] = float(sums[i] - row_offset - zero[i] * row_sum) * scale[i] * row_scale;
  else
    for (int i = 0; i < kPanelColumns; ++i) out[i] = float(sums[i] - row_offset) * scale[i] * row_scale;
  finish_row(out, how, y, count);
}

inline void finish_float(const float* sums, const RowFinish& how, float* y, int count) {
  const float row_scale = how.row_scale;
  const float* const scale = how.column_scale;
  float out[kPanelColumns];
  if (scale)
    for (int i = 0; i < kPanelColumns; ++i) out[i] = sums[i] * scale[i] * row_scale;
  else
    for (int i = 0; i < kPanelColumns; ++i) out[i] = sums[i] * row_scale;
  finish_row(out, how, y, count);
}

inline void accumulate(const float* a, const float* scale, int64_t count, const float* b, size_t ldb, float* y,
                       int columns) {
  for (int first = 0; first < columns; first += kPanelColumns) {
    const int width = columns - first < kPanelColumns ? columns - first : kPanelColumns;
    float sums[kPanelColumns] = {};
    for (int64_t i = 0; i < count; ++i) {
      const float value = scale ? a[i] * scale[i] : a[i];
      const float* row = b + size_t(i) * ldb + first;
      for (int c = 0; c < width; ++c) sums[c] = multiply_add(value, row[c], sums[c]);
    }
    for (int c = 0; c < width; ++c) y[first + c] += sums[c];
  }
}

inline void add_scaled(const int8_t* a, int32_t weight, int32_t* sums, int count) {
  for (int i = 0; i < count; ++i) sums[i] += weight * a[i];
}

}  // namespace portable
}  // namespace
}  // namespace compress
