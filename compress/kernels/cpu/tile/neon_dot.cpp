// ARM with the dot product of signed bytes (ARMv8.2): 4 rows by 16 columns in 16 of 32 registers.
#include <arm_neon.h>

#include "tile/portable.h"

namespace compress {
namespace {

constexpr int kRows = 4;
constexpr int kRegisters = 4;  // of four columns, in one pass over the panel
constexpr int kColumns = 4 * kRegisters;

// One quad of four rows, in lane `lane` of their registers.
template <int lane>
inline void add_quad(const uint8_t* panel, const int8x16_t (&rows)[kRows], int32x4_t (&sums)[kRows][kRegisters]) {
  for (int i = 0; i < kRegisters; ++i) {
    const int8x16_t four = vreinterpretq_s8_u8(vld1q_u8(panel + 16 * i));
    for (int r = 0; r < kRows; ++r) sums[r][i] = vdotq_laneq_s32(sums[r][i], four, rows[r], lane);
  }
}

inline void add_products(const uint8_t* panel, const int8_t* a, size_t lda, int quads,
                         int32x4_t (&sums)[kRows][kRegisters]) {
  int8x16_t rows[kRows];
  int q = 0;
  for (; q + 4 <= quads; q += 4, panel += 4 * kQuadBytes, a += 4 * kQuad) {
    for (int r = 0; r < kRows; ++r) rows[r] = vld1q_s8(a + r * lda);
    add_quad<0>(panel, rows, sums);
    add_quad<1>(panel + kQuadBytes, rows, sums);
    add_quad<2>(panel + 2 * kQuadBytes, rows, sums);
    add_quad<3>(panel + 3 * kQuadBytes, rows, sums);
  }
  for (; q < quads; ++q, panel += kQuadBytes, a += kQuad) {
    for (int r = 0; r < kRows; ++r) {
      int32_t quad;
      std::memcpy(&quad, a + r * lda, sizeof quad);
      rows[r] = vreinterpretq_s8_s32(vdupq_n_s32(quad));
    }
    add_quad<0>(panel, rows, sums);
  }
}

void multiply(const uint8_t* panel, const int8_t* a, size_t lda, int quads, int32_t* c, size_t ldc, bool accumulate) {
  for (int column = 0; column < kPanelColumns; column += kColumns) {
    int32x4_t sums[kRows][kRegisters];
    for (int r = 0; r < kRows; ++r)
      for (int i = 0; i < kRegisters; ++i)
        sums[r][i] = accumulate ? vld1q_s32(c + r * ldc + column + 4 * i) : vdupq_n_s32(0);
    add_products(panel + kQuad * column, a, lda, quads, sums);
    for (int r = 0; r < kRows; ++r)
      for (int i = 0; i < kRegisters; ++i) vst1q_s32(c + r * ldc + column + 4 * i, sums[r][i]);
  }
}

// `scale(row, segment, column)`: scales of four columns.
template <typename Scale>
inline void scaled(const uint8_t* panel, const int8_t* a, size_t lda, int quads, int segments, const int32_t* start,
                   size_t start_stride, float* c, size_t ldc, bool accumulate, const Scale& scale) {
  if (!accumulate)
    for (int r = 0; r < kRows; ++r) std::memset(c + r * ldc, 0, kPanelColumns * sizeof(float));
  for (int column = 0; column < kPanelColumns; column += kColumns) {
    for (int segment = 0; segment < segments; ++segment) {
      const size_t first = size_t(segment) * quads;
      int32x4_t sums[kRows][kRegisters];
      for (int r = 0; r < kRows; ++r)
        for (int i = 0; i < kRegisters; ++i) sums[r][i] = vdupq_n_s32(start[r * start_stride + segment]);
      add_products(panel + first * kQuadBytes + kQuad * column, a + first * kQuad, lda, quads, sums);
      for (int r = 0; r < kRows; ++r)
        for (int i = 0; i < kRegisters; ++i) {
          float* const out = c + r * ldc + column + 4 * i;
          vst1q_f32(out, vfmaq_f32(vld1q_f32(out), vcvtq_f32_s32(sums[r][i]), scale(r, segment, column + 4 * i)));
        }
    }
  }
}

void multiply_scaled(const uint8_t* panel, const int8_t* a, size_t lda, int quads, int segments, const int32_t* start,
                     size_t start_stride, const float* scales, float* c, size_t ldc, bool accumulate) {
  scaled(panel, a, lda, quads, segments, start, start_stride, c, ldc, accumulate,
         [=](int, int segment, int column) { return vld1q_f32(scales + segment * kPanelColumns + column); });
}

void multiply_row_scaled(const uint8_t* panel, const int8_t* a, size_t lda, int quads, int segments,
                         const int32_t* start, size_t start_stride, const float* scales, size_t scale_stride, float* c,
                         size_t ldc, bool accumulate) {
  scaled(panel, a, lda, quads, segments, start, start_stride, c, ldc, accumulate,
         [=](int row, int segment, int) { return vdupq_n_f32(scales[row * scale_stride + segment]); });
}

// 4 columns by 16 positions, to quads: a transposition of 32-bit elements.
inline void store_quads(const uint8x16_t z[4], uint8_t* panel) {
  const uint32x4_t even01 = vtrn1q_u32(vreinterpretq_u32_u8(z[0]), vreinterpretq_u32_u8(z[1]));
  const uint32x4_t odd01 = vtrn2q_u32(vreinterpretq_u32_u8(z[0]), vreinterpretq_u32_u8(z[1]));
  const uint32x4_t even23 = vtrn1q_u32(vreinterpretq_u32_u8(z[2]), vreinterpretq_u32_u8(z[3]));
  const uint32x4_t odd23 = vtrn2q_u32(vreinterpretq_u32_u8(z[2]), vreinterpretq_u32_u8(z[3]));
  const auto pairs = [](uint32x4_t v) { return vreinterpretq_u64_u32(v); };
  const auto put = [&](int quad, uint64x2_t v) { vst1q_u8(panel + quad * kQuadBytes, vreinterpretq_u8_u64(v)); };
  put(0, vtrn1q_u64(pairs(even01), pairs(even23)));
  put(1, vtrn1q_u64(pairs(odd01), pairs(odd23)));
  put(2, vtrn2q_u64(pairs(even01), pairs(even23)));
  put(3, vtrn2q_u64(pairs(odd01), pairs(odd23)));
}

void expand_nibbles(const uint8_t* const* columns, int length, const uint8_t* tables, int stretch, uint8_t* panel) {
  const uint8x16_t mask = vdupq_n_u8(15);
  for (int k = 0; k < length; k += 32) {
    const size_t first_table = stretch ? size_t(k / stretch) * 1024 : 0;
    const size_t second_table = stretch ? size_t((k + 16) / stretch) * 1024 : 0;
    for (int column = 0; column < kPanelColumns; column += 4) {
      uint8x16_t first[4], second[4];
      for (int j = 0; j < 4; ++j) {
        const uint8x16_t codes = vld1q_u8(columns[column + j] + k / 2);
        const uint8x16_t low = vandq_u8(codes, mask), high = vshrq_n_u8(codes, 4);
        const uint8_t* const own = tables + (stretch ? table_place(column + j) : 0);
        first[j] = vqtbl1q_u8(vld1q_u8(own + first_table), vzip1q_u8(low, high));
        second[j] = vqtbl1q_u8(vld1q_u8(own + second_table), vzip2q_u8(low, high));
      }
      uint8_t* const out = panel + size_t(k) * kPanelColumns + kQuad * column;
      store_quads(first, out);
      store_quads(second, out + 4 * kQuadBytes);
    }
  }
}

void expand_bytes(const uint8_t* const* columns, int length, const uint8_t* add, uint8_t* panel) {
  for (int k = 0; k < length; k += 16) {
    for (int column = 0; column < kPanelColumns; column += 4) {
      uint8x16_t z[4];
      for (int j = 0; j < 4; ++j) z[j] = vaddq_u8(vld1q_u8(columns[column + j] + k), vdupq_n_u8(add[column + j]));
      store_quads(z, panel + size_t(k) * kPanelColumns + kQuad * column);
    }
  }
}

void interleave(const int8_t* const* rows, int quads, uint8_t* panel) {
  for (int q = 0; q < quads; ++q, rows += kQuad, panel += kQuadBytes) {
    for (int column = 0; column < kPanelColumns; column += 16) {
      const int8x16x4_t four = {{vld1q_s8(rows[0] + column), vld1q_s8(rows[1] + column), vld1q_s8(rows[2] + column),
                                 vld1q_s8(rows[3] + column)}};
      vst4q_s8(reinterpret_cast<int8_t*>(panel) + kQuad * column, four);
    }
  }
}

}  // namespace

extern const Tile neon_dot_tile = {
    "neon_dot",
    kRows,
    0,
    multiply,
    multiply_scaled,
    multiply_row_scaled,
    portable::largest,
    portable::encode,
    expand_nibbles,
    expand_bytes,
    portable::fold_tables<0>,
    portable::expand_vectors,
    interleave,
    portable::finish,
    portable::finish_float,
    portable::accumulate,
    portable::add_scaled,
    nullptr,  // few rows go the way of many
    nullptr,
    nullptr,
    nullptr,
};

}  // namespace compress
