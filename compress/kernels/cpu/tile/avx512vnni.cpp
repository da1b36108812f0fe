// AVX-512 with VNNI: 6 rows by 64 columns in 24 registers, unsigned panel bytes times signed rows.
//
// The inner loops are inline assembly with fixed registers: GCC 12 spills the accumulators of the same loop written
// with intrinsics, which halves its speed.
#include <immintrin.h>

#include <cstring>
#include <initializer_list>
#include <type_traits>

#include "tile/portable.h"

namespace compress {
namespace {

constexpr int kRows = 6;
constexpr int kOffset = 128;

// clang-format off
#define ALL_ZMM \
  "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7", "zmm8", "zmm9", "zmm10", "zmm11", "zmm12", "zmm13", \
  "zmm14", "zmm15", "zmm16", "zmm17", "zmm18", "zmm19", "zmm20", "zmm21", "zmm22", "zmm23", "zmm24", "zmm25", "zmm26", \
  "zmm27", "zmm28", "zmm29", "zmm30", "zmm31"

// One quad: four panel registers, then for each row one broadcast and four products.
// %[a] + row * lda: rows 0, 1, 2, 4 by scaled index, 3 and 5 by 3 * lda and 5 * lda.
#define ROW_PRODUCTS(load, address, x, c0, c1, c2, c3) \
  load " " address ", %%" x "\n" \
  "vpdpbusd %%" x ", %%zmm0, %%" c0 "\n" \
  "vpdpbusd %%" x ", %%zmm1, %%" c1 "\n" \
  "vpdpbusd %%" x ", %%zmm2, %%" c2 "\n" \
  "vpdpbusd %%" x ", %%zmm3, %%" c3 "\n"

#define QUAD(p, d) \
  "vmovdqa64 " p "+0(%[panel]), %%zmm0\n" \
  "vmovdqa64 " p "+64(%[panel]), %%zmm1\n" \
  "vmovdqa64 " p "+128(%[panel]), %%zmm2\n" \
  "vmovdqa64 " p "+192(%[panel]), %%zmm3\n" \
  ROW_PRODUCTS("vpbroadcastd", d "(%[a])", "zmm4", "zmm8", "zmm9", "zmm10", "zmm11") \
  ROW_PRODUCTS("vpbroadcastd", d "(%[a],%[lda])", "zmm5", "zmm12", "zmm13", "zmm14", "zmm15") \
  ROW_PRODUCTS("vpbroadcastd", d "(%[a],%[lda],2)", "zmm6", "zmm16", "zmm17", "zmm18", "zmm19") \
  ROW_PRODUCTS("vpbroadcastd", d "(%[a],%[lda3])", "zmm7", "zmm20", "zmm21", "zmm22", "zmm23") \
  ROW_PRODUCTS("vpbroadcastd", d "(%[a],%[lda],4)", "zmm4", "zmm24", "zmm25", "zmm26", "zmm27") \
  ROW_PRODUCTS("vpbroadcastd", d "(%[a],%[lda5])", "zmm5", "zmm28", "zmm29", "zmm30", "zmm31")

void multiply(const uint8_t* panel, const int8_t* a, size_t lda, int quads, int32_t* c, size_t ldc, bool accumulate) {
  size_t fours = size_t(quads) / 4, ones = size_t(quads) % 4;
  asm volatile(
      "test %k[accumulate], %k[accumulate]\n"
      "jz 1f\n"
      "mov %[c], %%rax\n"
      ".irp r,8,12,16,20,24,28\n"
      "vmovdqu32 (%%rax), %%zmm\\r\n"
      "add %[ldc], %%rax\n"
      ".endr\n"
      "lea 64(%[c]), %%rax\n"
      ".irp r,9,13,17,21,25,29\n"
      "vmovdqu32 (%%rax), %%zmm\\r\n"
      "add %[ldc], %%rax\n"
      ".endr\n"
      "lea 128(%[c]), %%rax\n"
      ".irp r,10,14,18,22,26,30\n"
      "vmovdqu32 (%%rax), %%zmm\\r\n"
      "add %[ldc], %%rax\n"
      ".endr\n"
      "lea 192(%[c]), %%rax\n"
      ".irp r,11,15,19,23,27,31\n"
      "vmovdqu32 (%%rax), %%zmm\\r\n"
      "add %[ldc], %%rax\n"
      ".endr\n"
      "jmp 2f\n"
      "1:\n"
      ".irp r,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
      "vpxord %%zmm\\r, %%zmm\\r, %%zmm\\r\n"
      ".endr\n"
      "2:\n"
      "test %[fours], %[fours]\n"
      "jz 4f\n"
      ".p2align 5\n"
      "3:\n"
      QUAD("0", "0") QUAD("256", "4") QUAD("512", "8") QUAD("768", "12")
      "add $1024, %[panel]\n"
      "add $16, %[a]\n"
      "dec %[fours]\n"
      "jnz 3b\n"
      "4:\n"
      "test %[ones], %[ones]\n"
      "jz 6f\n"
      "5:\n"
      QUAD("0", "0")
      "add $256, %[panel]\n"
      "add $4, %[a]\n"
      "dec %[ones]\n"
      "jnz 5b\n"
      "6:\n"
      "mov %[c], %%rax\n"
      ".irp r,8,12,16,20,24,28\n"
      "vmovdqu32 %%zmm\\r, (%%rax)\n"
      "add %[ldc], %%rax\n"
      ".endr\n"
      "lea 64(%[c]), %%rax\n"
      ".irp r,9,13,17,21,25,29\n"
      "vmovdqu32 %%zmm\\r, (%%rax)\n"
      "add %[ldc], %%rax\n"
      ".endr\n"
      "lea 128(%[c]), %%rax\n"
      ".irp r,10,14,18,22,26,30\n"
      "vmovdqu32 %%zmm\\r, (%%rax)\n"
      "add %[ldc], %%rax\n"
      ".endr\n"
      "lea 192(%[c]), %%rax\n"
      ".irp r,11,15,19,23,27,31\n"
      "vmovdqu32 %%zmm\\r, (%%rax)\n"
      "add %[ldc], %%rax\n"
      ".endr\n"
      : [panel] "+&r"(panel), [a] "+&r"(a), [fours] "+&r"(fours), [ones] "+&r"(ones)
      : [lda] "r"(lda), [lda3] "r"(3 * lda), [lda5] "r"(5 * lda), [c] "r"(c), [ldc] "r"(4 * ldc),
        [accumulate] "r"(size_t(accumulate))
      : "rax", "cc", "memory", ALL_ZMM);
}

// Scaled products take 32 columns at a time: 12 integer and 12 floating-point accumulators.
// Integer: row r in zmm8+2r, zmm9+2r; float: zmm20+2r, zmm21+2r.
#define PAIR_PRODUCTS(address, x, c0, c1) \
  "vpbroadcastd " address ", %%" x "\n" \
  "vpdpbusd %%" x ", %%zmm0, %%" c0 "\n" \
  "vpdpbusd %%" x ", %%zmm1, %%" c1 "\n"

#define PAIR_QUAD(p, d) \
  "vmovdqa64 " p "+0(%[panel]), %%zmm0\n" \
  "vmovdqa64 " p "+64(%[panel]), %%zmm1\n" \
  PAIR_PRODUCTS(d "(%[a])", "zmm2", "zmm8", "zmm9") \
  PAIR_PRODUCTS(d "(%[a],%[lda])", "zmm3", "zmm10", "zmm11") \
  PAIR_PRODUCTS(d "(%[a],%[lda],2)", "zmm4", "zmm12", "zmm13") \
  PAIR_PRODUCTS(d "(%[a],%[lda3])", "zmm5", "zmm14", "zmm15") \
  PAIR_PRODUCTS(d "(%[a],%[lda],4)", "zmm2", "zmm16", "zmm17") \
  PAIR_PRODUCTS(d "(%[a],%[lda5])", "zmm3", "zmm18", "zmm19")

#define LOAD_OR_CLEAR_FLOATS \
      "cmpb $0, %[accumulate]\n" \
      "jz 1f\n" \
      "mov %[c], %%rax\n" \
      ".irp r,20,22,24,26,28,30\n" \
      "vmovups (%%rax), %%zmm\\r\n" \
      "add %[pitch], %%rax\n" \
      ".endr\n" \
      "lea 64(%[c]), %%rax\n" \
      ".irp r,21,23,25,27,29,31\n" \
      "vmovups (%%rax), %%zmm\\r\n" \
      "add %[pitch], %%rax\n" \
      ".endr\n" \
      "jmp 2f\n" \
      "1:\n" \
      ".irp r,20,21,22,23,24,25,26,27,28,29,30,31\n" \
      "vpxord %%zmm\\r, %%zmm\\r, %%zmm\\r\n" \
      ".endr\n" \
      "2:\n"

#define STORE_FLOATS \
      "mov %[c], %%rax\n" \
      ".irp r,20,22,24,26,28,30\n" \
      "vmovups %%zmm\\r, (%%rax)\n" \
      "add %[pitch], %%rax\n" \
      ".endr\n" \
      "lea 64(%[c]), %%rax\n" \
      ".irp r,21,23,25,27,29,31\n" \
      "vmovups %%zmm\\r, (%%rax)\n" \
      "add %[pitch], %%rax\n" \
      ".endr\n"

#define SEGMENT_PRODUCTS \
      "mov %[pairs], %%rax\n" \
      ".p2align 5\n" \
      "4:\n" \
      PAIR_QUAD("0", "0") PAIR_QUAD("256", "4") \
      "add $512, %[panel]\n" \
      "add $8, %[a]\n" \
      "dec %%rax\n" \
      "jnz 4b\n"

#define SUMS_TO_FLOATS \
      ".irp r,8,9,10,11,12,13,14,15,16,17,18,19\n" \
      "vcvtdq2ps %%zmm\\r, %%zmm\\r\n" \
      ".endr\n"

// The integer sums of both columns of row r begin with start[r]; %[start] steps through the rows and back.
#define LOAD_STARTS \
      "mov %[start], %%rax\n" \
      ".irp r,8,10,12,14,16,18\n" \
      "vpbroadcastd (%%rax), %%zmm\\r\n" \
      "add %[start_pitch], %%rax\n" \
      ".endr\n" \
      "vmovdqa64 %%zmm8, %%zmm9\n" \
      "vmovdqa64 %%zmm10, %%zmm11\n" \
      "vmovdqa64 %%zmm12, %%zmm13\n" \
      "vmovdqa64 %%zmm14, %%zmm15\n" \
      "vmovdqa64 %%zmm16, %%zmm17\n" \
      "vmovdqa64 %%zmm18, %%zmm19\n"

void multiply_scaled(const uint8_t* panel, const int8_t* a, size_t lda, int quads, int segments, const int32_t* start,
                     size_t start_stride, const float* scales, float* c, size_t ldc, bool accumulate) {
  const size_t start_pitch = 4 * start_stride, pitch = 4 * ldc, pairs = size_t(quads) / 2;
  for (int half = 0; half < 2; ++half) {
    const uint8_t* p = panel + 128 * half;
    const int8_t* rows = a;
    const float* s = scales + 32 * half;
    const int32_t* first = start;
    size_t left = size_t(segments);
    asm volatile(
        LOAD_OR_CLEAR_FLOATS
        "3:\n"
        LOAD_STARTS
        SEGMENT_PRODUCTS
        SUMS_TO_FLOATS
        "vmovups (%[scales]), %%zmm6\n"
        "vmovups 64(%[scales]), %%zmm7\n"
        "vfmadd231ps %%zmm6, %%zmm8, %%zmm20\n"
        "vfmadd231ps %%zmm7, %%zmm9, %%zmm21\n"
        "vfmadd231ps %%zmm6, %%zmm10, %%zmm22\n"
        "vfmadd231ps %%zmm7, %%zmm11, %%zmm23\n"
        "vfmadd231ps %%zmm6, %%zmm12, %%zmm24\n"
        "vfmadd231ps %%zmm7, %%zmm13, %%zmm25\n"
        "vfmadd231ps %%zmm6, %%zmm14, %%zmm26\n"
        "vfmadd231ps %%zmm7, %%zmm15, %%zmm27\n"
        "vfmadd231ps %%zmm6, %%zmm16, %%zmm28\n"
        "vfmadd231ps %%zmm7, %%zmm17, %%zmm29\n"
        "vfmadd231ps %%zmm6, %%zmm18, %%zmm30\n"
        "vfmadd231ps %%zmm7, %%zmm19, %%zmm31\n"
        "add $256, %[scales]\n"
        "add $4, %[start]\n"
        "dec %[left]\n"
        "jnz 3b\n"
        STORE_FLOATS
        : [panel] "+&r"(p), [a] "+&r"(rows), [scales] "+&r"(s), [start] "+&r"(first), [left] "+&r"(left)
        : [lda] "r"(lda), [lda3] "r"(3 * lda), [lda5] "r"(5 * lda), [pairs] "m"(pairs), [start_pitch] "m"(start_pitch),
          [c] "r"(c + 32 * half), [pitch] "m"(pitch), [accumulate] "m"(accumulate)
        : "rax", "cc", "memory", ALL_ZMM);
  }
}

#define SCALE_ROW(s0, s1, f0, f1) \
        "vbroadcastss (%%rax), %%zmm6\n" \
        "add %[scale_pitch], %%rax\n" \
        "vfmadd231ps %%zmm6, %%" s0 ", %%" f0 "\n" \
        "vfmadd231ps %%zmm6, %%" s1 ", %%" f1 "\n"

void multiply_row_scaled(const uint8_t* panel, const int8_t* a, size_t lda, int quads, int segments,
                         const int32_t* start, size_t start_stride, const float* scales, size_t scale_stride, float* c,
                         size_t ldc, bool accumulate) {
  const size_t start_pitch = 4 * start_stride, scale_pitch = 4 * scale_stride;
  const size_t pitch = 4 * ldc, pairs = size_t(quads) / 2;
  for (int half = 0; half < 2; ++half) {
    const uint8_t* p = panel + 128 * half;
    const int8_t* rows = a;
    const float* s = scales;
    const int32_t* first = start;
    size_t left = size_t(segments);
    asm volatile(
        LOAD_OR_CLEAR_FLOATS
        "3:\n"
        LOAD_STARTS
        SEGMENT_PRODUCTS
        SUMS_TO_FLOATS
        "mov %[scales], %%rax\n"
        SCALE_ROW("zmm8", "zmm9", "zmm20", "zmm21")
        SCALE_ROW("zmm10", "zmm11", "zmm22", "zmm23")
        SCALE_ROW("zmm12", "zmm13", "zmm24", "zmm25")
        SCALE_ROW("zmm14", "zmm15", "zmm26", "zmm27")
        SCALE_ROW("zmm16", "zmm17", "zmm28", "zmm29")
        SCALE_ROW("zmm18", "zmm19", "zmm30", "zmm31")
        "add $4, %[scales]\n"
        "add $4, %[start]\n"
        "dec %[left]\n"
        "jnz 3b\n"
        STORE_FLOATS
        : [panel] "+&r"(p), [a] "+&r"(rows), [scales] "+&r"(s), [start] "+&r"(first), [left] "+&r"(left)
        : [lda] "r"(lda), [lda3] "r"(3 * lda), [lda5] "r"(5 * lda), [pairs] "m"(pairs), [start_pitch] "m"(start_pitch),
          [scale_pitch] "m"(scale_pitch), [c] "r"(c + 32 * half), [pitch] "m"(pitch), [accumulate] "m"(accumulate)
        : "rax", "cc", "memory", ALL_ZMM);
  }
}
// clang-format on

#undef ROW_PRODUCTS
#undef QUAD
#undef PAIR_PRODUCTS
#undef PAIR_QUAD
#undef LOAD_OR_CLEAR_FLOATS
#undef STORE_FLOATS
#undef SEGMENT_PRODUCTS
#undef SUMS_TO_FLOATS
#undef LOAD_STARTS
#undef SCALE_ROW

// 16 columns by 16 positions, column 4 l + j in lane l of z[j], to quads: out[q] holds the columns in order.
inline void store_quads(const __m512i z[4], uint8_t* panel) {
  const __m512i low01 = _mm512_unpacklo_epi32(z[0], z[1]), high01 = _mm512_unpackhi_epi32(z[0], z[1]);
  const __m512i low23 = _mm512_unpacklo_epi32(z[2], z[3]), high23 = _mm512_unpackhi_epi32(z[2], z[3]);
  _mm512_store_si512(panel, _mm512_unpacklo_epi64(low01, low23));
  _mm512_store_si512(panel + kQuadBytes, _mm512_unpackhi_epi64(low01, low23));
  _mm512_store_si512(panel + 2 * kQuadBytes, _mm512_unpacklo_epi64(high01, high23));
  _mm512_store_si512(panel + 3 * kQuadBytes, _mm512_unpackhi_epi64(high01, high23));
}

// 16 bytes of each of the columns j, j + 4, j + 8, j + 12.
inline __m512i load_lanes(const uint8_t* const* columns, int j, size_t at) {
  const auto load = [&](int lane) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(columns[4 * lane + j] + at));
  };
  __m512i z = _mm512_castsi128_si512(load(0));
  z = _mm512_mask_broadcast_i32x4(z, 0x00f0, load(1));
  z = _mm512_mask_broadcast_i32x4(z, 0x0f00, load(2));
  return _mm512_mask_broadcast_i32x4(z, 0xf000, load(3));
}

void expand_nibbles(const uint8_t* const* columns, int length, const uint8_t* tables, int stretch, uint8_t* panel) {
  const __m512i mask = _mm512_set1_epi8(15);
  __m512i table = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(tables)));
  for (int group = 0; group < 4; ++group) {
    const uint8_t* const* sixteen = columns + 16 * group;
    for (int k = 0; k < length; k += 32) {
      __m512i first[4], second[4];
      for (int j = 0; j < 4; ++j) {
        const __m512i codes = load_lanes(sixteen, j, size_t(k) / 2);
        const __m512i low = _mm512_and_si512(codes, mask);
        const __m512i high = _mm512_and_si512(_mm512_srli_epi16(codes, 4), mask);
        first[j] = _mm512_unpacklo_epi8(low, high);
        second[j] = _mm512_unpackhi_epi8(low, high);
        if (stretch) {
          const uint8_t* own = tables + group * 256 + j * 64;
          first[j] = _mm512_shuffle_epi8(_mm512_load_si512(own + size_t(k / stretch) * 1024), first[j]);
          second[j] = _mm512_shuffle_epi8(_mm512_load_si512(own + size_t((k + 16) / stretch) * 1024), second[j]);
        } else {
          first[j] = _mm512_shuffle_epi8(table, first[j]);
          second[j] = _mm512_shuffle_epi8(table, second[j]);
        }
      }
      uint8_t* out = panel + size_t(k) * kPanelColumns + group * 64;
      store_quads(first, out);
      store_quads(second, out + 4 * kQuadBytes);
    }
  }
}

void expand_bytes(const uint8_t* const* columns, int length, const uint8_t* add, uint8_t* panel) {
  for (int group = 0; group < 4; ++group) {
    const uint8_t* const* sixteen = columns + 16 * group;
    __m512i offsets[4];
    for (int j = 0; j < 4; ++j) {
      alignas(64) uint8_t bytes[64];
      for (int lane = 0; lane < 4; ++lane) std::memset(bytes + 16 * lane, add[16 * group + 4 * lane + j], 16);
      offsets[j] = _mm512_load_si512(bytes);
    }
    for (int k = 0; k < length; k += 16) {
      __m512i z[4];
      for (int j = 0; j < 4; ++j) z[j] = _mm512_add_epi8(load_lanes(sixteen, j, size_t(k)), offsets[j]);
      store_quads(z, panel + size_t(k) * kPanelColumns + group * 64);
    }
  }
}

void expand_vectors(const uint8_t* const* columns, int quads, const uint32_t* book, uint8_t* panel) {
  for (int group = 0; group < 4; ++group) {
    const uint8_t* const* sixteen = columns + 16 * group;
    uint8_t* out = panel + group * 64;
    int q = 0;
    for (; q + 4 <= quads; q += 4) {
      alignas(64) uint32_t codes[16];  // four codes of each column
      for (int c = 0; c < 16; ++c) std::memcpy(&codes[c], sixteen[c] + q, 4);
      const __m512i all = _mm512_load_si512(codes);
      const __m512i byte = _mm512_set1_epi32(255);
      const __m512i index[4] = {_mm512_and_si512(all, byte), _mm512_and_si512(_mm512_srli_epi32(all, 8), byte),
                                _mm512_and_si512(_mm512_srli_epi32(all, 16), byte), _mm512_srli_epi32(all, 24)};
      for (int i = 0; i < 4; ++i)
        _mm512_store_si512(out + size_t(q + i) * kQuadBytes, _mm512_i32gather_epi32(index[i], book, 4));
    }
    for (; q < quads; ++q)
      for (int c = 0; c < 16; ++c) std::memcpy(out + size_t(q) * kQuadBytes + 4 * c, &book[sixteen[c][q]], 4);
  }
}

void fold_tables(const float* values, const float* factors, int count, uint8_t* const* tables) {
  const __m512 v = _mm512_loadu_ps(values);
  const __m512i offset = _mm512_set1_epi32(kOffset);
  for (int i = 0; i < count; ++i) {
    const __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(v, _mm512_set1_ps(factors[i])));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(tables[i]), _mm512_cvtepi32_epi8(_mm512_add_epi32(rounded, offset)));
  }
}

void interleave(const int8_t* const* rows, int quads, uint8_t* panel) {
  const __m512i offset = _mm512_set1_epi8(char(kOffset));
  for (int q = 0; q < quads; ++q) {
    const int8_t* const* four = rows + 4 * q;
    __m512i r[4];
    for (int i = 0; i < 4; ++i) r[i] = _mm512_add_epi8(_mm512_loadu_si512(four[i]), offset);
    const __m512i low01 = _mm512_unpacklo_epi8(r[0], r[1]), high01 = _mm512_unpackhi_epi8(r[0], r[1]);
    const __m512i low23 = _mm512_unpacklo_epi8(r[2], r[3]), high23 = _mm512_unpackhi_epi8(r[2], r[3]);
    // Lane l of each: pixels 16 l + 0..3, 4..7, 8..11, 12..15.
    const __m512i a = _mm512_unpacklo_epi16(low01, low23), b = _mm512_unpackhi_epi16(low01, low23);
    const __m512i c = _mm512_unpacklo_epi16(high01, high23), d = _mm512_unpackhi_epi16(high01, high23);
    // Output j wants lane j of a, b, c, d in this order: a transposition of 128-bit lanes.
    const __m512i ab0 = _mm512_shuffle_i32x4(a, b, 0x44), ab1 = _mm512_shuffle_i32x4(a, b, 0xee);
    const __m512i cd0 = _mm512_shuffle_i32x4(c, d, 0x44), cd1 = _mm512_shuffle_i32x4(c, d, 0xee);
    uint8_t* out = panel + size_t(q) * kQuadBytes;
    _mm512_store_si512(out, _mm512_shuffle_i32x4(ab0, cd0, 0x88));
    _mm512_store_si512(out + 64, _mm512_shuffle_i32x4(ab0, cd0, 0xdd));
    _mm512_store_si512(out + 128, _mm512_shuffle_i32x4(ab1, cd1, 0x88));
    _mm512_store_si512(out + 192, _mm512_shuffle_i32x4(ab1, cd1, 0xdd));
  }
}

float largest(const float* x, const float* smooth, size_t count) {
  const __m512 magnitude = _mm512_castsi512_ps(_mm512_set1_epi32(0x7fffffff));
  __m512 most[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
  __mmask16 broken = 0;
  const auto take = [&](size_t i, __mmask16 mask, int lane) {
    __m512 value = _mm512_maskz_loadu_ps(mask, x + i);
    if (smooth) value = _mm512_mul_ps(value, _mm512_maskz_loadu_ps(mask, smooth + i));
    broken |= _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    most[lane] = _mm512_max_ps(most[lane], _mm512_and_ps(value, magnitude));
  };
  size_t i = 0;
  for (; i + 64 <= count; i += 64)
    for (int lane = 0; lane < 4; ++lane) take(i + 16 * lane, 0xffff, lane);
  for (; i < count; i += 16) take(i, count - i < 16 ? (1u << (count - i)) - 1 : 0xffff, 0);
  if (broken) return __builtin_nanf("");
  return _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(most[0], most[1]), _mm512_max_ps(most[2], most[3])));
}

void encode(const float* x, const float* smooth, size_t count, size_t padded, const RowCoding& coding, int8_t* codes,
            size_t segment, int32_t* sums) {
  const __m512 scale = _mm512_set1_ps(coding.scale), inverse = _mm512_set1_ps(1.0f / coding.scale);
  const __m512 low = _mm512_set1_ps(coding.low - coding.zero), high = _mm512_set1_ps(coding.high - coding.zero);
  const __m512i shift = _mm512_set1_epi32(int(coding.zero) - int(coding.shift));
  const __m512 sign = _mm512_set1_ps(-0.0f), near = _mm512_set1_ps(0.4999f);
  // x / scale would cost most of this function. x * (1 / scale) differs by two units in the last place, which matters
  // only within 1e-4 of a half: rows of such values are divided.
  const bool exact = !(1.0f / coding.scale <= 3e38f) || coding.high - coding.low > 255.0f;
  __m512i total = _mm512_setzero_si512();
  size_t end = segment, s = 0;
  for (size_t i = 0; i < padded; i += 16) {
    const __mmask16 mask = i >= count ? 0 : count - i < 16 ? (1u << (count - i)) - 1 : 0xffff;
    __m512 value = _mm512_maskz_loadu_ps(mask, x + (mask ? i : 0));
    if (smooth) value = _mm512_mul_ps(value, _mm512_maskz_loadu_ps(mask, smooth + (mask ? i : 0)));
    __m512 ratio = _mm512_mul_ps(value, inverse);
    const __m512 rest = _mm512_andnot_ps(sign, _mm512_reduce_ps(ratio, 0));
    if (exact || _mm512_cmp_ps_mask(rest, near, _CMP_NLE_UQ)) ratio = _mm512_div_ps(value, scale);
    // NaN becomes the lowest code; the scale of its row is NaN and makes the whole row NaN.
    ratio = _mm512_min_ps(_mm512_max_ps(ratio, low), high);
    const __m512i code = _mm512_maskz_add_epi32(mask, _mm512_cvtps_epi32(ratio), shift);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + i), _mm512_cvtepi32_epi8(code));
    total = _mm512_add_epi32(total, code);
    if (i + 16 == end || i + 16 == padded) {
      sums[s++] = _mm512_reduce_add_epi32(total);
      total = _mm512_setzero_si512();
      end += segment;
    }
  }
}

// As portable::exponential.
inline __m512 exponential(__m512 x) {
  x = _mm512_max_ps(_mm512_min_ps(x, _mm512_set1_ps(88.0f)), _mm512_set1_ps(-87.0f));
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693145752f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(1.42860677e-6f), r);
  __m512 p = _mm512_set1_ps(1.0f / 5040.0f);
  for (float coefficient : {1.0f / 720.0f, 1.0f / 120.0f, 1.0f / 24.0f, 1.0f / 6.0f, 0.5f, 1.0f, 1.0f})
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(coefficient));
  return _mm512_scalef_ps(p, n);
}

inline __m512 logistic(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  return _mm512_div_ps(one, _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

inline __m512 gelu_tanh(__m512 y) {
  const __m512 cube = _mm512_mul_ps(_mm512_mul_ps(y, y), y);
  const __m512 inner = _mm512_fmadd_ps(cube, _mm512_set1_ps(0.044715f), y);
  return _mm512_mul_ps(y, logistic(_mm512_mul_ps(inner, _mm512_set1_ps(1.59576912f))));
}

inline void store_outputs(__m512 value, int i, __mmask16 mask, const RowFinish& how, float* y) {
  if (how.column_sum)
    value = _mm512_fmadd_ps(_mm512_set1_ps(how.row_shift), _mm512_loadu_ps(how.column_sum + i), value);
  if (how.bias) value = _mm512_add_ps(value, _mm512_loadu_ps(how.bias + i));
  if (how.addend) value = _mm512_add_ps(value, _mm512_loadu_ps(how.addend + i));
  value = _mm512_add_ps(value, _mm512_set1_ps(how.row_bias));
  if (how.activation == Activation::gelu_tanh) value = gelu_tanh(value);
  if (how.activation == Activation::silu) value = _mm512_mul_ps(value, logistic(value));
  if (how.residual) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, how.residual + i));
  _mm512_mask_storeu_ps(y + i, mask, value);
}

inline __mmask16 columns_left(int i, int count) { return count - i >= 16 ? 0xffff : (1u << (count - i)) - 1; }

// Whole rows of 64 columns with nothing but scales and biases, as most are.
inline void store_plain(const int32_t* sums, const RowFinish& how, float* y) {
  const __m512i offset = _mm512_set1_epi32(how.row_offset);
  const __m512 scale = _mm512_set1_ps(how.row_scale), bias = _mm512_set1_ps(how.row_bias);
  for (int i = 0; i < kPanelColumns; i += 16) {
    const __m512i sum = _mm512_sub_epi32(_mm512_loadu_si512(sums + i), offset);
    __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_loadu_ps(how.column_scale + i));
    value = _mm512_mul_ps(value, scale);
    if (how.bias) value = _mm512_add_ps(value, _mm512_loadu_ps(how.bias + i));
    _mm512_storeu_ps(y + i, _mm512_add_ps(value, bias));
  }
}

void finish(const int32_t* sums, const RowFinish& how, float* y, int count) {
  if (count == kPanelColumns && !how.column_zero && !how.column_sum && !how.addend && !how.residual &&
      how.activation == Activation::none) {
    store_plain(sums, how, y);
    return;
  }
  for (int i = 0; i < count; i += 16) {
    __m512i sum = _mm512_sub_epi32(_mm512_loadu_si512(sums + i), _mm512_set1_epi32(how.row_offset));
    if (how.column_zero) {
      const __m512i zero = _mm512_loadu_si512(how.column_zero + i);
      sum = _mm512_sub_epi32(sum, _mm512_mullo_epi32(zero, _mm512_set1_epi32(how.row_sum)));
    }
    __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_loadu_ps(how.column_scale + i));
    value = _mm512_mul_ps(value, _mm512_set1_ps(how.row_scale));
    store_outputs(value, i, columns_left(i, count), how, y);
  }
}

void finish_float(const float* sums, const RowFinish& how, float* y, int count) {
  for (int i = 0; i < count; i += 16) {
    __m512 value = _mm512_loadu_ps(sums + i);
    if (how.column_scale) value = _mm512_mul_ps(value, _mm512_loadu_ps(how.column_scale + i));
    value = _mm512_mul_ps(value, _mm512_set1_ps(how.row_scale));
    store_outputs(value, i, columns_left(i, count), how, y);
  }
}

// Bytes of a chunk of codes that exist.
inline __mmask64 bytes_left(int64_t bytes) { return bytes >= 64 ? ~__mmask64(0) : (__mmask64(1) << bytes) - 1; }

struct Halves {
  __m512i even, odd;
};

inline Halves split(const uint8_t* codes, __mmask64 mask, bool looked_up, __m512i table) {
  const __m512i low = _mm512_set1_epi8(15);
  const __m512i both = _mm512_maskz_loadu_epi8(mask, codes);
  Halves h{_mm512_and_si512(both, low), _mm512_and_si512(_mm512_srli_epi16(both, 4), low)};
  if (looked_up) h = {_mm512_shuffle_epi8(table, h.even), _mm512_shuffle_epi8(table, h.odd)};
  return h;
}

inline __m512i broadcast_table(const uint8_t* table) {
  if (!table) return _mm512_setzero_si512();
  return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
}

// GCC leaves accumulators in memory unless every loop over them is unrolled, and turns values that are used twice into
// two loads, of which there is one a cycle.
#define UNROLLED _Pragma("GCC unroll 8")

inline __m512i held(const int8_t* from) {
  __m512i value = _mm512_loadu_si512(from);
  asm("" : "+v"(value));
  return value;
}

template <int rows, int columns, bool looked_up>
void dot_some_nibbles(const uint8_t* const* codes, int64_t k, const uint8_t* table, const int8_t* a, size_t pitch,
                      int32_t* sums) {
  const __m512i values = broadcast_table(table);
  const int64_t ahead = 2 * columns * ((k + 1) / 2);  // the same place of channels to come, as far as they follow
  __m512i acc[rows][columns];
  UNROLLED
  for (int r = 0; r < rows; ++r)
    UNROLLED
    for (int c = 0; c < columns; ++c) acc[r][c] = _mm512_setzero_si512();
  for (int64_t at = 0; at < k; at += kFewChunk) {
    const __mmask64 mask = bytes_left((k - at + 1) / 2);
    Halves h[columns];
    UNROLLED
    for (int c = 0; c < columns; ++c) {
      __builtin_prefetch(codes[c] + at / 2 + ahead);
      h[c] = split(codes[c] + at / 2, mask, looked_up, values);
    }
    UNROLLED
    for (int r = 0; r < rows; ++r) {
      const __m512i even = held(a + r * pitch + at), odd = held(a + r * pitch + at + 64);
      UNROLLED
      for (int c = 0; c < columns; ++c) {
        acc[r][c] = _mm512_dpbusd_epi32(acc[r][c], h[c].even, even);
        acc[r][c] = _mm512_dpbusd_epi32(acc[r][c], h[c].odd, odd);
      }
    }
  }
  UNROLLED
  for (int r = 0; r < rows; ++r)
    UNROLLED
    for (int c = 0; c < columns; ++c) sums[r * kFewColumns + c] = _mm512_reduce_add_epi32(acc[r][c]);
}

template <int rows, int columns, bool looked_up>
void dot_some_scaled(const uint8_t* const* codes, int64_t k, const uint8_t* table, const float* const* scales,
                     int64_t stretch, const int8_t* a, size_t pitch, const int32_t* starts, size_t starts_pitch,
                     float* sums) {
  const __m512i values = broadcast_table(table);
  const int64_t ahead = 2 * columns * ((k + 1) / 2);  // the same place of channels to come, as far as they follow
  // A register of sums holds eight positions in each of its 16 lanes: which scale of the chunk each lane takes.
  const int64_t own = stretch < kFewChunk ? stretch : kFewChunk;
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i place = _mm512_srli_epi32(lanes, own == 16 ? 1 : own == 32 ? 2 : own == 64 ? 3 : 4);
  __m512 acc[rows][columns];
  UNROLLED
  for (int r = 0; r < rows; ++r)
    UNROLLED
    for (int c = 0; c < columns; ++c) acc[r][c] = _mm512_setzero_ps();
  const int64_t scales_a_chunk = kFewChunk / own;
  int64_t first_scale = 0, used = 0;
  for (int64_t at = 0; at < k; at += kFewChunk) {
    const __mmask64 mask = bytes_left((k - at + 1) / 2);
    __mmask16 exist = (1u << scales_a_chunk) - 1;
    if (k - at < kFewChunk) exist = (1u << ((k - at + own - 1) / own)) - 1;
    Halves h[columns];
    __m512 scale[columns];
    UNROLLED
    for (int c = 0; c < columns; ++c) {
      __builtin_prefetch(codes[c] + at / 2 + ahead);
      h[c] = split(codes[c] + at / 2, mask, looked_up, values);
      scale[c] = _mm512_permutexvar_ps(place, _mm512_maskz_loadu_ps(exist, scales[c] + first_scale));
    }
    UNROLLED
    for (int r = 0; r < rows; ++r) {
      const __m512i even = held(a + r * pitch + at), odd = held(a + r * pitch + at + 64);
      const __m512i start = _mm512_loadu_si512(starts + r * starts_pitch + at / 8);
      UNROLLED
      for (int c = 0; c < columns; ++c) {
        const __m512i sum = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(start, h[c].even, even), h[c].odd, odd);
        acc[r][c] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale[c], acc[r][c]);
      }
    }
    used += kFewChunk;
    if (used >= stretch) {
      first_scale += scales_a_chunk;
      used = 0;
    }
  }
  UNROLLED
  for (int r = 0; r < rows; ++r)
    UNROLLED
    for (int c = 0; c < columns; ++c) sums[r * kFewColumns + c] = _mm512_reduce_add_ps(acc[r][c]);
}

template <int rows, int columns>
void dot_some_bytes(const uint8_t* const* codes, int64_t k, const int8_t* a, size_t pitch, int32_t* sums) {
  const int64_t ahead = columns * k;
  __m512i acc[rows][columns];
  UNROLLED
  for (int r = 0; r < rows; ++r)
    UNROLLED
    for (int c = 0; c < columns; ++c) acc[r][c] = _mm512_setzero_si512();
  for (int64_t at = 0; at < k; at += 64) {
    const __mmask64 mask = bytes_left(k - at);
    __m512i h[columns];
    UNROLLED
    for (int c = 0; c < columns; ++c) {
      __builtin_prefetch(codes[c] + at + ahead);
      h[c] = _mm512_maskz_loadu_epi8(mask, codes[c] + at);
    }
    UNROLLED
    for (int r = 0; r < rows; ++r) {
      const __m512i row = held(a + r * pitch + at);
      UNROLLED
      for (int c = 0; c < columns; ++c) acc[r][c] = _mm512_dpbusd_epi32(acc[r][c], h[c], row);
    }
  }
  UNROLLED
  for (int r = 0; r < rows; ++r)
    UNROLLED
    for (int c = 0; c < columns; ++c) sums[r * kFewColumns + c] = _mm512_reduce_add_epi32(acc[r][c]);
}

// Calls work(rows, columns) with both as constants: the accumulators of `rows` by `columns` fill half the registers.
template <typename Work>
void by_size(int rows, int count, Work&& work) {
  const auto with_rows = [&](auto constant, int first) {
    constexpr int r = decltype(constant)::value, wide = r <= 4 ? 4 : 2;
    int c = 0;
    for (; c + wide <= count; c += wide) work(constant, std::integral_constant<int, wide>{}, first, c);
    for (; c < count; ++c) work(constant, std::integral_constant<int, 1>{}, first, c);
  };
  int first = 0;
  for (; rows - first >= 8; first += 8) with_rows(std::integral_constant<int, 8>{}, first);
  for (; rows - first >= 4; first += 4) with_rows(std::integral_constant<int, 4>{}, first);
  for (; rows - first >= 2; first += 2) with_rows(std::integral_constant<int, 2>{}, first);
  if (first < rows) with_rows(std::integral_constant<int, 1>{}, first);
}

void dot_nibbles(const uint8_t* const* columns, int count, int64_t k, const uint8_t* table, const int8_t* a,
                 size_t pitch, int rows, int32_t* sums) {
  by_size(rows, count, [&](auto r, auto c, int first, int column) {
    constexpr int some_rows = decltype(r)::value, some_columns = decltype(c)::value;
    const auto dot = table ? dot_some_nibbles<some_rows, some_columns, true>
                           : dot_some_nibbles<some_rows, some_columns, false>;
    dot(columns + column, k, table, a + first * pitch, pitch, sums + first * kFewColumns + column);
  });
}

void dot_nibbles_scaled(const uint8_t* const* columns, int count, int64_t k, const uint8_t* table,
                        const float* const* scales, int64_t stretch, const int8_t* a, size_t pitch,
                        const int32_t* starts, size_t starts_pitch, int rows, float* sums) {
  by_size(rows, count, [&](auto r, auto c, int first, int column) {
    constexpr int some_rows = decltype(r)::value, some_columns = decltype(c)::value;
    const auto dot = table ? dot_some_scaled<some_rows, some_columns, true>
                           : dot_some_scaled<some_rows, some_columns, false>;
    dot(columns + column, k, table, scales + column, stretch, a + first * pitch, pitch, starts + first * starts_pitch,
        starts_pitch, sums + first * kFewColumns + column);
  });
}

void dot_bytes(const uint8_t* const* columns, int count, int64_t k, const int8_t* a, size_t pitch, int rows,
               int32_t* sums) {
  by_size(rows, count, [&](auto r, auto c, int first, int column) {
    dot_some_bytes<decltype(r)::value, decltype(c)::value>(columns + column, k, a + first * pitch, pitch,
                                                           sums + first * kFewColumns + column);
  });
}

void accumulate(const float* a, const float* scale, int64_t count, const float* b, size_t ldb, float* y, int columns) {
  int first = 0;
  for (; first + kPanelColumns <= columns; first += kPanelColumns) {
    __m512 sums[4];
    for (int i = 0; i < 4; ++i) sums[i] = _mm512_loadu_ps(y + first + 16 * i);
    for (int64_t k = 0; k < count; ++k) {
      const __m512 value = _mm512_set1_ps(scale ? a[k] * scale[k] : a[k]);
      const float* row = b + size_t(k) * ldb + first;
      for (int i = 0; i < 4; ++i) sums[i] = _mm512_fmadd_ps(value, _mm512_loadu_ps(row + 16 * i), sums[i]);
    }
    for (int i = 0; i < 4; ++i) _mm512_storeu_ps(y + first + 16 * i, sums[i]);
  }
  for (; first < columns; first += 16) {
    const __mmask16 mask = columns_left(first, columns);
    __m512 sum = _mm512_maskz_loadu_ps(mask, y + first);
    for (int64_t k = 0; k < count; ++k) {
      const __m512 value = _mm512_set1_ps(scale ? a[k] * scale[k] : a[k]);
      sum = _mm512_fmadd_ps(value, _mm512_maskz_loadu_ps(mask, b + size_t(k) * ldb + first), sum);
    }
    _mm512_mask_storeu_ps(y + first, mask, sum);
  }
}

int64_t spin(int64_t iterations) {
  asm volatile(
      ".irp r,0,1,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
      "vpxord %%zmm\\r, %%zmm\\r, %%zmm\\r\n"
      ".endr\n"
      ".p2align 5\n"
      "1:\n"
      ".irp r,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
      "vpdpbusd %%zmm0, %%zmm1, %%zmm\\r\n"
      ".endr\n"
      "dec %[left]\n"
      "jnz 1b\n"
      : [left] "+r"(iterations)
      :
      : "cc", ALL_ZMM);
  return 24 * 64 * 2;
}

#undef UNROLLED
#undef ALL_ZMM

}  // namespace

extern const Tile avx512vnni_tile = {
    "avx512vnni",
    kRows,
    kOffset,
    multiply,
    multiply_scaled,
    multiply_row_scaled,
    largest,
    encode,
    expand_nibbles,
    expand_bytes,
    fold_tables,
    expand_vectors,
    interleave,
    finish,
    finish_float,
    accumulate,
    portable::add_scaled,
    dot_nibbles,
    dot_nibbles_scaled,
    dot_bytes,
    spin,
};

}  // namespace compress
