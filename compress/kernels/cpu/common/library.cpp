// What the library says about itself, and the speed limit of the CPU it runs on.
#include <algorithm>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "common/status.h"
#include "tile/dispatch.h"

namespace compress {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point began) { return std::chrono::duration<double>(Clock::now() - began).count(); }

}  // namespace
}  // namespace compress

extern "C" {

int32_t compress_kernels_abi(void) { return COMPRESS_KERNELS_ABI; }

const char* compress_isa(void) { return compress::tile().name; }

const char* compress_isas(void) {
  static const std::string names = [] {
    std::string all;
    for (const compress::Tile* tile : compress::available_tiles()) all += (all.empty() ? "" : " ") + std::string(tile->name);
    return all;
  }();
  return names.c_str();
}

compress_status compress_use_isa(const char* name) {
  return compress::use_tile(name ? name : compress::available_tiles().front()->name) ? COMPRESS_OK
                                                                                     : COMPRESS_UNSUPPORTED;
}

double compress_peak_gops(int32_t threads, double seconds) {
  const compress::Tile& tile = compress::tile();
  if (!tile.spin || threads < 1 || !(seconds > 0)) return 0.0;
  constexpr int64_t kFirst = 100000;
  auto began = compress::Clock::now();
  const int64_t operations = tile.spin(kFirst);
  const double alone = compress::seconds_since(began);
  const int64_t iterations = std::max<int64_t>(kFirst, int64_t(double(kFirst) * seconds / alone));
  try {
    std::vector<std::thread> others;
    began = compress::Clock::now();
    for (int32_t i = 1; i < threads; ++i) others.emplace_back([&] { tile.spin(iterations); });
    tile.spin(iterations);
    for (auto& other : others) other.join();
  } catch (...) {
    return 0.0;
  }
  return double(threads) * double(iterations) * double(operations) / compress::seconds_since(began) / 1e9;
}

}  // extern "C"
