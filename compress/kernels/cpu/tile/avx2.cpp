// AVX2: 4 rows by 8 columns in 8 registers. Panels and rows are widened to 16 bits, because the product of bytes that
// AVX2 has (vpmaddubsw) saturates its sums.
//
// The additions are inline assembly because GCC 12 copies and spills the sums of the same loop written with intrinsics.
#include "tile/avx2_common.h"

namespace compress {
namespace {

inline __m256i sum(__m256i a, __m256i b) {
  asm("vpaddd %1, %0, %0" : "+x"(a) : "x"(b));
  return a;
}

struct Kernel {
  static constexpr int kRows = 4;
  static constexpr int kRegisters = 1;
  static constexpr int kMostQuads = 128;  // 4 KiB of widened rows

  Kernel(const int8_t* a, size_t lda, int quads) {
    for (int r = 0; r < kRows; ++r) {
      const int8_t* const row = a + r * lda;
      int16_t* const out = rows[r];
      const int count = quads * kQuad;
      int i = 0;
      for (; i + 16 <= count; i += 16) avx2::store(out + i, _mm256_cvtepi8_epi16(avx2::load_half(row + i)));
      for (; i < count; ++i) out[i] = row[i];
    }
  }

  // Sums of pairs of k: four columns a register, joined at the end.
  void add(const uint8_t* panel, int first, int quads, __m256i (&sums)[kRows][kRegisters]) const {
    __m256i left[kRows], right[kRows];
    for (int r = 0; r < kRows; ++r) left[r] = right[r] = _mm256_setzero_si256();
    const int16_t* k = rows[0] + first * kQuad;
    for (int q = 0; q < quads; ++q, panel += kQuadBytes, k += kQuad) {
      const __m256i four = _mm256_cvtepi8_epi16(avx2::load_half(panel));
      const __m256i next_four = _mm256_cvtepi8_epi16(avx2::load_half(panel + 16));
      for (int r = 0; r < kRows; ++r) {
        int64_t quad;
        std::memcpy(&quad, k + r * kMostQuads * kQuad, sizeof quad);
        const __m256i row = _mm256_set1_epi64x(quad);
        left[r] = sum(left[r], _mm256_madd_epi16(four, row));
        right[r] = sum(right[r], _mm256_madd_epi16(next_four, row));
      }
    }
    for (int r = 0; r < kRows; ++r) {
      const __m256i joined = _mm256_hadd_epi32(left[r], right[r]);  // columns 0 1 4 5 2 3 6 7
      sums[r][0] = _mm256_add_epi32(sums[r][0], _mm256_permute4x64_epi64(joined, 0xd8));
    }
  }

  alignas(32) int16_t rows[kRows][kMostQuads * kQuad];
};

using Products = avx2::Products<Kernel>;

}  // namespace

extern const Tile avx2_tile = {
    "avx2",
    Kernel::kRows,
    0,
    Products::multiply,
    Products::multiply_scaled,
    Products::multiply_row_scaled,
    portable::largest,
    portable::encode,
    avx2::expand_nibbles,
    avx2::expand_bytes,
    portable::fold_tables<0>,
    portable::expand_vectors,
    avx2::interleave<0>,
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
