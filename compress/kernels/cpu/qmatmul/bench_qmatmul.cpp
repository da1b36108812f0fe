// Speed of compress_qmatmul: int8 activations; int4 codes per channel, in groups, folded; NF4; int8 codes.
#include <memory>

#include "common/bench.h"

namespace compress {
namespace {

struct Kind {
  const char* name;
  int bits;
  int64_t block;  // 0: one scale a channel
  bool nf4;
  int mode;
};

constexpr Kind kKinds[] = {{"int4 per channel", 4, 0, false, COMPRESS_MODE_EXACT},
                           {"int4 groups of 64", 4, 64, false, COMPRESS_MODE_EXACT},
                           {"int4 groups of 64 folded", 4, 64, false, COMPRESS_MODE_FOLDED},
                           {"NF4 per channel folded", 4, 0, true, COMPRESS_MODE_FOLDED},
                           {"int8 per channel", 8, 0, false, COMPRESS_MODE_EXACT}};

// Rows, n, k.
constexpr int64_t kShapes[][3] = {{1, 3072, 3072}, {64, 1152, 1152}, {512, 1536, 1536}, {1024, 4608, 1152}};

struct Layer {
  std::vector<uint8_t> codes;
  std::vector<float> scales, table, x, y;
  compress_weight weight{};

  Layer(Random& random, const Kind& kind, int64_t rows, int64_t n, int64_t k) {
    const int64_t block = kind.block ? kind.block : k, blocks = (k + block - 1) / block;
    codes = bench_bytes(random, n * blocks * ((block * kind.bits + 7) / 8));
    scales = bench_floats(random, n * blocks, 0.005f, 0.01f);
    for (int i = 0; kind.nf4 && i < 16; ++i) table.push_back(float(i * (i + 16) - 200) / 310.0f);  // as unevenly spaced
    x = bench_floats(random, rows * k, -2.0f, 2.0f);
    y.resize(size_t(rows * n));
    weight.codes = codes.data();
    weight.scales = scales.data();
    weight.table = kind.nf4 ? table.data() : nullptr;
    weight.n = n;
    weight.k = k;
    weight.block_size = block;
    weight.scale_rows = n;
    weight.scale_columns = blocks;
    weight.bits = kind.bits;
    weight.mode = kind.mode;
  }
};

std::vector<BenchCase> cases() {
  Random random(1);
  std::vector<BenchCase> all;
  for (const auto& [rows, n, k] : kShapes)
    for (const Kind& kind : kKinds) {
      const auto layer = std::make_shared<Layer>(random, kind, rows, n, k);
      const std::string name = std::to_string(rows) + " x " + std::to_string(k) + " x " + std::to_string(n);
      all.push_back({name + ", " + kind.name, 2.0 * double(rows) * double(n) * double(k),
                     [layer, count = rows](const compress_runner* runner, char* message, size_t size) {
                       const compress_options options = bench_options();
                       return compress_qmatmul(layer->x.data(), count, &layer->weight, &options, layer->y.data(),
                                               runner, message, size);
                     }});
    }
  return all;
}

}  // namespace
}  // namespace compress

int main(int argc, char** argv) { return compress::bench_main(argc, argv, compress::cases()); }
