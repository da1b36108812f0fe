// Working memory that is kept between calls: one block a thread, grown when needed, aligned to cache lines.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace compress {

class Arena {
 public:
  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() { std::free(memory_); }

  // At least `bytes`, with what was there gone. Throws bad_alloc.
  char* reserve(size_t bytes) {
    if (bytes <= size_) return memory_;
    std::free(memory_);
    memory_ = nullptr;
    size_ = 0;
    const size_t page = bytes < kHuge ? 4096 : kHuge;
    const size_t whole = (bytes + page - 1) / page * page;
    void* memory = nullptr;
    if (posix_memalign(&memory, page, whole)) throw std::bad_alloc();
#if defined(__linux__)
    if (page == kHuge) madvise(memory, whole, MADV_HUGEPAGE);  // rows lie pages apart: far fewer address look-ups
#endif
    memory_ = static_cast<char*>(memory);
    size_ = whole;
    return memory_;
  }

  // Large blocks go back after a call: a model's largest layer should not hold memory for good.
  void trim() {
    if (size_ <= kKept) return;
    std::free(memory_);
    memory_ = nullptr;
    size_ = 0;
  }

 private:
  static constexpr size_t kHuge = size_t(1) << 21;
  static constexpr size_t kKept = size_t(32) << 20;
  char* memory_ = nullptr;
  size_t size_ = 0;
};

// The memory of one call: a large block goes back when the call ends, however it ends.
class Borrowed {
 public:
  explicit Borrowed(Arena& arena) : arena_(arena) {}
  Borrowed(const Borrowed&) = delete;
  Borrowed& operator=(const Borrowed&) = delete;
  ~Borrowed() { arena_.trim(); }

  char* reserve(size_t bytes) { return arena_.reserve(bytes); }

 private:
  Arena& arena_;
};

// Hands out parts of one block. With a null block it only counts, so that the same code measures and places.
class Layout {
 public:
  explicit Layout(char* memory = nullptr) : memory_(memory) {}

  template <typename T>
  T* take(size_t count) {
    T* place = memory_ ? reinterpret_cast<T*>(memory_ + used_) : nullptr;
    used_ += (count * sizeof(T) + 63) / 64 * 64;
    return place;
  }

  size_t used() const { return used_; }

 private:
  char* memory_;
  size_t used_ = 0;
};

}  // namespace compress
