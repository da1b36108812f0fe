#include "vqmatmul/vector_panels.h"

#include <algorithm>
#include <cstring>

#include "common/status.h"

namespace compress {

VectorPanels::VectorPanels(const compress_vectors& weight, const Tile& tile)
    : book_(weight, tile.panel_offset), tile_(tile) {
  n_ = weight.n;
  k_ = weight.k;
  // Chunks begin at whole bytes of codes, every 8 vectors, and at whole pairs of quads.
  int64_t step = 8 * weight.d;
  while (step % 32) step *= 2;
  if (step > kLargestChunk)
    fail(COMPRESS_UNSUPPORTED, "vectors of %lld do not divide into panels", static_cast<long long>(weight.d));
  chunk_ = chunk_of(step);
}

bool VectorPanels::factors(int64_t first, float* scale, int32_t* zero) const {
  for (int column = 0; column < kPanelColumns; ++column) {
    scale[column] = book_.scale(channel(first, column));
    zero[column] = 0;
  }
  return false;
}

void VectorPanels::prefetch(int64_t first, int64_t k0, int part, int parts) const {
  const auto bytes = [&](int64_t positions) { return positions / book_.raw().d * book_.raw().bits / 8; };
  prefetch_channels(first, bytes(k0), bytes(std::min<int64_t>(chunk_, k_ - k0)), part, parts,
                    [&](int64_t c) { return book_.row(c); });
}

void VectorPanels::expand(int64_t first, int64_t k0, PanelScratch& scratch) const {
  const int64_t length = std::min<int64_t>(chunk_, k_ - k0);
  const uint8_t* columns[kPanelColumns];
  if (book_.raw().d == 4 && book_.raw().bits == 8) {
    for (int column = 0; column < kPanelColumns; ++column) columns[column] = book_.row(channel(first, column)) + k0 / 4;
    tile_.expand_vectors(columns, int((length + 3) / 4), book_.quads(), scratch.panel);
    return;
  }
  const int64_t padded = (length + 15) / 16 * 16;
  for (int column = 0; column < kPanelColumns; ++column) {
    uint8_t* bytes = scratch.bytes + size_t(column) * kLargestChunk;
    book_.decode(channel(first, column), k0, length, bytes);
    std::memset(bytes + length, 0, size_t(padded - length));
    columns[column] = bytes;
  }
  const uint8_t nothing[kPanelColumns] = {};
  tile_.expand_bytes(columns, int(padded), nothing, scratch.panel);
}

}  // namespace compress
