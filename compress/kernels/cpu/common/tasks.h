// Work cut into tasks, and tasks that may fail.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>

#include "common/arena.h"
#include "common/parallel.h"

namespace compress {

constexpr int64_t kMostRows = 504;  // of one task: their sums and a chunk of their codes stay in the second-level cache

// Rows cut into parts of whole tiles, each of which is multiplied by `panels` panels in tasks of their own.
struct Parts {
  int64_t rows, count;

  Parts(int64_t padded, int rows_per_tile, int64_t panels, size_t threads) {
    const int64_t tiles = padded / rows_per_tile;
    count = (padded + kMostRows - 1) / kMostRows;
    // Enough tasks to keep every thread busy to the end, where there are rows to split.
    while (threads > 1 && panels * count < int64_t(4 * threads) && count < tiles / 4) ++count;
    rows = (tiles + count - 1) / count * rows_per_tile;
    count = (padded + rows - 1) / rows;
  }
};

// As parallel_for, of work that may throw: the first exception is thrown when all is done.
template <typename Work>
void parallel_try(const compress_runner* runner, size_t count, Work&& work) {
  std::atomic<bool> failed{false};
  std::exception_ptr first;
  parallel_for(runner, count, [&](size_t i) {
    try {
      work(i);
    } catch (...) {
      if (!failed.exchange(true)) first = std::current_exception();
    }
  });
  if (failed) std::rethrow_exception(first);
}

// work(i, memory) with memory of the thread's own.
template <typename Work>
void parallel_with_memory(const compress_runner* runner, size_t count, Work&& work) {
  parallel_try(runner, count, [&](size_t i) {
    thread_local Arena own;
    Borrowed memory(own);
    work(i, memory);
  });
}

}  // namespace compress
