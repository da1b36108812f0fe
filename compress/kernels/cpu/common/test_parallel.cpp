// Pools: every body once, on as many threads as the system gives.
#include "common/parallel.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <vector>

#include "common/test.h"

namespace compress {
namespace {

void check_every_body(const compress_runner* pool) {
  for (size_t count : {size_t(0), size_t(1), size_t(7), size_t(1000)}) {
    std::vector<std::atomic<int>> runs(count);
    parallel_for(pool, count, [&](size_t i) { ++runs[i]; });
    for (size_t i = 0; i < count; ++i) CHECK(runs[i] == 1, "body %zu of %zu ran %d times", i, count, int(runs[i]));
  }
}

void test_threads() {
  for (int32_t threads : {INT32_MIN, -1, 0, 1, 2, 5}) {
    compress_runner* pool = compress_pool_create(threads);
    CHECK(pool && pool->threads == (threads < 1 ? 1 : threads), "a pool of %d threads", threads);
    check_every_body(pool);
    compress_pool_destroy(pool);
  }
}

// Memory for some stacks, but not for all of them. False where nobody heeds the limit: emulators do not.
bool limit_memory() {
  long pages = 0;
  std::FILE* const sizes = std::fopen("/proc/self/statm", "r");
  CHECK(sizes && std::fscanf(sizes, "%ld", &pages) == 1, "no /proc/self/statm");
  std::fclose(sizes);
  const rlim_t most = rlim_t(pages) * rlim_t(sysconf(_SC_PAGESIZE)) + (rlim_t(200) << 20);
  const rlimit limit{most, most};
  CHECK(setrlimit(RLIMIT_AS, &limit) == 0, "setrlimit failed");
  return mmap(nullptr, size_t(1) << 30, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED;
}

void compute_in_little_memory() {
  if (!limit_memory()) return;
  compress_runner* pool = compress_pool_create(500);
  CHECK(pool && pool->threads >= 1 && pool->threads < 500, "%d threads", pool ? pool->threads : -1);
  check_every_body(pool);
  CHECK(compress_peak_gops(500, 1e-3) >= 0.0, "a negative speed");
  compress_pool_destroy(pool);
}

void test_too_many_threads() {
#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__)
  const pid_t child = fork();
  CHECK(child >= 0, "fork failed");
  if (child == 0) {
    compute_in_little_memory();
    _exit(0);
  }
  int status = -1;
  CHECK(waitpid(child, &status, 0) == child, "waitpid failed");
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "threads that cannot be started end the process: %d", status);
#else
  (void)compute_in_little_memory;
#endif
}

void test_speed() {
  CHECK(compress_peak_gops(0, 0.01) == 0.0 && compress_peak_gops(1, -1.0) == 0.0, "no threads, no time");
  CHECK(compress_peak_gops(1, 1e-300) >= 0.0 && compress_peak_gops(2, 0.001) >= 0.0, "a negative speed");
}

}  // namespace
}  // namespace compress

int main() {
  compress::test_threads();
  compress::test_too_many_threads();
  compress::test_speed();
  return 0;
}
