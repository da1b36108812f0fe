#include "tile/dispatch.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace compress {

#define TILE(name) extern const Tile name##_tile;
#include "tile/kernels.inc"
#undef TILE

namespace {

bool runs_scalar() { return true; }

#if defined(__x86_64__)

// __builtin_cpu_supports also asks whether the operating system saves the registers.
[[maybe_unused]] bool runs_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

[[maybe_unused]] bool runs_avxvnni() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return runs_avx2() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 4 & 1);
}

[[maybe_unused]] bool runs_avx512vnni() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma");
}

#elif defined(__aarch64__)

[[maybe_unused]] bool runs_neon_dot() {
#if defined(__linux__)
  constexpr unsigned long dot_product = 1ul << 20;  // HWCAP_ASIMDDP
  return getauxval(AT_HWCAP) & dot_product;
#else
  return true;  // Apple silicon
#endif
}

#endif

std::vector<const Tile*> find_tiles() {
  std::vector<const Tile*> tiles;
#define TILE(name) \
  if (runs_##name()) tiles.push_back(&name##_tile);
#include "tile/kernels.inc"
#undef TILE
  return tiles;
}

// Null when this CPU does not run it, or nothing has this name.
const Tile* find_tile(const char* name) {
  for (const Tile* candidate : available_tiles())
    if (std::strcmp(candidate->name, name) == 0) return candidate;
  return nullptr;
}

const Tile* first_tile() {
  const char* const name = std::getenv("COMPRESS_KERNEL");
  const Tile* const named = name ? find_tile(name) : nullptr;
  return named ? named : available_tiles().front();
}

std::atomic<const Tile*>& current() {
  static std::atomic<const Tile*> in_use{first_tile()};
  return in_use;
}

}  // namespace

const std::vector<const Tile*>& available_tiles() {
  static const std::vector<const Tile*> tiles = find_tiles();
  return tiles;
}

const Tile& tile() { return *current().load(std::memory_order_relaxed); }

bool use_tile(const char* name) {
  const Tile* const named = find_tile(name);
  if (named) current().store(named, std::memory_order_relaxed);
  return named != nullptr;
}

}  // namespace compress
