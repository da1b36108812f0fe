// compress_vqmatmul under every instruction set, against plain loops: random calls, broken inputs, malformed arguments.
#include "common/expected.h"

namespace compress {
namespace {

constexpr int kCases = 800;
constexpr int64_t kMostWork = 1500000;  // multiply-adds

// Panels of at most 512 positions begin at every eighth vector and at pairs of quads.
const char* refusal(const VectorWeight& weight) {
  if (weight.raw.mode == COMPRESS_MODE_EXACT)
    for (float value : *weight.codebook)
      if (value != std::nearbyint(value)) return "the codebook is not whole";
  int64_t step = 8 * weight.raw.d;
  while (step % 32) step *= 2;
  return step > 512 ? "vectors do not divide into panels" : nullptr;
}

void check_case(Random& random, const Pools& pools, Tally& tally) {
  int64_t rows, n, k;
  do {
    rows = pick<int64_t>(random, {1, 2, 7, 8, 9, 31, 33, 401});
    n = pick<int64_t>(random, {1, 31, 63, 65, 130});
    k = pick<int64_t>(random, {1, 3, 31, 100, 401, 1152});
  } while (rows * n * k > kMostWork && !chance(random, 20));
  const bool usual = chance(random, 3);  // expanded in a way of their own
  const int bits = usual ? 8 : int(random.whole(1, 8));
  const int64_t d = usual ? 4 : pick<int64_t>(random, {1, 2, 3, 4, 5, 7, 8, 12, 16, 17, 32, 33, 64, 65});
  const int mode = pick(random, {COMPRESS_MODE_EXACT, COMPRESS_MODE_FOLDED});
  const VectorWeight weight(random, n, k, bits, d, mode, mode == COMPRESS_MODE_EXACT && !chance(random, 8));
  Inputs inputs(random, rows, k, 1, n, rows * n, true);
  check_call(
      random, pools, inputs.outputs, refusal(weight), inputs.text() + ", " + weight.text(), tally,
      [&](float* y, const compress_runner* runner, char* message, size_t size) {
        return compress_vqmatmul(inputs.x->data(), rows, &weight.raw, &inputs.raw, y, runner, message, size);
      },
      [&](char* message, size_t size) { return compress_vqmatmul_supported(&weight.raw, &inputs.raw, message, size); },
      [&] { return expected_product(inputs, weight.decode()); });
}

void test_broken_rows(Random& random) {
  for (const std::string& isa : instruction_sets()) {
    compress_use_isa(isa.c_str());
    for (int i = 0; i < 6; ++i) {
      const VectorWeight weight(random, 65, 100, 8, 4, COMPRESS_MODE_FOLDED, false);
      Inputs inputs(random, 9, 100, 1, 65, 9 * 65, true);
      check_broken_rows(random, inputs, 65, isa + ", " + inputs.text(), [&](float* y) {
        const compress_status status =
            compress_vqmatmul(inputs.x->data(), 9, &weight.raw, &inputs.raw, y, nullptr, nullptr, 0);
        CHECK(status == COMPRESS_OK, "%s", isa.c_str());
      });
    }
  }
}

void test_malformed() {
  Random random(9);
  VectorWeight weight(random, 7, 96, 8, 4, COMPRESS_MODE_FOLDED, false);
  Inputs inputs(random, 8, 96, 1, 7, 8 * 7, false);
  Outputs y(8 * 7);
  const auto call = [&](const float* x, int64_t rows, const compress_vectors* w, const compress_options* options,
                        float* to) {
    return [=](char* message, size_t size) {
      return compress_vqmatmul(x, rows, w, options, to, nullptr, message, size);
    };
  };
  float* const x = inputs.x->data();
  CHECK(call(x, 8, &weight.raw, &inputs.raw, y.data())(nullptr, 0) == COMPRESS_OK, "the call that is varied");
  check_refused("no x", call(nullptr, 8, &weight.raw, &inputs.raw, y.data()), COMPRESS_INVALID);
  check_refused("no y", call(x, 8, &weight.raw, &inputs.raw, nullptr), COMPRESS_INVALID);
  check_refused("no weight", call(x, 8, nullptr, &inputs.raw, y.data()), COMPRESS_INVALID);
  check_refused("no options", call(x, 8, &weight.raw, nullptr, y.data()), COMPRESS_INVALID);
  for (int64_t rows : {int64_t(-1), INT64_MIN, INT64_MAX, int64_t(1) << 57})
    check_refused("impossible rows", call(x, rows, &weight.raw, &inputs.raw, y.data()), COMPRESS_INVALID);
  const auto weight_with = [&](const char* what, auto&& change, int wanted = COMPRESS_INVALID) {
    compress_vectors w = weight.raw;
    change(w);
    check_refused(what, call(x, 8, &w, &inputs.raw, y.data()), wanted);
    check_refused(what, [&](char* m, size_t s) { return compress_vqmatmul_supported(&w, &inputs.raw, m, s); }, wanted);
  };
  weight_with("no codes", [](compress_vectors& w) { w.codes = nullptr; });
  weight_with("no codebook", [](compress_vectors& w) { w.codebook = nullptr; });
  weight_with("no scales", [](compress_vectors& w) { w.scales = nullptr; });
  for (int32_t bits : {-1, 0, 9, INT32_MAX}) weight_with("bits", [&](compress_vectors& w) { w.bits = bits; });
  for (int32_t mode : {-1, 2, 7}) weight_with("mode", [&](compress_vectors& w) { w.mode = mode; });
  for (int64_t rows : {0, -1, 2, 6, 8}) weight_with("scale rows", [&](compress_vectors& w) { w.scale_rows = rows; });
  for (int64_t size : {int64_t(0), int64_t(-1), INT64_MIN, INT64_MAX, int64_t(1) << 40}) {
    weight_with("n", [&](compress_vectors& w) { w.n = size; });
    weight_with("k", [&](compress_vectors& w) { w.k = size; }, 0);
    weight_with("d", [&](compress_vectors& w) { w.d = size; });
  }
  weight_with("a codebook that is not whole", [](compress_vectors& w) { w.mode = COMPRESS_MODE_EXACT; },
              COMPRESS_UNSUPPORTED);
  for (float value : {kNan, kInfinity}) {
    (*weight.codebook)[5] = value;
    weight_with("a codebook that is not finite", [](compress_vectors&) {});
  }
}

// A codebook of zeros has no unit of its own.
void test_zeros() {
  Random random(10);
  VectorWeight weight(random, 7, 96, 8, 4, COMPRESS_MODE_FOLDED, false);
  std::fill(weight.codebook->begin(), weight.codebook->end(), 0.0f);
  Inputs inputs(random, 3, 96, 1, 7, 21, false);
  inputs.bias = nullptr;
  inputs.residual = nullptr;
  inputs.connect();
  Outputs y(21);
  CHECK(compress_vqmatmul(inputs.x->data(), 3, &weight.raw, &inputs.raw, y.data(), nullptr, nullptr, 0) == COMPRESS_OK,
        "zeros");
  for (float value : y) CHECK(value == 0.0f, "%g from a codebook of zeros", double(value));
}

void test() {
  const Pools pools;
  Random random(47);
  Tally tally;
  test_malformed();
  test_zeros();
  test_broken_rows(random);
  for (int i = 0; i < kCases; ++i) check_case(random, pools, tally);
  std::printf("%s: %d calls computed, %d refused\n", compress_isas(), tally.computed, tally.refused);
}

}  // namespace
}  // namespace compress

int main() {
  compress::test();
  return 0;
}
