// Speed of compress_qconv2d: int8 activations; 4-bit codes per channel and in groups; 3 x 3, 1 x 1, strided, depthwise.
#include <memory>

#include "common/bench.h"

namespace compress {
namespace {

struct Shape {
  const char* name;
  int64_t n;
  compress_geometry geometry;
  int64_t out_height, out_width;
};

constexpr Shape kShapes[] = {
    {"3 x 3, 320 to 320 at 32 x 32", 320, {1, 320, 32, 32, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}, 32, 32},
    {"1 x 1, 320 to 640 at 32 x 32", 640, {1, 320, 32, 32, {1, 1}, {1, 1}, {0, 0}, {1, 1}, 1}, 32, 32},
    {"3 x 3 stride 2, 320 to 320 at 32 x 32", 320, {1, 320, 32, 32, {3, 3}, {2, 2}, {1, 1}, {1, 1}, 1}, 16, 16},
    {"3 x 3, 640 to 640 at 8 x 8", 640, {1, 640, 8, 8, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}, 8, 8},
    {"depthwise 3 x 3, 640 at 32 x 32", 640, {1, 640, 32, 32, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 640}, 32, 32}};

struct Layer {
  std::vector<uint8_t> codes;
  std::vector<float> scales, x, y;
  compress_weight weight{};

  Layer(Random& random, const Shape& shape, int64_t k, int64_t block) {
    const compress_geometry& g = shape.geometry;
    const int64_t blocks = (k + block - 1) / block;
    codes = bench_bytes(random, shape.n * blocks * ((block + 1) / 2));
    scales = bench_floats(random, shape.n * blocks, 0.005f, 0.01f);
    x = bench_floats(random, g.batch * g.channels * g.height * g.width, -2.0f, 2.0f);
    y.resize(size_t(g.batch * shape.n * shape.out_height * shape.out_width));
    weight.codes = codes.data();
    weight.scales = scales.data();
    weight.n = shape.n;
    weight.k = k;
    weight.block_size = block;
    weight.scale_rows = shape.n;
    weight.scale_columns = blocks;
    weight.bits = 4;
    weight.mode = COMPRESS_MODE_EXACT;
  }
};

std::vector<BenchCase> cases() {
  Random random(1);
  std::vector<BenchCase> all;
  for (const Shape& shape : kShapes) {
    const compress_geometry& g = shape.geometry;
    const int64_t k = g.channels / g.groups * g.kernel[0] * g.kernel[1];
    for (int64_t block : {k, int64_t(64)}) {
      if (block != k && g.groups > 1) continue;  // a depthwise kernel has one scale
      const auto layer = std::make_shared<Layer>(random, shape, k, block);
      all.push_back({std::string(shape.name) + (block == k ? "" : ", groups of 64"),
                     2.0 * double(layer->y.size()) * double(k),
                     [layer, &g](const compress_runner* runner, char* message, size_t size) {
                       const compress_options options = bench_options();
                       return compress_qconv2d(layer->x.data(), &g, &layer->weight, &options, layer->y.data(), runner,
                                               message, size);
                     }});
    }
  }
  return all;
}

}  // namespace
}  // namespace compress

int main(int argc, char** argv) { return compress::bench_main(argc, argv, compress::cases()); }
