// compress_vqconv2d under every instruction set, against plain loops: random calls, malformed arguments.
#include "common/expected_convolution.h"

namespace compress {
namespace {

constexpr int kCases = 400;

void check_case(Random& random, const Pools& pools, Tally& tally) {
  const compress_geometry g = random_geometry(random);
  const int64_t d = pick<int64_t>(random, {1, 2, 3, 4, 4, 8, 9, 65});
  const bool whole = chance(random, 2);
  const VectorWeight weight(random, random_outputs(random, g), window_length(g), int(random.whole(1, 8)), d,
                            whole ? COMPRESS_MODE_EXACT : COMPRESS_MODE_FOLDED, whole);
  Inputs inputs = random_images(random, g, weight.raw.n);
  check_call(
      random, pools, inputs.outputs, nullptr, describe(g) + ", " + inputs.text() + ", " + weight.text(), tally,
      [&](float* y, const compress_runner* runner, char* message, size_t size) {
        return compress_vqconv2d(inputs.x->data(), &g, &weight.raw, &inputs.raw, y, runner, message, size);
      },
      [&](char* message, size_t size) {
        return compress_vqconv2d_supported(&g, &weight.raw, &inputs.raw, message, size);
      },
      [&] { return expected_convolution(inputs, g, weight.decode()); });
}

void test_malformed() {
  Random random(11);
  const compress_geometry g{2, 4, 6, 5, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1};
  const VectorWeight weight(random, 6, window_length(g), 8, 4, COMPRESS_MODE_FOLDED, false);
  check_malformed_geometry(g, 6, [&](const float* x, const compress_geometry* geometry, const compress_options* options,
                                     float* y, char* message, size_t size) {
    return compress_vqconv2d(x, geometry, &weight.raw, options, y, nullptr, message, size);
  });
  Inputs inputs = random_images(random, g, 6);
  Outputs y(inputs.outputs);
  const auto weight_with = [&](const char* what, auto&& change, int wanted = COMPRESS_INVALID) {
    compress_vectors w = weight.raw;
    change(w);
    check_refused(what, [&](char* message, size_t size) {
      return compress_vqconv2d(inputs.x->data(), &g, &w, &inputs.raw, y.data(), nullptr, message, size);
    }, wanted);
  };
  check_refused("no weight", [&](char* message, size_t size) {
    return compress_vqconv2d(inputs.x->data(), &g, nullptr, &inputs.raw, y.data(), nullptr, message, size);
  }, COMPRESS_INVALID);
  weight_with("no codes", [](compress_vectors& w) { w.codes = nullptr; });
  weight_with("no codebook", [](compress_vectors& w) { w.codebook = nullptr; });
  weight_with("no scales", [](compress_vectors& w) { w.scales = nullptr; });
  weight_with("scale rows", [](compress_vectors& w) { w.scale_rows = 5; });
  weight_with("mode", [](compress_vectors& w) { w.mode = 7; });
  weight_with("k", [](compress_vectors& w) { w.k = 35; });
  weight_with("n", [](compress_vectors& w) { w.n = INT64_MAX; });
}

void test() {
  const Pools pools;
  Random random(53);
  Tally tally;
  test_malformed();
  for (int i = 0; i < kCases; ++i) check_case(random, pools, tally);
  std::printf("%s: %d calls computed, %d refused\n", compress_isas(), tally.computed, tally.refused);
}

}  // namespace
}  // namespace compress

int main() {
  compress::test();
  return 0;
}
