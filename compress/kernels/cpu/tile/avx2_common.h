// What the 256-bit tiles share: panels, and the loops around their products. Everything is in an anonymous namespace
// because each file that includes this compiles it with other flags.
#pragma once

#include <immintrin.h>

#include <algorithm>

#include "tile/portable.h"

namespace compress {
namespace {
namespace avx2 {

inline __m256i load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
inline __m128i load_half(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }
inline void store(void* to, __m256i value) { _mm256_storeu_si256(static_cast<__m256i*>(to), value); }

// The three products of a tile. A Kernel has
//   kRows, kRegisters (of 8 columns, in one call), kMostQuads (of rows prepared at once),
//   Kernel(a, lda, quads): prepares rows, and
//   add(panel, first quad, quads, sums[kRows][kRegisters]): sums += rows * panel, panel at its first column.
template <typename Kernel>
struct Products {
  static constexpr int kRows = Kernel::kRows;
  static constexpr int kRegisters = Kernel::kRegisters;
  static constexpr int kColumns = 8 * kRegisters;

  static void multiply(const uint8_t* panel, const int8_t* a, size_t lda, int quads, int32_t* c, size_t ldc,
                       bool accumulate) {
    int done = 0;
    do {
      const int part = std::min(quads - done, Kernel::kMostQuads);
      const Kernel kernel(a + size_t(done) * kQuad, lda, part);
      const uint8_t* const own = panel + size_t(done) * kQuadBytes;
      for (int column = 0; column < kPanelColumns; column += kColumns) {
        __m256i sums[kRows][kRegisters];
        for (int r = 0; r < kRows; ++r)
          for (int i = 0; i < kRegisters; ++i)
            sums[r][i] = accumulate ? load(c + r * ldc + column + 8 * i) : _mm256_setzero_si256();
        kernel.add(own + kQuad * column, 0, part, sums);
        for (int r = 0; r < kRows; ++r)
          for (int i = 0; i < kRegisters; ++i) store(c + r * ldc + column + 8 * i, sums[r][i]);
      }
      done += part;
      accumulate = true;
    } while (done < quads);
  }

  static void multiply_scaled(const uint8_t* panel, const int8_t* a, size_t lda, int quads, int segments,
                              const int32_t* start, size_t start_stride, const float* scales, float* c, size_t ldc,
                              bool accumulate) {
    scaled(panel, a, lda, quads, segments, start, start_stride, c, ldc, accumulate,
           [=](int, int segment, int column) { return _mm256_loadu_ps(scales + segment * kPanelColumns + column); });
  }

  static void multiply_row_scaled(const uint8_t* panel, const int8_t* a, size_t lda, int quads, int segments,
                                  const int32_t* start, size_t start_stride, const float* scales, size_t scale_stride,
                                  float* c, size_t ldc, bool accumulate) {
    scaled(panel, a, lda, quads, segments, start, start_stride, c, ldc, accumulate,
           [=](int row, int segment, int) { return _mm256_broadcast_ss(scales + row * scale_stride + segment); });
  }

 private:
  // `scale(row, segment, column)`: scales of eight columns.
  template <typename Scale>
  static void scaled(const uint8_t* panel, const int8_t* a, size_t lda, int quads, int segments, const int32_t* start,
                     size_t start_stride, float* c, size_t ldc, bool accumulate, const Scale& scale) {
    if (!accumulate)
      for (int r = 0; r < kRows; ++r) std::memset(c + r * ldc, 0, kPanelColumns * sizeof(float));
    if (quads > Kernel::kMostQuads)
      return long_scaled(panel, a, lda, quads, segments, start, start_stride, c, ldc, scale);
    const int at_once = Kernel::kMostQuads / std::max(quads, 1);
    for (int first = 0; first < segments; first += at_once) {
      const int last = std::min(first + at_once, segments);
      const Kernel kernel(a + size_t(first) * quads * kQuad, lda, (last - first) * quads);
      for (int column = 0; column < kPanelColumns; column += kColumns) {
        const uint8_t* own = panel + size_t(first) * quads * kQuadBytes + kQuad * column;
        for (int segment = first; segment < last; ++segment, own += size_t(quads) * kQuadBytes) {
          __m256i sums[kRows][kRegisters];
          for (int r = 0; r < kRows; ++r)
            for (int i = 0; i < kRegisters; ++i) sums[r][i] = _mm256_set1_epi32(start[r * start_stride + segment]);
          kernel.add(own, (segment - first) * quads, quads, sums);
          for (int r = 0; r < kRows; ++r)
            for (int i = 0; i < kRegisters; ++i)
              add_times(sums[r][i], scale(r, segment, column + 8 * i), c + r * ldc + column + 8 * i);
        }
      }
    }
  }

  // For segments longer than the rows that can be prepared at once.
  template <typename Scale>
  static void long_scaled(const uint8_t* panel, const int8_t* a, size_t lda, int quads, int segments,
                          const int32_t* start, size_t start_stride, float* c, size_t ldc, const Scale& scale) {
    for (int segment = 0; segment < segments; ++segment) {
      int32_t sums[kRows][kPanelColumns];
      for (int r = 0; r < kRows; ++r)
        for (int i = 0; i < kPanelColumns; ++i) sums[r][i] = start[r * start_stride + segment];
      multiply(panel + size_t(segment) * quads * kQuadBytes, a + size_t(segment) * quads * kQuad, lda, quads, sums[0],
               kPanelColumns, true);
      for (int r = 0; r < kRows; ++r)
        for (int column = 0; column < kPanelColumns; column += 8)
          add_times(load(&sums[r][column]), scale(r, segment, column), c + r * ldc + column);
    }
  }

  static void add_times(__m256i sum, __m256 scale, float* c) {
    _mm256_storeu_ps(c, _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scale, _mm256_loadu_ps(c)));
  }
};

// 8 columns by 16 positions, column 4 l + j in lane l of z[j], to quads.
inline void store_quads(const __m256i z[4], uint8_t* panel) {
  const __m256i low01 = _mm256_unpacklo_epi32(z[0], z[1]), high01 = _mm256_unpackhi_epi32(z[0], z[1]);
  const __m256i low23 = _mm256_unpacklo_epi32(z[2], z[3]), high23 = _mm256_unpackhi_epi32(z[2], z[3]);
  store(panel, _mm256_unpacklo_epi64(low01, low23));
  store(panel + kQuadBytes, _mm256_unpackhi_epi64(low01, low23));
  store(panel + 2 * kQuadBytes, _mm256_unpacklo_epi64(high01, high23));
  store(panel + 3 * kQuadBytes, _mm256_unpackhi_epi64(high01, high23));
}

// 16 bytes of column j and of column j + 4.
inline __m256i load_lanes(const uint8_t* const* columns, int j, size_t at) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(load_half(columns[j] + at)), load_half(columns[j + 4] + at), 1);
}

// `tables` is that of the first of the eight columns; own_tables: 64 bytes further for each j, 1024 for each stretch.
template <bool own_tables>
inline void expand_eight(const uint8_t* const* eight, int length, const uint8_t* tables, int stretch, uint8_t* panel) {
  const __m256i mask = _mm256_set1_epi8(15);
  const __m256i shared = _mm256_broadcastsi128_si256(load_half(tables));
  int left = stretch;  // positions left in this stretch
  const auto next = [&] {
    left -= 16;
    if (left == 0) {
      tables += 1024;
      left = stretch;
    }
  };
  for (int k = 0; k < length; k += 32) {
    __m256i first[4], second[4];
    for (int j = 0; j < 4; ++j) {
      const __m256i codes = load_lanes(eight, j, size_t(k) / 2);
      const __m256i low = _mm256_and_si256(codes, mask);
      const __m256i high = _mm256_and_si256(_mm256_srli_epi16(codes, 4), mask);
      first[j] = _mm256_unpacklo_epi8(low, high);
      second[j] = _mm256_unpackhi_epi8(low, high);
    }
    for (int j = 0; j < 4; ++j) first[j] = _mm256_shuffle_epi8(own_tables ? load(tables + 64 * j) : shared, first[j]);
    if (own_tables) next();
    for (int j = 0; j < 4; ++j) second[j] = _mm256_shuffle_epi8(own_tables ? load(tables + 64 * j) : shared, second[j]);
    if (own_tables) next();
    uint8_t* const out = panel + size_t(k) * kPanelColumns;
    store_quads(first, out);
    store_quads(second, out + 4 * kQuadBytes);
  }
}

inline void expand_nibbles(const uint8_t* const* columns, int length, const uint8_t* tables, int stretch,
                           uint8_t* panel) {
  for (int first = 0; first < kPanelColumns; first += 8) {
    if (stretch)
      expand_eight<true>(columns + first, length, tables + table_place(first), stretch, panel + kQuad * first);
    else
      expand_eight<false>(columns + first, length, tables, 0, panel + kQuad * first);
  }
}

inline void expand_bytes(const uint8_t* const* columns, int length, const uint8_t* add, uint8_t* panel) {
  for (int first = 0; first < kPanelColumns; first += 8) {
    const uint8_t* const* eight = columns + first;
    __m256i offsets[4];
    for (int j = 0; j < 4; ++j)
      offsets[j] = _mm256_set_m128i(_mm_set1_epi8(char(add[first + j + 4])), _mm_set1_epi8(char(add[first + j])));
    for (int k = 0; k < length; k += 16) {
      __m256i z[4];
      for (int j = 0; j < 4; ++j) z[j] = _mm256_add_epi8(load_lanes(eight, j, size_t(k)), offsets[j]);
      store_quads(z, panel + size_t(k) * kPanelColumns + kQuad * first);
    }
  }
}

template <int offset>
inline void interleave(const int8_t* const* rows, int quads, uint8_t* panel) {
  const __m256i add = _mm256_set1_epi8(char(offset));
  for (int q = 0; q < quads; ++q, rows += kQuad, panel += kQuadBytes) {
    for (int half = 0; half < 2; ++half) {
      __m256i r[4];
      for (int i = 0; i < 4; ++i) r[i] = _mm256_add_epi8(load(rows[i] + 32 * half), add);
      const __m256i low01 = _mm256_unpacklo_epi8(r[0], r[1]), high01 = _mm256_unpackhi_epi8(r[0], r[1]);
      const __m256i low23 = _mm256_unpacklo_epi8(r[2], r[3]), high23 = _mm256_unpackhi_epi8(r[2], r[3]);
      // Lane l of each: pixels 16 l + 0..3, 4..7, 8..11, 12..15.
      const __m256i a = _mm256_unpacklo_epi16(low01, low23), b = _mm256_unpackhi_epi16(low01, low23);
      const __m256i c = _mm256_unpacklo_epi16(high01, high23), d = _mm256_unpackhi_epi16(high01, high23);
      uint8_t* const out = panel + 128 * half;
      store(out, _mm256_permute2x128_si256(a, b, 0x20));
      store(out + 32, _mm256_permute2x128_si256(c, d, 0x20));
      store(out + 64, _mm256_permute2x128_si256(a, b, 0x31));
      store(out + 96, _mm256_permute2x128_si256(c, d, 0x31));
    }
  }
}

}  // namespace avx2
}  // namespace
}  // namespace compress
