// AVX-VNNI: 6 rows by 16 columns in 12 of 16 registers, unsigned panel bytes times signed rows.
//
// The test compiles this file a second time for AVX512-VL, whose 256-bit products are the same, as `avxvnni_evex_tile`:
// then it runs on CPUs that lack AVX-VNNI.
#include <climits>

#include "tile/avx2_common.h"

#ifndef AVXVNNI_TILE
#define AVXVNNI_TILE avxvnni_tile
#define AVXVNNI_NAME "avxvnni"
#endif

namespace compress {
namespace {

constexpr int kOffset = 128;

// sum + panel * row. Inline assembly because GCC 12 copies and spills the sums of the same loop written with
// intrinsics.
inline __m256i add_products(__m256i sum, __m256i panel, __m256i row) {
#ifdef __AVXVNNI__
  asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(panel), "x"(row));
#else
  asm("vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(panel), "x"(row));
#endif
  return sum;
}

struct Kernel {
  static constexpr int kRows = 6;
  static constexpr int kRegisters = 2;
  static constexpr int kMostQuads = INT_MAX;

  Kernel(const int8_t* a, size_t lda, int) : a_(a), lda_(lda) {}

  void add(const uint8_t* panel, int first, int quads, __m256i (&sums)[kRows][kRegisters]) const {
    const int8_t* k = a_ + size_t(first) * kQuad;
    for (int q = 0; q < quads; ++q, panel += kQuadBytes, k += kQuad) {
      const __m256i eight = avx2::load(panel), next_eight = avx2::load(panel + 32);
      for (int r = 0; r < kRows; ++r) {
        int32_t quad;
        std::memcpy(&quad, k + r * lda_, sizeof quad);
        const __m256i row = _mm256_set1_epi32(quad);
        sums[r][0] = add_products(sums[r][0], eight, row);
        sums[r][1] = add_products(sums[r][1], next_eight, row);
      }
    }
  }

  const int8_t* const a_;
  const size_t lda_;
};

using Products = avx2::Products<Kernel>;

}  // namespace

extern const Tile AVXVNNI_TILE = {
    AVXVNNI_NAME,
    Kernel::kRows,
    kOffset,
    Products::multiply,
    Products::multiply_scaled,
    Products::multiply_row_scaled,
    portable::largest,
    portable::encode,
    avx2::expand_nibbles,
    avx2::expand_bytes,
    portable::fold_tables<kOffset>,
    portable::expand_vectors,
    avx2::interleave<kOffset>,
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
