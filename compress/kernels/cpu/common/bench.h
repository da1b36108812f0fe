// What the benchmark programs share: cases that are timed in turn, so that a change of the machine's speed meets all of
// them, and their medians in GOP/s (2 operations a multiply-add) beside what the CPU can do at most.
//
//   bench_<operator> [threads] [rounds]
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "common/test.h"
#include "include/compress_kernels.h"

namespace compress {

struct BenchCase {
  std::string name;
  double operations;
  std::function<compress_status(const compress_runner*, char*, size_t)> run;
};

inline std::vector<float> bench_floats(Random& random, int64_t count, float low, float high) {
  std::vector<float> values(size_t(count), 0.0f);
  for (float& value : values) value = random.real(low, high);
  return values;
}

inline std::vector<uint8_t> bench_bytes(Random& random, int64_t count) {
  std::vector<uint8_t> bytes(size_t(count), uint8_t(0));
  for (uint8_t& byte : bytes) byte = uint8_t(random.bits());
  return bytes;
}

// int8 activations under scales of their own.
inline compress_options bench_options() {
  compress_options options{};
  options.act_scale_rows = options.act_zero_rows = 1;
  options.act_low = -128;
  options.act_high = 127;
  options.act_max = 127.0f;
  return options;
}

// Repeats short calls so that the clock's resolution does not matter.
inline double bench_once(const BenchCase& what, const compress_runner* runner) {
  char message[256] = "";
  const int repeats = std::max(1, int(2e8 / what.operations));
  const auto began = std::chrono::steady_clock::now();
  for (int i = 0; i < repeats; ++i) {
    const compress_status status = what.run(runner, message, sizeof message);
    CHECK(status == COMPRESS_OK, "%s: %s", what.name.c_str(), message);
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count() / repeats;
}

inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

inline int bench_main(int argc, char** argv, const std::vector<BenchCase>& cases) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1, rounds = argc > 2 ? std::atoi(argv[2]) : 9;
  CHECK(threads > 0 && rounds > 0, "usage: %s [threads] [rounds]", argv[0]);
  compress_runner* const pool = compress_pool_create(threads);
  CHECK(pool, "no threads");
  std::vector<double> peaks;
  std::vector<std::vector<double>> seconds(cases.size());
  for (const BenchCase& what : cases) bench_once(what, pool);
  for (int round = 0; round < rounds; ++round) {
    peaks.push_back(compress_peak_gops(threads, 0.02));
    for (size_t i = 0; i < cases.size(); ++i) seconds[i].push_back(bench_once(cases[i], pool));
  }
  compress_pool_destroy(pool);
  const double peak = median(peaks);
  std::printf("%s, %d threads, medians of %d rounds, peak %.0f GOP/s\n", compress_isa(), threads, rounds, peak);
  for (size_t i = 0; i < cases.size(); ++i) {
    const double usual = median(seconds[i]), speed = cases[i].operations / usual / 1e9;
    std::printf("%-44s %9.3f ms %8.1f GOP/s", cases[i].name.c_str(), usual * 1e3, speed);
    if (peak > 0)
      std::printf(" %5.1f %% of peak\n", 100.0 * speed / peak);
    else
      std::printf("\n");
  }
  return 0;
}

}  // namespace compress
