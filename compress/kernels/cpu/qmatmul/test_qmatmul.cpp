// compress_qmatmul under every instruction set, against plain loops: random calls, broken inputs, malformed arguments.
#include "common/expected.h"

namespace compress {
namespace {

constexpr int kCases = 1200;
constexpr double kUsualSize = 1.5e6;  // multiply-adds; one call in 20 may be larger

bool panels_divide(const PackedWeight& weight) {
  const int64_t block = weight.raw.block_size;
  if (!weight.grouped() || block <= 512) return true;
  return block % 32 == 0;
}

const char* refusal(const PackedWeight& weight) {
  if (const char* reason = weight.refusal()) return reason;
  return panels_divide(weight) ? nullptr : "blocks do not divide into panels";
}

struct Shape {
  int64_t rows, n, k;
};

Shape random_shape(Random& random) {
  for (;;) {
    const Shape s{pick<int64_t>(random, {1, 2, 7, 8, 9, 31, 33, 401}), pick<int64_t>(random, {1, 31, 63, 65, 130}),
                  pick<int64_t>(random, {1, 3, 31, 63, 100, 401, 1152})};
    if (double(s.rows) * double(s.n) * double(s.k) <= kUsualSize || chance(random, 20)) return s;
  }
}

void check_weight(Random& random, const Pools& pools, int64_t rows, const PackedWeight& weight, Tally& tally) {
  const compress_weight& w = weight.raw;
  Inputs inputs(random, rows, w.k, 1, w.n, rows * w.n, true);
  check_call(
      random, pools, inputs.outputs, refusal(weight), inputs.text() + ", " + weight.text(), tally,
      [&](float* y, const compress_runner* runner, char* message, size_t size) {
        return compress_qmatmul(inputs.x->data(), rows, &w, &inputs.raw, y, runner, message, size);
      },
      [&](char* message, size_t size) { return compress_qmatmul_supported(&w, &inputs.raw, message, size); },
      [&] { return expected_product(inputs, weight.decode()); });
}

// Few rows of plain 4- and 8-bit weights are computed in a way of their own, which random weights rarely take.
void test_few_rows(Random& random, const Pools& pools, Tally& tally) {
  for (int i = 0; i < 300; ++i) {
    const int64_t k = pick<int64_t>(random, {1, 31, 100, 127, 128, 129, 401, 1152});
    const int64_t n = pick<int64_t>(random, {1, 3, 31, 65, 130});
    const int bits = chance(random, 3) ? 8 : 4;
    const int64_t block = bits == 8 || chance(random, 3) ? k : pick<int64_t>(random, {16, 32, 64, 128, 256});
    const Table table = bits == 4 && chance(random, 2) ? Table::fp4 : Table::none;
    const PackedWeight weight(random, n, k, bits, block, table, COMPRESS_MODE_EXACT);
    check_weight(random, pools, random.whole(1, 9), weight, tally);
  }
}

// The largest sums there are: 32 bits must hold them.
void check_longest(Random& random, const Pools& pools, int64_t rows, int bits, const ActivationFormat& format,
                   Tally& tally) {
  constexpr int64_t kLongest = 65535;
  PackedWeight weight(random, 3, kLongest, bits, kLongest, Table::none, COMPRESS_MODE_EXACT);
  for (size_t i = 0; i < weight.codes->size(); ++i) (*weight.codes)[i] = i < weight.codes->size() / 3 ? 0 : 255;
  if (weight.zero_points)
    for (uint8_t& zero : *weight.zero_points) zero = uint8_t(random.whole(0, 1) * ((1 << bits) - 1));
  Inputs inputs(random, rows, kLongest, 1, 3, 3 * rows, false);
  inputs.format = format.name;
  inputs.raw.act_low = format.low;
  inputs.raw.act_high = format.high;
  inputs.raw.act_max = format.most;
  inputs.act_zero_point = nullptr;
  inputs.connect();
  for (int64_t row = 0; row < rows; ++row)
    std::fill_n(&(*inputs.x)[size_t(row * kLongest)], kLongest, row % 2 ? -2.0f : 3.0f);
  check_call(
      random, pools, inputs.outputs, nullptr, inputs.text() + ", " + weight.text(), tally,
      [&](float* y, const compress_runner* runner, char* message, size_t size) {
        return compress_qmatmul(inputs.x->data(), rows, &weight.raw, &inputs.raw, y, runner, message, size);
      },
      [&](char* message, size_t size) { return compress_qmatmul_supported(&weight.raw, &inputs.raw, message, size); },
      [&] { return expected_product(inputs, weight.decode()); });
}

void test_longest(Random& random, const Pools& pools, Tally& tally) {
  for (int64_t rows : {2, 9})
    for (int bits : {4, 8})
      for (const ActivationFormat& format : kFormats) check_longest(random, pools, rows, bits, format, tally);
}

void test_broken_rows(Random& random) {
  for (const std::string& isa : instruction_sets()) {
    compress_use_isa(isa.c_str());
    for (int64_t rows : {2, 9, 33})
      for (int i = 0; i < 6; ++i) {
        const int64_t k = pick<int64_t>(random, {1, 31, 100, 401});
        PackedWeight weight(random, 65, k, 4, pick<int64_t>(random, {k, 32}), pick(random, {Table::none, Table::fp4}),
                            pick(random, {COMPRESS_MODE_EXACT, COMPRESS_MODE_FOLDED}));
        Inputs inputs(random, rows, k, 1, 65, rows * 65, true);
        check_broken_rows(random, inputs, 65, isa + ", " + inputs.text() + ", " + weight.text(), [&](float* y) {
          const compress_status status =
              compress_qmatmul(inputs.x->data(), rows, &weight.raw, &inputs.raw, y, nullptr, nullptr, 0);
          CHECK(status == COMPRESS_OK, "%s", isa.c_str());
        });
      }
  }
}

// A scale that is not finite spoils the outputs of its channel and no others, folded or not.
void test_broken_scales(Random& random) {
  constexpr int64_t kOutputs = 65, kLength = 256, kRowsOfX = 9, kChannel = 3;
  for (const std::string& isa : instruction_sets()) {
    compress_use_isa(isa.c_str());
    for (int32_t mode : {COMPRESS_MODE_EXACT, COMPRESS_MODE_FOLDED})
      for (float value : {kNan, -kNan, kInfinity, -kInfinity})
        for (int64_t block : {0, 5}) {
          PackedWeight weight(random, kOutputs, kLength, 4, 32, Table::none, mode);
          Guarded<float> scales(size_t(kOutputs * 8));
          for (float& scale : scales) scale = random.real(0.5f, 1.0f);
          weight.raw.scales = scales.data();
          weight.raw.scale_rows = kOutputs;
          weight.raw.scale_columns = 8;
          Inputs inputs(random, kRowsOfX, kLength, 1, kOutputs, kRowsOfX * kOutputs, false);
          const auto compute = [&] {
            Outputs y(inputs.outputs);
            const compress_status status =
                compress_qmatmul(inputs.x->data(), kRowsOfX, &weight.raw, &inputs.raw, y.data(), nullptr, nullptr, 0);
            CHECK(status == COMPRESS_OK, "%s", isa.c_str());
            return std::vector<float>(y.begin(), y.end());
          };
          const std::vector<float> clean = compute();
          scales[size_t(kChannel * 8 + block)] = value;
          const std::vector<float> broken = compute();
          double largest = 0.0;
          for (float y : clean) largest = std::max(largest, std::fabs(double(y)));
          const double bound = 1e-4 * largest;  // another order of additions
          for (int64_t i = 0; i < inputs.outputs; ++i) {
            const double found = broken[size_t(i)], before = clean[size_t(i)];
            if (i % kOutputs != kChannel && mode == COMPRESS_MODE_EXACT)
              CHECK(found == before, "%s: y[%lld]", isa.c_str(), static_cast<long long>(i));
            else if (i % kOutputs != kChannel)
              CHECK(std::fabs(found - before) <= bound, "%s: y[%lld] is %g, not %g (up to %g)", isa.c_str(),
                    static_cast<long long>(i), found, before, largest);
            else if (std::isnan(value))
              CHECK(std::isnan(found), "%s: NaN is not seen in y[%lld]", isa.c_str(), static_cast<long long>(i));
          }
        }
  }
}

// Tables too small to be divided by fold to zeros.
void test_tiny_tables(Random& random) {
  for (float most : {0.0f, 1e-45f, 1e-40f, 3e-38f})
    for (int64_t block : {64, 32}) {
      PackedWeight weight(random, 5, 64, 4, block, Table::nf4, COMPRESS_MODE_FOLDED);
      for (float& entry : *weight.table) entry *= most;
      Inputs inputs(random, 2, 64, 1, 5, 10, false);
      inputs.bias.reset();
      inputs.residual.reset();
      inputs.connect();
      Outputs y(10);
      CHECK(compress_qmatmul(inputs.x->data(), 2, &weight.raw, &inputs.raw, y.data(), nullptr, nullptr, 0) ==
                COMPRESS_OK, "a table of up to %g", double(most));
      for (float value : y) CHECK(std::fabs(value) < 1e-25f, "a table of up to %g: y %g", double(most), double(value));
    }
}

// No rows are no work, and need no pointers.
void test_no_rows() {
  Random random(1);
  PackedWeight weight(random, 7, 32, 4, 32, Table::none, COMPRESS_MODE_EXACT);
  Inputs inputs(random, 1, 32, 1, 7, 7, false);
  inputs.raw.act_scale_rows = inputs.raw.act_zero_rows = 1;
  CHECK(compress_qmatmul(nullptr, 0, &weight.raw, &inputs.raw, nullptr, nullptr, nullptr, 0) == COMPRESS_OK, "no rows");
  double seconds = -1.0;
  CHECK(compress_time_qmatmul(nullptr, 0, &weight.raw, &inputs.raw, nullptr, nullptr, &seconds, nullptr, 0) ==
            COMPRESS_OK && seconds == 0.0, "no rows took %g s", seconds);
}

void test_malformed() {
  Random random(7);
  const PackedWeight weight(random, 7, 96, 4, 32, Table::none, COMPRESS_MODE_EXACT);
  Guarded<float> x(8 * 96);
  Outputs y(8 * 7);
  compress_options plain{};
  plain.act_scale_rows = plain.act_zero_rows = 1;
  plain.act_low = -128;
  plain.act_high = 127;
  plain.act_max = 127.0f;
  Guarded<float> scales(21), some(96 * 4);
  Guarded<uint8_t> zeros(21);
  std::fill(scales.begin(), scales.end(), 0.01f);
  std::fill(some.begin(), some.end(), 0.5f);
  compress_weight good = weight.raw;
  good.scales = scales.data();
  good.scale_rows = 7;
  good.scale_columns = 3;
  good.zero_points = nullptr;
  std::fill(x.begin(), x.end(), 1.0f);
  const float* const values = x.data();
  const auto call = [&](const float* from, int64_t rows, const compress_weight* w, const compress_options* options,
                        float* to) {
    return [=](char* message, size_t size) {
      return compress_qmatmul(from, rows, w, options, to, nullptr, message, size);
    };
  };
  CHECK(call(values, 8, &good, &plain, y.data())(nullptr, 0) == COMPRESS_OK, "the call that is varied");
  check_refused("no x", call(nullptr, 8, &good, &plain, y.data()), COMPRESS_INVALID);
  check_refused("no y", call(values, 8, &good, &plain, nullptr), COMPRESS_INVALID);
  check_refused("no weight", call(values, 8, nullptr, &plain, y.data()), COMPRESS_INVALID);
  check_refused("no options", call(values, 8, &good, nullptr, y.data()), COMPRESS_INVALID);
  for (int64_t rows : {int64_t(-1), INT64_MIN, INT64_MAX, INT64_MAX / 96, int64_t(1) << 57, int64_t(1) << 48})
    check_refused("impossible rows", call(values, rows, &good, &plain, y.data()), COMPRESS_INVALID);

  const auto weight_with = [&](const char* what, auto&& change, int wanted = COMPRESS_INVALID) {
    compress_weight w = good;
    change(w);
    check_refused(what, call(values, 8, &w, &plain, y.data()), wanted);
    check_refused(what, [&](char* m, size_t s) { return compress_qmatmul_supported(&w, &plain, m, s); }, wanted);
  };
  weight_with("no codes", [](compress_weight& w) { w.codes = nullptr; });
  weight_with("no scales", [](compress_weight& w) { w.scales = nullptr; });
  for (int32_t bits : {-1, 0, 9, INT32_MAX}) weight_with("bits", [&](compress_weight& w) { w.bits = bits; });
  for (int32_t mode : {-1, 2, 7}) weight_with("mode", [&](compress_weight& w) { w.mode = mode; });
  for (int64_t size : {int64_t(0), int64_t(-1), INT64_MIN, INT64_MAX, int64_t(1) << 40}) {
    weight_with("n", [&](compress_weight& w) { w.n = size; });
    weight_with("k", [&](compress_weight& w) { w.k = size; }, 0);
    weight_with("n and k", [&](compress_weight& w) { w.n = w.k = size; }, 0);
    weight_with("block_size", [&](compress_weight& w) { w.block_size = size; });
  }
  weight_with("k of which sums overflow", [](compress_weight& w) { w.k = 65536; }, 0);
  for (int64_t count : {0, -1, 2, 6, 8}) {
    weight_with("scale rows", [&](compress_weight& w) { w.scale_rows = count; });
    weight_with("scale columns", [&](compress_weight& w) { w.scale_columns = count; });
    weight_with("zero rows", [&](compress_weight& w) { w.zero_points = zeros.data(), w.zero_rows = count; });
    weight_with("zero columns", [&](compress_weight& w) {
      w.zero_points = zeros.data(), w.zero_rows = 1, w.zero_columns = count;
    });
  }
  std::fill(zeros.begin(), zeros.end(), uint8_t(15));
  const auto zeros_of = [&](int32_t bits, uint8_t last) {
    return [&zeros, bits, last](compress_weight& w) {
      zeros[20] = last;
      w.bits = bits, w.zero_points = zeros.data(), w.zero_rows = 7, w.zero_columns = 3;
    };
  };
  for (int last : {16, 17, 128, 255}) {
    compress_weight w = good;
    zeros_of(4, uint8_t(last))(w);
    check_refused("a zero point that is no code", call(values, 8, &w, &plain, y.data()), COMPRESS_INVALID);
    w.mode = COMPRESS_MODE_FOLDED;
    check_refused("a zero point that is no code, folded", call(values, 8, &w, &plain, y.data()), COMPRESS_INVALID);
  }
  compress_weight largest = good;
  zeros_of(4, 15)(largest);
  CHECK(call(values, 8, &largest, &plain, y.data())(nullptr, 0) == COMPRESS_OK, "zero points of 15");
  Guarded<float> table(16);
  std::copy(kFp4, kFp4 + 16, table.begin());
  weight_with("table and zero points", [&](compress_weight& w) {
    w.table = table.data(), w.zero_points = zeros.data(), w.zero_rows = w.zero_columns = 1;
  });
  for (float value : {kNan, kInfinity}) {
    table[3] = value;
    for (int32_t mode : {COMPRESS_MODE_EXACT, COMPRESS_MODE_FOLDED})
      weight_with("a table that is not finite", [&](compress_weight& w) { w.table = table.data(), w.mode = mode; }, 0);
  }

  const auto options_with = [&](const char* what, auto&& change, int wanted = COMPRESS_INVALID) {
    compress_options options = plain;
    change(options);
    check_refused(what, call(values, 8, &good, &options, y.data()), wanted);
  };
  for (int64_t count : {0, -1, 2, 7, 9}) {
    options_with("act_scale_rows", [&](compress_options& o) { o.act_scale = some.data(), o.act_scale_rows = count; });
    options_with("act_zero_rows", [&](compress_options& o) {
      o.act_scale = o.act_zero_point = some.data(), o.act_zero_rows = count;
    });
  }
  options_with("zero point without scale", [&](compress_options& o) { o.act_zero_point = some.data(); });
  Guarded<float> one_zero(1), no_zeros(8);
  for (float zero : {0.5f, -129.0f, 128.0f, kNan, kInfinity, -kInfinity}) {
    one_zero[0] = no_zeros[7] = zero;
    options_with("a zero point that is no code",
                 [&](compress_options& o) { o.act_scale = some.data(), o.act_zero_point = one_zero.data(); },
                 COMPRESS_UNSUPPORTED);
    std::fill_n(no_zeros.begin(), 7, 0.0f);
    options_with("one of eight zero points", [&](compress_options& o) {
      o.act_scale = some.data(), o.act_zero_point = no_zeros.data(), o.act_zero_rows = 8;
    }, COMPRESS_UNSUPPORTED);
  }
  options_with("one half of low rank", [&](compress_options& o) { o.low_rank_a = some.data(), o.rank = 4; });
  options_with("the other half", [&](compress_options& o) { o.low_rank_b = some.data(), o.rank = 4; });
  options_with("rank without branch", [](compress_options& o) { o.rank = 4; });
  for (int64_t rank : {int64_t(0), int64_t(-4), INT64_MIN, INT64_MAX, int64_t(1) << 40})
    options_with("rank", [&](compress_options& o) { o.low_rank_a = o.low_rank_b = some.data(), o.rank = rank; }, 0);
  for (int32_t kind : {-1, 3, 99}) options_with("activation", [&](compress_options& o) { o.activation = kind; });
  for (float most : {0.0f, -1.0f, kNan, kInfinity})
    options_with("act_max", [&](compress_options& o) { o.act_max = most; });
  options_with("codes that run backwards", [](compress_options& o) { o.act_low = 5, o.act_high = 4; }, 0);
  options_with("codes of 9 bits", [](compress_options& o) { o.act_low = -256, o.act_high = 255; }, 0);
  options_with("codes of 9 bits", [](compress_options& o) { o.act_low = -128, o.act_high = 255; }, 0);
  check_refused("an unknown instruction set", [](char* message, size_t size) {
    if (size > 1) message[0] = '-', message[1] = 0;
    return compress_use_isa("abacus");
  }, COMPRESS_UNSUPPORTED);
}

void test() {
  const Pools pools;
  Random random(41);
  Tally tally;
  test_malformed();
  test_no_rows();
  test_broken_rows(random);
  test_broken_scales(random);
  test_tiny_tables(random);
  test_few_rows(random, pools, tally);
  test_longest(random, pools, tally);
  for (int i = 0; i < kCases; ++i) {
    const Shape shape = random_shape(random);
    check_weight(random, pools, shape.rows, random_weight(random, shape.n, shape.k), tally);
  }
  std::printf("%s: %d calls computed, %d refused\n", compress_isas(), tally.computed, tally.refused);
}

}  // namespace
}  // namespace compress

int main() {
  compress::test();
  return 0;
}
