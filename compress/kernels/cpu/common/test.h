// What the C++ tests share: a check that ends the program with exit code 1, and random numbers that are the same
// everywhere.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>

// CHECK(condition, "format", values...): the message says what was wrong.
#define CHECK(condition, ...)                                                          \
  do {                                                                                 \
    if (!(condition)) {                                                                \
      std::fprintf(stderr, "%s:%d: failed: %s\n  ", __FILE__, __LINE__, #condition);   \
      std::fprintf(stderr, __VA_ARGS__);                                               \
      std::fputc('\n', stderr);                                                        \
      std::exit(1);                                                                    \
    }                                                                                  \
  } while (0)

namespace compress {

// SplitMix64 (Steele, Lea and Flood 2014).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t bits() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

  // Whole numbers from low to high, both included.
  int64_t whole(int64_t low, int64_t high) { return low + int64_t(bits() % uint64_t(high - low + 1)); }

  // Even over [low, high).
  float real(float low, float high) { return low + (high - low) * float(bits() >> 40) * 0x1p-24f; }

 private:
  uint64_t state_;
};

}  // namespace compress
