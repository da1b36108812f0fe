// Speed of compress_vqmatmul: int8 activations, codebooks of 256 vectors of 4, 2 and 8 positions.
#include <memory>

#include "common/bench.h"

namespace compress {
namespace {

// Rows, n, k.
constexpr int64_t kShapes[][3] = {{1, 3072, 3072}, {64, 1152, 1152}, {512, 1536, 1536}};

struct Layer {
  std::vector<uint8_t> codes;
  std::vector<float> codebook, scales, x, y;
  compress_vectors weight{};

  Layer(Random& random, int64_t rows, int64_t n, int64_t k, int64_t d) {
    codes = bench_bytes(random, n * ((k + d - 1) / d));
    codebook = bench_floats(random, 256 * d, -1.0f, 1.0f);
    scales = bench_floats(random, n, 0.005f, 0.01f);
    x = bench_floats(random, rows * k, -2.0f, 2.0f);
    y.resize(size_t(rows * n));
    weight = {codes.data(), codebook.data(), scales.data(), n, k, d, n, 8, COMPRESS_MODE_FOLDED};
  }
};

std::vector<BenchCase> cases() {
  Random random(1);
  std::vector<BenchCase> all;
  for (const auto& [rows, n, k] : kShapes)
    for (int64_t d : {4, 2, 8}) {
      const auto layer = std::make_shared<Layer>(random, rows, n, k, d);
      const std::string name = std::to_string(rows) + " x " + std::to_string(k) + " x " + std::to_string(n);
      all.push_back({name + ", vectors of " + std::to_string(d), 2.0 * double(rows) * double(n) * double(k),
                     [layer, count = rows](const compress_runner* runner, char* message, size_t size) {
                       const compress_options options = bench_options();
                       return compress_vqmatmul(layer->x.data(), count, &layer->weight, &options, layer->y.data(),
                                                runner, message, size);
                     }});
    }
  return all;
}

}  // namespace
}  // namespace compress

int main(int argc, char** argv) { return compress::bench_main(argc, argv, compress::cases()); }
