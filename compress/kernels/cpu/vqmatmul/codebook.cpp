#include "vqmatmul/codebook.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/status.h"

namespace compress {
namespace {

using Long = long long;

constexpr int64_t kLongestVector = 4096;

}  // namespace

Codebook::Codebook(const compress_vectors& weight, int offset) : weight_(weight) {
  const compress_vectors& w = weight_;
  if (w.bits < 1 || w.bits > 8) fail(COMPRESS_INVALID, "codes of %d bits: 1 to 8 exist", w.bits);
  if (w.n < 1 || w.k < 1 || w.n > INT32_MAX || w.k > INT32_MAX)
    fail(COMPRESS_INVALID, "a weight of %lld x %lld", Long(w.n), Long(w.k));
  if (w.d < 1 || w.d > kLongestVector) fail(COMPRESS_INVALID, "vectors of %lld", Long(w.d));
  if (w.scale_rows != 1 && w.scale_rows != w.n)
    fail(COMPRESS_INVALID, "%lld scales for %lld channels", Long(w.scale_rows), Long(w.n));
  if (w.mode != COMPRESS_MODE_EXACT && w.mode != COMPRESS_MODE_FOLDED) fail(COMPRESS_INVALID, "mode %d", w.mode);
  if (!w.codes || !w.codebook || !w.scales) fail(COMPRESS_INVALID, "no codes, no codebook or no scales");
  row_bytes_ = size_t(((w.k + w.d - 1) / w.d * w.bits + 7) / 8);
  const size_t values = (size_t(1) << w.bits) * size_t(w.d);
  entries_.resize(values);
  float most = 0.0f;
  bool whole = true;
  for (size_t i = 0; i < values; ++i) {
    const float value = w.codebook[i];
    if (!std::isfinite(value)) fail(COMPRESS_INVALID, "the codebook holds values that are not finite");
    most = std::max(most, std::fabs(value));
    whole = whole && value == std::nearbyint(value) && value >= -128.0f && value <= 127.0f;
  }
  const bool rounds = w.mode == COMPRESS_MODE_FOLDED;
  if (!rounds && !whole)
    fail(COMPRESS_UNSUPPORTED, "the codebook does not hold whole numbers; mode folded rounds it");
  most = std::max(most, kSmallestLargest);
  unit_ = rounds ? most / 127.0f : 1.0f;
  const float factor = 127.0f / most;
  for (size_t i = 0; i < values; ++i)
    entries_[i] = uint8_t(int(std::nearbyint(rounds ? w.codebook[i] * factor : w.codebook[i])) + offset);
  if (w.d == 4) {
    quads_.resize(values / 4);
    std::memcpy(quads_.data(), entries_.data(), values);
  }
}

void Codebook::decode(int64_t channel, int64_t position, int64_t count, uint8_t* values) const {
  const int64_t d = weight_.d;
  const int bits = weight_.bits;
  const uint8_t* stream = row(channel) + size_t(position / d) * size_t(bits) / 8;
  const uint8_t* end = row(channel) + row_bytes_;
  const uint64_t mask = (uint64_t(1) << bits) - 1;
  for (int64_t at = 0; at < count; stream += bits) {
    uint64_t word = 0;
    std::memcpy(&word, stream, std::min<size_t>(size_t(bits), size_t(end - stream)));
    for (int i = 0; i < 8 && at < count; ++i, at += d)
      std::memcpy(values + at, &entries_[size_t(word >> (bits * i) & mask) * size_t(d)],
                  size_t(std::min(d, count - at)));
  }
}

}  // namespace compress
