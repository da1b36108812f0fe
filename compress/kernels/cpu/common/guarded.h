// Arrays for tests that end at a page nobody may touch: reading or writing one element too many crashes.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "common/test.h"

namespace compress {

template <typename T>
class Guarded {
 public:
  // `count` elements, all bytes poisoned.
  explicit Guarded(size_t count) : count_(count) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE)), bytes = count * sizeof(T);
    usable_ = (bytes + page - 1) / page * page;
    mapped_ = usable_ + page;
    void* const memory = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED, "no memory for %zu bytes", mapped_);
    base_ = static_cast<uint8_t*>(memory);
    CHECK(mprotect(base_ + usable_, page, PROT_NONE) == 0, "mprotect failed");
    std::memset(base_, kPoison, usable_);
    data_ = reinterpret_cast<T*>(base_ + usable_ - bytes);
  }

  // Checks that nothing was written in front of the array either.
  ~Guarded() {
    for (const uint8_t* byte = base_; byte < reinterpret_cast<uint8_t*>(data_); ++byte)
      CHECK(*byte == kPoison, "a byte in front of an array of %zu elements was overwritten", count_);
    munmap(base_, mapped_);
  }

  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  void poison() { std::memset(static_cast<void*>(data_), kPoison, count_ * sizeof(T)); }
  size_t size() const { return count_; }
  T* data() { return data_; }
  T* begin() { return data_; }
  T* end() { return data_ + count_; }
  T& operator[](size_t i) { return data_[i]; }
  const T& operator[](size_t i) const { return data_[i]; }

 private:
  static constexpr uint8_t kPoison = 0xa5;
  size_t count_, usable_, mapped_;
  uint8_t* base_;
  T* data_;
};

}  // namespace compress
