// Random geometries, and the checks that qconv2d and vqconv2d share.
#pragma once

#include "common/expected.h"

namespace compress {

inline std::string describe(const compress_geometry& g) {
  std::ostringstream out;
  out << g.batch << " images " << g.channels << " x " << g.height << " x " << g.width << ", kernel " << g.kernel[0]
      << " x " << g.kernel[1] << ", stride " << g.stride[0] << ", " << g.stride[1] << ", padding " << g.padding[0]
      << ", " << g.padding[1] << ", dilation " << g.dilation[0] << ", " << g.dilation[1] << ", groups " << g.groups;
  return out.str();
}

inline bool fits(const compress_geometry& g) {
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t size = axis ? g.width : g.height;
    if (size + 2 * g.padding[axis] < g.dilation[axis] * (g.kernel[axis] - 1) + 1) return false;
  }
  return true;
}

inline int64_t window_length(const compress_geometry& g) { return g.channels / g.groups * g.kernel[0] * g.kernel[1]; }
inline int64_t output_pixels(const compress_geometry& g) { return extent(g, 0) * extent(g, 1); }

// Images from smaller than a panel of 64 pixels to several panels.
inline compress_geometry random_geometry(Random& random) {
  for (;;) {
    compress_geometry g{};
    g.batch = pick<int64_t>(random, {1, 1, 2, 3, 5});
    g.channels = pick<int64_t>(random, {1, 2, 3, 7, 16, 33, 64});
    g.height = pick<int64_t>(random, {1, 3, 5, 8, 17});
    g.width = pick<int64_t>(random, {1, 4, 7, 8, 19, 63, 64, 65, 130});
    const int64_t square = pick<int64_t>(random, {1, 3, 3, 5});
    const bool same = !chance(random, 3);
    for (int axis = 0; axis < 2; ++axis) {
      g.kernel[axis] = same ? square : random.whole(1, 4);
      g.stride[axis] = same ? pick<int64_t>(random, {1, 1, 2}) : random.whole(1, 3);
      g.padding[axis] = chance(random, 2) ? g.kernel[axis] / 2 : random.whole(0, 3);
      g.dilation[axis] = chance(random, 3) ? random.whole(2, 3) : 1;
    }
    g.groups = g.channels > 1 && chance(random, 4) ? g.channels : 1;
    if (fits(g) && output_pixels(g) * g.batch * window_length(g) < 400000) return g;
  }
}

inline int64_t random_outputs(Random& random, const compress_geometry& g) {
  return g.groups > 1 ? g.channels * random.whole(1, 2) : pick<int64_t>(random, {1, 5, 31, 33, 65});
}

inline Inputs random_images(Random& random, const compress_geometry& g, int64_t n) {
  const int64_t pixels = g.height * g.width;
  return Inputs(random, g.batch, g.channels * pixels, pixels, n, g.batch * n * output_pixels(g), false);
}

// call(x, geometry, options, y, runner, message, size) of one weight [n, window_length]; it computes `g`.
template <typename Call>
void check_malformed_geometry(const compress_geometry& good, int64_t n, const Call& call) {
  Random random(3);
  Inputs inputs = random_images(random, good, n);
  compress_options plain{};
  plain.act_scale_rows = plain.act_zero_rows = 1;
  plain.act_low = -128;
  plain.act_high = 127;
  plain.act_max = 127.0f;
  Outputs y(inputs.outputs);
  CHECK(call(inputs.x->data(), &good, &plain, y.data(), nullptr, 0) == COMPRESS_OK, "the call that is varied");
  const auto refused = [&](const char* what, const float* x, const compress_geometry* g, const compress_options* o,
                           float* to, int wanted) {
    check_refused(what, [&](char* message, size_t size) { return call(x, g, o, to, message, size); }, wanted);
  };
  refused("no x", nullptr, &good, &plain, y.data(), COMPRESS_INVALID);
  refused("no y", inputs.x->data(), &good, &plain, nullptr, COMPRESS_INVALID);
  refused("no geometry", inputs.x->data(), nullptr, &plain, y.data(), COMPRESS_INVALID);
  refused("no options", inputs.x->data(), &good, nullptr, y.data(), COMPRESS_INVALID);
  const auto with = [&](const char* what, auto&& change, int wanted = COMPRESS_INVALID) {
    compress_geometry g = good;
    change(g);
    refused(what, inputs.x->data(), &g, &plain, y.data(), wanted);
  };
  for (int64_t value : {int64_t(0), int64_t(-1), INT64_MIN, INT64_MAX, int64_t(1) << 40}) {
    with("channels", [&](compress_geometry& g) { g.channels = value; });
    with("height", [&](compress_geometry& g) { g.height = value; });
    with("width", [&](compress_geometry& g) { g.width = value; });
    with("groups", [&](compress_geometry& g) { g.groups = value; });
    if (value) with("batch", [&](compress_geometry& g) { g.batch = value; });
    for (int axis = 0; axis < 2; ++axis) {
      with("kernel", [&](compress_geometry& g) { g.kernel[axis] = value; });
      with("stride", [&](compress_geometry& g) { g.stride[axis] = value; });
      with("dilation", [&](compress_geometry& g) { g.dilation[axis] = value; });
      if (value) with("padding", [&](compress_geometry& g) { g.padding[axis] = value; });
    }
  }
  with("sizes that overflow", [](compress_geometry& g) { g.batch = g.height = g.width = int64_t(1) << 30; });
  with("paddings that overflow", [](compress_geometry& g) {
    g.batch = int64_t(1) << 30;
    g.padding[0] = g.padding[1] = 32767;
  });
  with("groups that do not divide", [](compress_geometry& g) { g.groups = g.channels + 1; });
  with("a kernel larger than the image", [](compress_geometry& g) { g.height = 1, g.padding[0] = 0; });
  with("a kernel that k does not fit", [](compress_geometry& g) { g.kernel[0] += 1; });
  with("a dilation that leaves the image", [](compress_geometry& g) { g.dilation[1] = 32767; });
  Guarded<float> some(4);
  std::fill(some.begin(), some.end(), 0.5f);
  const auto options_with = [&](const char* what, auto&& change, int wanted = COMPRESS_INVALID) {
    compress_options options = plain;
    change(options);
    refused(what, inputs.x->data(), &good, &options, y.data(), wanted);
  };
  for (int64_t count : {0, -1, 3}) {
    options_with("act_scale_rows", [&](compress_options& o) { o.act_scale = some.data(), o.act_scale_rows = count; });
    options_with("act_zero_rows", [&](compress_options& o) {
      o.act_scale = o.act_zero_point = some.data(), o.act_zero_rows = count;
    });
  }
  Guarded<float> one_zero(1);
  for (float zero : {0.5f, -129.0f, 128.0f, kNan, kInfinity}) {
    one_zero[0] = zero;
    options_with("a zero point that is no code",
                 [&](compress_options& o) { o.act_scale = some.data(), o.act_zero_point = one_zero.data(); },
                 COMPRESS_UNSUPPORTED);
  }
  options_with("rank without branch", [](compress_options& o) { o.rank = 2; });
  options_with("a low-rank branch", [&](compress_options& o) { o.low_rank_a = o.low_rank_b = some.data(), o.rank = 1; },
               COMPRESS_UNSUPPORTED);
  options_with("activation", [](compress_options& o) { o.activation = 3; });
  options_with("act_max", [](compress_options& o) { o.act_max = 0.0f; });
  compress_geometry none = good;
  none.batch = 0;
  CHECK(call(nullptr, &none, &plain, nullptr, nullptr, 0) == COMPRESS_OK, "no images");
}

}  // namespace compress
