// Which inputs a node may have.
#include <algorithm>
#include <initializer_list>
#include <string>

#include "common/weight_codes.h"
#include "onnxruntime/node.h"

namespace compress {
namespace {

constexpr const char* kNames[kRoles] = {"x",      "codes", "scales",    "zero_points",    "table",
                                        "codebook", "bias",  "act_scale", "act_zero_point", "smooth",
                                        "low_rank_a", "low_rank_b", "global_scale", "residual"};

[[noreturn]] void refuse_shape(Role role, const Tensor& tensor, const std::string& need) {
  fail(COMPRESS_INVALID, "%s %s does not fit: %s", kNames[role], describe(tensor).c_str(), need.c_str());
}

// Of a tensor, where it is there. Extents of -1 are not known and fit anything.
void need_shape(const Inputs& in, Role role, std::initializer_list<int64_t> shape) {
  if (!in[role]) return;
  const Tensor& tensor = *in[role];
  bool fits = tensor.rank == shape.size();
  std::string need = "[";
  size_t i = 0;
  for (const int64_t extent : shape) {
    fits = fits && (extent < 0 || tensor.shape[i] < 0 || tensor.shape[i] == extent);
    need += (i++ ? ", " : "") + (extent < 0 ? std::string("?") : std::to_string(extent));
  }
  if (!fits) refuse_shape(role, tensor, need + "] is needed");
}

void need_type(const Inputs& in, Role role, std::initializer_list<int> types) {
  if (in[role] && std::find(types.begin(), types.end(), in[role]->type) == types.end())
    fail(COMPRESS_INVALID, "%s has ONNX type %d, which it cannot have", kNames[role], in[role]->type);
}

// Of two axes that broadcast against [rows, columns].
void need_broadcast(const Inputs& in, Role role, int64_t rows, int64_t columns) {
  if (!in[role]) return;
  const Tensor& t = *in[role];
  const auto spreads = [](int64_t extent, int64_t to) { return extent == 1 || extent < 0 || extent == to; };
  if (t.rank == 2 && spreads(t.shape[0], rows) && spreads(t.shape[1], columns)) return;
  refuse_shape(role, t, "it must broadcast against [" + std::to_string(rows) + ", " + std::to_string(columns) + "]");
}

void need_broadcast_to(const Inputs& in, Role role, const Tensor& target) {
  if (!in[role]) return;
  const Tensor& t = *in[role];
  bool fits = t.rank <= target.rank;
  for (size_t i = 0; fits && i < t.rank; ++i) {
    const int64_t extent = t.shape[t.rank - 1 - i], limit = target.shape[target.rank - 1 - i];
    fits = extent == 1 || extent < 0 || limit < 0 || extent == limit;
  }
  if (!fits) refuse_shape(role, t, "it must broadcast against " + describe(target));
}

}  // namespace

Tensor scale_target(const Tensor& x, bool convolution, int64_t groups) {
  Tensor target = x;
  if (convolution)
    for (size_t i = 1; i < 4; ++i) target.shape[i] = 1;
  else
    target.shape[target.rank - 1] = groups;
  return target;
}

void Node::check_presence(const bool* present) const {
  for (size_t i = 0; i < spec_.input_count; ++i)
    if (!spec_.inputs[i].optional && !present[spec_.inputs[i].role])
      fail(COMPRESS_INVALID, "%s is missing", kNames[spec_.inputs[i].role]);
  if (present[kTable] && present[kZeroPoints]) fail(COMPRESS_INVALID, "table and zero_points exclude each other");
  if (present[kLowRankA] != present[kLowRankB]) fail(COMPRESS_INVALID, "low_rank_a and low_rank_b go together");
  if (present[kLowRankA] && spec_.convolution && attributes_.geometry.groups != 1)
    fail(COMPRESS_INVALID, "a low-rank branch needs groups=1");
  if (present[kActZeroPoint] && !present[kActScale]) fail(COMPRESS_INVALID, "act_zero_point without act_scale");
  const ActivationFormat& format = *attributes_.act_format;
  if (present[kActScale] && format.kind == ActivationFormat::kNone)
    fail(COMPRESS_INVALID, "act_scale with act_format 'none'");
  if (present[kActZeroPoint] && format.kind == ActivationFormat::kFloat)
    fail(COMPRESS_INVALID, "%s activations have no zero point", format.name);
}

int64_t Node::contracted(const Tensor& x) const {
  if (!spec_.convolution) return x.shape[x.rank - 1];
  const compress_geometry& g = attributes_.geometry;
  if (x.shape[1] < 0) return -1;
  int64_t k = 0;
  if (__builtin_mul_overflow(x.shape[1] / g.groups, g.kernel[0] * g.kernel[1], &k))
    fail(COMPRESS_INVALID, "x %s has more positions under the kernel than can be counted", describe(x).c_str());
  return k;
}

void Node::check_inputs(const Inputs& in) const {
  const compress_geometry& g = attributes_.geometry;
  int64_t k = -1, groups = -1;
  if (in[kX]) {
    const Tensor& x = *in[kX];
    if (spec_.convolution ? x.rank != 4 : x.rank < 1)
      refuse_shape(kX, x, spec_.convolution ? "four axes are needed" : "an axis is needed");
    if (spec_.convolution && x.shape[1] > 0 && x.shape[1] % g.groups)
      fail(COMPRESS_INVALID, "x %s in %lld groups", describe(x).c_str(), (long long)g.groups);
    for (size_t i = spec_.convolution ? 1 : x.rank - 1; i < x.rank; ++i)
      if (x.shape[i] == 0) refuse_shape(kX, x, "only the axes of rows may be empty");
    k = contracted(x);
    if (k > kLargestBlock) fail(COMPRESS_INVALID, "sums over %lld positions", (long long)k);
    groups = attributes_.act_group ? (k < 0 ? -1 : blocks_of(k, attributes_.act_group)) : 1;
  }
  if (spec_.vectors)
    check_vectors(in, k);
  else
    check_weight(in, k);
  const int64_t n = in[kCodes] ? in[kCodes]->shape[0] : -1;
  if (spec_.convolution && n > 0 && n % g.groups)
    fail(COMPRESS_INVALID, "%lld output channels in %lld groups", (long long)n, (long long)g.groups);
  const int64_t rank = in[kLowRankA] && in[kLowRankA]->rank == 2 ? in[kLowRankA]->shape[1] : -1;
  if (rank == 0) fail(COMPRESS_INVALID, "a low-rank branch of rank 0");
  need_type(in, kBias, {ort::kFloat, ort::kFloat16});
  need_type(in, kLowRankA, {ort::kFloat, ort::kFloat16});
  need_type(in, kLowRankB, {ort::kFloat, ort::kFloat16});
  need_shape(in, kBias, {n});
  need_shape(in, kSmooth, {in[kX] ? in[kX]->shape[spec_.convolution ? 1 : in[kX]->rank - 1] : -1});
  need_shape(in, kLowRankA, {k, -1});
  need_shape(in, kLowRankB, {rank, n});
  if (!in[kX]) return;
  const Tensor target = scale_target(*in[kX], spec_.convolution, groups);
  need_broadcast_to(in, kActScale, target);
  need_broadcast_to(in, kActZeroPoint, target);
  check_output(in, n);
}

Tensor Node::output_of(const Tensor& x, int64_t n) const {
  Tensor y = x;
  if (!spec_.convolution) {
    y.shape[y.rank - 1] = n;
    return y;
  }
  const compress_geometry& g = attributes_.geometry;
  y.shape[1] = n;
  for (int i = 0; i < 2; ++i) {
    const int64_t size = x.shape[2 + i], reach = g.dilation[i] * (g.kernel[i] - 1) + 1;
    if (size < 0) continue;
    if (size + 2 * g.padding[i] < reach)
      fail(COMPRESS_INVALID, "x %s is smaller than a kernel that reaches %lld", describe(x).c_str(), (long long)reach);
    y.shape[2 + i] = (size + 2 * g.padding[i] - reach) / g.stride[i] + 1;
  }
  return y;
}

void Node::check_output(const Inputs& in, int64_t n) const {
  const Tensor y = output_of(*in[kX], n);
  int64_t product = int64_t(sizeof(float));
  for (size_t i = 0; i < y.rank; ++i)
    if (y.shape[i] > 0 && __builtin_mul_overflow(product, y.shape[i], &product))
      fail(COMPRESS_INVALID, "the output has more elements than can be counted");
  if (!in[kResidual]) return;
  const Tensor& r = *in[kResidual];
  bool fits = r.rank == y.rank;
  for (size_t i = 0; fits && i < y.rank; ++i) fits = r.shape[i] < 0 || y.shape[i] < 0 || r.shape[i] == y.shape[i];
  if (!fits) refuse_shape(kResidual, r, "the output is " + describe(y));
}

void Node::check_weight(const Inputs& in, int64_t k) const {
  const Attributes& a = attributes_;
  need_type(in, kScales, {ort::kFloat, ort::kFloat16, ort::kFloat8E4M3, ort::kUint8});
  need_shape(in, kTable, {int64_t(1) << a.bits});
  need_shape(in, kCodes, {-1, k < 0 ? -1 : blocks_of(k, a.block_size), (a.block_size * a.bits + 7) / 8});
  if (const Tensor* global = in[kGlobalScale])
    for (size_t i = 0; i < global->rank; ++i)
      if (global->shape[i] >= 0 && global->shape[i] != 1) refuse_shape(kGlobalScale, *global, "one number is needed");
  const Tensor* scales = in[kScales];
  if (a.mode == COMPRESS_MODE_FOLDED && a.bits > kMostFoldedBits && !has_table_)
    if (scales && scales->rank == 2 && scales->shape[1] > 1)
      fail(COMPRESS_INVALID, "weights of %lld bits cannot be folded into an int8 panel: use mode exact",
           (long long)a.bits);
  if (!in[kCodes] || in[kCodes]->shape[0] < 0 || in[kCodes]->shape[1] < 0) return;
  if (in[kCodes]->shape[0] == 0 || in[kCodes]->shape[1] == 0) refuse_shape(kCodes, *in[kCodes], "it is empty");
  need_broadcast(in, kScales, in[kCodes]->shape[0], in[kCodes]->shape[1]);
  need_broadcast(in, kZeroPoints, in[kCodes]->shape[0], in[kCodes]->shape[1]);
}

void Node::check_zero_points(const Inputs& in) const {
  if (const Tensor* zeros = in[kZeroPoints])
    compress::check_zero_points(zeros->as<uint8_t>(), zeros->count(), int(attributes_.bits));
}

void Node::check_vectors(const Inputs& in, int64_t k) const {
  const Attributes& a = attributes_;
  need_type(in, kScales, {ort::kFloat, ort::kFloat16});
  need_type(in, kCodebook, {ort::kFloat, ort::kFloat16, ort::kInt8});
  need_shape(in, kCodebook, {int64_t(1) << a.bits, a.d});
  need_shape(in, kCodes, {-1, k < 0 ? -1 : (blocks_of(k, a.d) * a.bits + 7) / 8});
  if (!in[kCodes] || in[kCodes]->shape[0] < 0) return;
  if (in[kCodes]->shape[0] == 0 || in[kCodes]->shape[1] == 0) refuse_shape(kCodes, *in[kCodes], "it is empty");
  need_broadcast(in, kScales, in[kCodes]->shape[0], 1);
}

}  // namespace compress
