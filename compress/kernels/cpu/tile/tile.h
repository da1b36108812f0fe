// The contract between the operators and the instruction sets: everything whose speed depends on the CPU.
//
// Integer products run on tiles of `rows_per_tile` rows (signed bytes, row-major) times 64 columns held in a *panel*:
// bytes [quads][64][4], four consecutive k of one column together. A panel byte is value + panel_offset modulo 256;
// instruction sets that multiply unsigned by signed bytes have an offset of 128, the others 0. Rows are padded with
// zeros to whole quads, so panel bytes there mean nothing.
//
// Each instruction set fills one `Tile` in a file of its own, compiled with flags of its own; helpers there live in an
// anonymous namespace, so that the linker cannot pick a copy that this CPU does not run.
#pragma once

#include <cstddef>
#include <cstdint>

namespace compress {

constexpr int kPanelColumns = 64;
constexpr int kQuad = 4;
constexpr int kQuadBytes = kPanelColumns * kQuad;

constexpr int kFewRows = 8;
constexpr int kFewColumns = 4;
constexpr int kFewChunk = 128;

enum class Activation : int32_t { none = 0, gelu_tanh = 1, silu = 2 };

// What turns a quantized row into the codes the tiles multiply: code = clamp(round(x * smooth / scale) + zero) - shift.
struct RowCoding {
  float scale;
  float zero;   // a whole number
  float low;    // of the codes, before the shift
  float high;
  float shift;  // 128 for unsigned 8-bit codes, else 0
};

// How the sums of one row become outputs:
// y = activation((acc - row_offset) * column_scale * row_scale + row_shift * column_sum + bias + addend + row_bias)
//     + residual
struct RowFinish {
  const float* column_scale;      // [64]; sums that are floats already: null for 1
  const int32_t* column_zero;     // [64] or null: acc -= column_zero[c] * row_sum
  const float* column_sum;        // [64] or null: decoded weights summed over k
  const float* bias;              // [64] or null
  const float* addend;            // [64] of this row or null: low-rank branch
  const float* residual;          // [64] of this row or null
  float row_bias;                 // added to every column
  float row_scale;
  float row_shift;                // row_scale * offset of the activation codes
  int32_t row_offset;             // panel_offset * row_sum
  int32_t row_sum;
  Activation activation;
};

struct Tile {
  const char* name;
  int rows_per_tile;
  int panel_offset;

  // c[rows_per_tile][64] (+)= rows * panel over `quads`. `lda` in bytes, `ldc` in elements.
  void (*multiply)(const uint8_t* panel, const int8_t* a, size_t lda, int quads, int32_t* c, size_t ldc,
                   bool accumulate);

  // The same with floating-point scales between segments of `quads` (even) each: c (+)= sum over segments of
  // scale[segment][column] * (start[row][segment] + a . panel); start is minus panel_offset times the sum of the row's
  // codes.
  void (*multiply_scaled)(const uint8_t* panel, const int8_t* a, size_t lda, int quads, int segments,
                          const int32_t* start, size_t start_stride, const float* scales, float* c, size_t ldc,
                          bool accumulate);

  // As multiply_scaled with scale[row][segment]: for weights as rows and pixels as columns.
  void (*multiply_row_scaled)(const uint8_t* panel, const int8_t* a, size_t lda, int quads, int segments,
                              const int32_t* start, size_t start_stride, const float* scales, size_t scale_stride,
                              float* c, size_t ldc, bool accumulate);

  // Largest magnitude of x * smooth (smooth may be null); NaN if there is one.
  float (*largest)(const float* x, const float* smooth, size_t count);

  // Codes of a row, and zeros from `count` to `padded`, a multiple of 16. `sums` gets the sum of the codes of each
  // `segment` positions (a multiple of 16); one segment of the whole row when segment >= padded.
  void (*encode)(const float* x, const float* smooth, size_t count, size_t padded, const RowCoding& coding,
                 int8_t* codes, size_t segment, int32_t* sums);

  // Panels of 4-bit codes. Column c starts at columns[c] (code of position 0, low nibble first); `length` positions, a
  // multiple of 32. Tables: 16 panel bytes for each column and stretch of `stretch` positions (a multiple of 16), at
  // tables + stretch index * 1024 + table_place(c); a null `stretch` (0) means one table of 16 bytes for all.
  void (*expand_nibbles)(const uint8_t* const* columns, int length, const uint8_t* tables, int stretch, uint8_t* panel);

  // Panels of byte codes: panel byte = code + add[c] modulo 256. `length` a multiple of 16.
  void (*expand_bytes)(const uint8_t* const* columns, int length, const uint8_t* add, uint8_t* panel);

  // Tables of a folded weight: entry = round(value * factor) + panel_offset, half to even, for 16 values.
  void (*fold_tables)(const float* values, const float* factors, int count, uint8_t* const* tables);

  // Panels of vector codes of four positions: panel quad = book[code]. `quads` codes a column.
  void (*expand_vectors)(const uint8_t* const* columns, int quads, const uint32_t* book, uint8_t* panel);

  // Panel of pixels: four rows of 64 bytes each (k, k+1, k+2, k+3) become one quad; bytes get panel_offset added.
  void (*interleave)(const int8_t* const* rows, int quads, uint8_t* panel);

  // One row of outputs from a row of sums; `count` of the 64 columns exist.
  void (*finish)(const int32_t* sums, const RowFinish& how, float* y, int count);
  void (*finish_float)(const float* sums, const RowFinish& how, float* y, int count);

  // y[0 .. columns) += sum over i of a[i] * scale[i] * b[i * ldb + column]; scale may be null. For low-rank branches.
  void (*accumulate)(const float* a, const float* scale, int64_t count, const float* b, size_t ldb, float* y,
                     int columns);

  // sums[i] += weight * a[i]. For depthwise convolutions.
  void (*add_scaled)(const int8_t* a, int32_t weight, int32_t* sums, int count);

  // Few rows, for which filling a panel costs more than it saves: up to kFewRows rows times up to kFewColumns channels
  // whose codes are streamed once. All three are null where there is no such code. Rows are those of `encode`, in
  // chunks of 128 positions padded with zeros; for nibbles the even ones of a chunk come first (FewRows::split_rows).
  // sums[row * kFewColumns + column] = a . values, values being table[code] or, without a table, the code itself, as
  // unsigned bytes.
  void (*dot_nibbles)(const uint8_t* const* columns, int count, int64_t k, const uint8_t* table, const int8_t* a,
                      size_t pitch, int rows, int32_t* sums);
  // The same under scales of `stretch` positions (16, 32, 64 or a multiple of 128), scales[column][stretch index];
  // starts[row * starts_pitch + position / 8] is what the sum over eight positions begins with.
  void (*dot_nibbles_scaled)(const uint8_t* const* columns, int count, int64_t k, const uint8_t* table,
                             const float* const* scales, int64_t stretch, const int8_t* a, size_t pitch,
                             const int32_t* starts, size_t starts_pitch, int rows, float* sums);
  void (*dot_bytes)(const uint8_t* const* columns, int count, int64_t k, const int8_t* a, size_t pitch, int rows,
                    int32_t* sums);

  // Byte products in registers and nothing else, as fast as this CPU can; returns how many operations (2 a product and
  // sum) an iteration does. Null where there is no such instruction.
  int64_t (*spin)(int64_t iterations);
};

// Where the table of column c lies within the 1024 bytes of a stretch, so that one load holds four columns' tables.
// Static, as everything that files of several instruction sets compile.
static constexpr int table_place(int column) {
  return (column / 16) * 256 + (column % 4) * 64 + (column / 4 % 4) * 16;
}

}  // namespace compress
