// compress_qconv2d under every instruction set, against plain loops: random calls, broken inputs, malformed arguments.
#include "common/expected_convolution.h"

namespace compress {
namespace {

constexpr int kCases = 1000;

const char* refusal(const PackedWeight& weight, const compress_geometry& g) {
  if (const char* reason = weight.refusal()) return reason;
  const compress_weight& w = weight.raw;
  if (w.bits == 8 && w.zero_points) return "8 bits and zero points";
  if (w.scale_columns > 1 && std::min(w.block_size, (w.k + 15) / 16 * 16) > 512) return "blocks are too large";
  if (w.scale_columns > 1 && g.groups > 1) return "groups in a depthwise kernel";
  return nullptr;
}

void check_case(Random& random, const Pools& pools, Tally& tally) {
  const compress_geometry g = random_geometry(random);
  const PackedWeight weight = random_weight(random, random_outputs(random, g), window_length(g));
  const compress_weight& w = weight.raw;
  Inputs inputs = random_images(random, g, w.n);
  check_call(
      random, pools, inputs.outputs, refusal(weight, g), describe(g) + ", " + inputs.text() + ", " + weight.text(),
      tally,
      [&](float* y, const compress_runner* runner, char* message, size_t size) {
        return compress_qconv2d(inputs.x->data(), &g, &w, &inputs.raw, y, runner, message, size);
      },
      [&](char* message, size_t size) { return compress_qconv2d_supported(&g, &w, &inputs.raw, message, size); },
      [&] { return expected_convolution(inputs, g, weight.decode()); });
}

void test_broken_images(Random& random) {
  for (const std::string& isa : instruction_sets()) {
    compress_use_isa(isa.c_str());
    for (int64_t groups : {1, 1, 1, 8, 8})
      for (int64_t batch : {2, 3}) {
        const compress_geometry g{batch, 8, 5, 7, {3, 3}, {1, 2}, {1, 1}, {1, 1}, groups};
        PackedWeight weight(random, 16, window_length(g), 4, window_length(g), Table::none, COMPRESS_MODE_EXACT);
        Inputs inputs = random_images(random, g, 16);
        check_broken_rows(random, inputs, inputs.outputs / batch, isa + ", " + describe(g) + ", " + inputs.text(),
                          [&](float* y) {
                            const compress_status status = compress_qconv2d(
                                inputs.x->data(), &g, &weight.raw, &inputs.raw, y, nullptr, nullptr, 0);
                            CHECK(status == COMPRESS_OK, "%s", isa.c_str());
                          });
      }
  }
}

void test_malformed() {
  Random random(5);
  const compress_geometry g{2, 4, 6, 5, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1};
  const int64_t k = window_length(g);
  PackedWeight weight(random, 6, k, 4, k, Table::none, COMPRESS_MODE_EXACT);
  weight.raw.zero_points = nullptr;
  check_malformed_geometry(g, 6, [&](const float* x, const compress_geometry* geometry, const compress_options* options,
                                     float* y, char* message, size_t size) {
    return compress_qconv2d(x, geometry, &weight.raw, options, y, nullptr, message, size);
  });
  Inputs inputs = random_images(random, g, 6);
  Outputs y(inputs.outputs);
  const auto weight_with = [&](const char* what, auto&& change, int wanted = COMPRESS_INVALID) {
    compress_weight w = weight.raw;
    change(w);
    check_refused(what, [&](char* message, size_t size) {
      return compress_qconv2d(inputs.x->data(), &g, &w, &inputs.raw, y.data(), nullptr, message, size);
    }, wanted);
    check_refused(what, [&](char* message, size_t size) {
      return compress_qconv2d_supported(&g, &w, &inputs.raw, message, size);
    }, wanted);
  };
  check_refused("no weight", [&](char* message, size_t size) {
    return compress_qconv2d(inputs.x->data(), &g, nullptr, &inputs.raw, y.data(), nullptr, message, size);
  }, COMPRESS_INVALID);
  weight_with("no codes", [](compress_weight& w) { w.codes = nullptr; });
  weight_with("no scales", [](compress_weight& w) { w.scales = nullptr; });
  weight_with("mode", [](compress_weight& w) { w.mode = 7; });
  weight_with("bits", [](compress_weight& w) { w.bits = 0; });
  weight_with("scale rows", [](compress_weight& w) { w.scale_rows = 5; });
  weight_with("scale columns", [](compress_weight& w) { w.scale_columns = 2; });
  for (int64_t size : {int64_t(0), int64_t(-1), INT64_MIN, INT64_MAX, int64_t(1) << 40}) {
    weight_with("n", [&](compress_weight& w) { w.n = size; });
    weight_with("k", [&](compress_weight& w) { w.k = size; }, 0);
    weight_with("block_size", [&](compress_weight& w) { w.block_size = size; });
  }
}

void test_groups_between() {
  Random random(6);
  const compress_geometry g{1, 4, 6, 5, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 2};
  const PackedWeight weight(random, 6, window_length(g), 4, window_length(g), Table::none, COMPRESS_MODE_EXACT);
  const Inputs inputs = random_images(random, g, 6);
  check_refused("two groups of two channels", [&](char* message, size_t size) {
    return compress_qconv2d_supported(&g, &weight.raw, &inputs.raw, message, size);
  }, COMPRESS_UNSUPPORTED);
}

void test() {
  const Pools pools;
  Random random(43);
  Tally tally;
  test_malformed();
  test_groups_between();
  test_broken_images(random);
  for (int i = 0; i < kCases; ++i) check_case(random, pools, tally);
  std::printf("%s: %d calls computed, %d refused\n", compress_isas(), tally.computed, tally.refused);
}

}  // namespace
}  // namespace compress

int main() {
  compress::test();
  return 0;
}
