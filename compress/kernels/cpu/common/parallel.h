// Work split over the caller's threads.
#pragma once

#include <cstddef>
#include <type_traits>

#include "include/compress_kernels.h"

namespace compress {

constexpr int kThreadLimit = 1024;  // that are started, whatever is asked for

// work(i) for every i below count, by the runner or, without one, in order. `work` must not throw.
template <typename Work>
void parallel_for(const compress_runner* runner, size_t count, Work&& work) {
  if (!runner || runner->threads <= 1 || count <= 1) {
    for (size_t i = 0; i < count; ++i) work(i);
    return;
  }
  using Plain = typename std::remove_reference<Work>::type;
  runner->run(runner->self, [](void* context, size_t i) { (*static_cast<Plain*>(context))(i); }, &work, count);
}

// Asks for `bytes` of each of `rows` rows: the next tile's, while this one is multiplied. The hardware's own prefetch
// does not follow so many short runs.
inline void prefetch_rows(const void* first, size_t pitch, int rows, size_t bytes) {
  const char* row = static_cast<const char*>(first);
  for (int r = 0; r < rows; ++r, row += pitch)
    for (size_t at = 0; at < bytes; at += 64) __builtin_prefetch(row + at);
}

inline size_t threads_of(const compress_runner* runner) {
  return runner && runner->threads > 1 ? size_t(runner->threads) : 1;
}

}  // namespace compress
