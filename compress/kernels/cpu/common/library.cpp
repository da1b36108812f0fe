// What the library says about itself, and the speed limit of the CPU it runs on.
#include <algorithm>
#include <chrono>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "common/parallel.h"
#include "include/compress_kernels.h"
#include "tile/dispatch.h"

namespace compress {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kLongestMeasurement = 10.0;  // seconds

double seconds_since(Clock::time_point began) { return std::chrono::duration<double>(Clock::now() - began).count(); }

double peak_gops(int32_t threads, double seconds) {
  const Tile& t = tile();
  if (!t.spin || threads < 1 || !(seconds > 0)) return 0.0;
  constexpr int64_t kFirst = 100000;
  auto began = Clock::now();
  const int64_t operations = t.spin(kFirst);
  const double alone = std::max(seconds_since(began), 1e-6);
  const double wanted = std::min(seconds, kLongestMeasurement) / alone;
  const int64_t iterations = std::max<int64_t>(kFirst, int64_t(double(kFirst) * wanted));
  std::vector<std::thread> others;
  others.reserve(size_t(std::min(threads, kThreadLimit)));
  began = Clock::now();
  try {
    for (int32_t i = 1; i < std::min(threads, kThreadLimit); ++i) others.emplace_back([&] { t.spin(iterations); });
  } catch (const std::system_error&) {  // the threads that there are
  }
  t.spin(iterations);
  for (auto& other : others) other.join();
  return double(others.size() + 1) * double(iterations) * double(operations) / seconds_since(began) / 1e9;
}

}  // namespace
}  // namespace compress

extern "C" {

int32_t compress_kernels_abi(void) { return COMPRESS_KERNELS_ABI; }

const char* compress_isa(void) {
  try {
    return compress::tile().name;
  } catch (...) {
    return "";
  }
}

const char* compress_isas(void) {
  try {
    static const std::string names = [] {
      std::string all;
      for (const compress::Tile* tile : compress::available_tiles())
        all += (all.empty() ? "" : " ") + std::string(tile->name);
      return all;
    }();
    return names.c_str();
  } catch (...) {
    return "";
  }
}

compress_status compress_use_isa(const char* name) {
  try {
    return compress::use_tile(name ? name : compress::available_tiles().front()->name) ? COMPRESS_OK
                                                                                       : COMPRESS_UNSUPPORTED;
  } catch (...) {
    return COMPRESS_NO_MEMORY;
  }
}

double compress_peak_gops(int32_t threads, double seconds) {
  try {
    return compress::peak_gops(threads, seconds);
  } catch (...) {
    return 0.0;
  }
}

}  // extern "C"
