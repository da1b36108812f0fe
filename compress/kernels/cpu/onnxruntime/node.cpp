#include "onnxruntime/node.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>

#include "onnxruntime/fallback.h"

namespace compress {
namespace {

constexpr int64_t kLargestBlock = int64_t(1) << 31;
constexpr int64_t kLargestGeometry = 4096;  // of kernel, stride, padding and dilation: no layer comes near it
constexpr size_t kLongestText = 64;
constexpr size_t kConvertedAtOnce = size_t(1) << 16;
constexpr int kMostFoldedBits = 6;

constexpr InputSpec kMatmulInputs[] = {
    {kX, ort::kFloat, false},          {kCodes, ort::kUint8, false},     {kScales, ort::kUndefined, false},
    {kZeroPoints, ort::kUint8, true},  {kTable, ort::kFloat, true},      {kBias, ort::kUndefined, true},
    {kActScale, ort::kFloat, true},    {kActZeroPoint, ort::kFloat, true}, {kSmooth, ort::kFloat, true},
    {kLowRankA, ort::kUndefined, true}, {kLowRankB, ort::kUndefined, true}, {kGlobalScale, ort::kFloat, true},
    {kResidual, ort::kFloat, true},
};
constexpr InputSpec kVectorInputs[] = {
    {kX, ort::kFloat, false},          {kCodes, ort::kUint8, false},       {kCodebook, ort::kUndefined, false},
    {kScales, ort::kUndefined, false}, {kBias, ort::kUndefined, true},     {kActScale, ort::kFloat, true},
    {kActZeroPoint, ort::kFloat, true}, {kSmooth, ort::kFloat, true},      {kLowRankA, ort::kUndefined, true},
    {kLowRankB, ort::kUndefined, true}, {kResidual, ort::kFloat, true},
};
constexpr size_t kMatmulCount = sizeof kMatmulInputs / sizeof *kMatmulInputs;
constexpr size_t kVectorCount = sizeof kVectorInputs / sizeof *kVectorInputs;

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

// Text of a model in a message: what is not ASCII could break whoever decodes it.
std::string printable(std::string text) {
  for (char& c : text)
    if (c < ' ' || c > '~') c = '?';
  return text;
}

int64_t blocks_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

// The activation scales' target: one scale for each group of each row, or for each image.
Tensor scale_target(const Tensor& x, bool convolution, int64_t groups) {
  Tensor target = x;
  if (convolution)
    for (size_t i = 1; i < 4; ++i) target.shape[i] = 1;
  else
    target.shape[target.rank - 1] = groups;
  return target;
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

// Values spread over `target`, in its order.
std::vector<float> expand(const Tensor& tensor, const Tensor& target) {
  std::vector<float> out(size_t(target.count()));
  const float* values = tensor.as<float>();
  for (size_t i = 0; i < out.size(); ++i) {
    size_t rest = i, place = 0, step = 1;
    for (size_t axis = 0; axis < target.rank; ++axis) {
      const size_t limit = size_t(target.shape[target.rank - 1 - axis]), index = rest % limit;
      rest /= limit;
      if (axis >= tensor.rank) continue;
      const size_t extent = size_t(tensor.shape[tensor.rank - 1 - axis]);
      if (extent > 1) place += index * step;
      step *= extent;
    }
    out[i] = values[place];
  }
  return out;
}

// onnxruntime's threads, for the duration of one call.
struct Threads {
  const ort::Api& api;
  const ort::KernelContext* context;

  struct Task {
    compress_body body;
    void* context;
  };

  static void run(void* self, compress_body body, void* context, size_t count) {
    const auto* threads = static_cast<const Threads*>(self);
    Task task{body, context};
    const auto one = [](void* user, size_t i) {
      const auto* what = static_cast<const Task*>(user);
      what->body(what->context, i);
    };
    // Tasks are few and about equal; handed out one by one they also fill the gaps that other processes tear.
    const ort::Status status = threads->api.parallel_for(threads->context, one, count, 0, &task);
    if (status) threads->api.release_status(status);
  }
};

template <typename Work>
void in_pieces(size_t count, const compress_runner* runner, Work&& work) {
  const size_t pieces = (count + kConvertedAtOnce - 1) / kConvertedAtOnce;
  auto piece = [&](size_t p) {
    const size_t end = std::min(count, (p + 1) * kConvertedAtOnce);
    for (size_t i = p * kConvertedAtOnce; i < end; ++i) work(i);
  };
  using Piece = decltype(piece);
  if (!runner || pieces < 2) {
    for (size_t p = 0; p < pieces; ++p) piece(p);
    return;
  }
  runner->run(runner->self, [](void* context, size_t p) { (*static_cast<Piece*>(context))(p); }, &piece, pieces);
}

}  // namespace

const OperatorSpec kOperators[4] = {
    {"QMatMul", false, false, kMatmulInputs, kMatmulCount},
    {"QConv2d", true, false, kMatmulInputs, kMatmulCount},
    {"VQMatMul", false, true, kVectorInputs, kVectorCount},
    {"VQConv2d", true, true, kVectorInputs, kVectorCount},
};

Node::Node(const ort::Api& api, const OperatorSpec& spec, const ort::KernelInfo* info, Execution how)
    : api_(api), spec_(spec), how_(how) {
  title_ = std::string("compress::") + spec.name;
  size_t size = 0;
  check(api_, api_.node_name(info, nullptr, &size));
  std::string name(size, '\0');
  if (size) check(api_, api_.node_name(info, &name[0], &size));
  name.resize(std::strlen(name.c_str()));
  if (!name.empty()) title_ += " '" + printable(name.substr(0, 100)) + "'";
  try {
    read_attributes(info);
    read_constants(info);
  } catch (const Failure& failure) {
    throw Failure(failure.status(), title_ + ": " + failure.what());
  }
}

void Node::read_attributes(const ort::KernelInfo* info) {
  constexpr int64_t zero = 0, one = 1;
  Attributes& a = attributes_;
  a.bits = integer(info, "bits", nullptr);
  if (a.bits < 1 || a.bits > 8) fail(COMPRESS_INVALID, "bits=%lld: codes have 1 to 8", (long long)a.bits);
  const char* length = spec_.vectors ? "d" : "block_size";
  int64_t& block = spec_.vectors ? a.d : a.block_size;
  block = integer(info, length, nullptr);
  if (block < 1 || block > kLargestBlock) fail(COMPRESS_INVALID, "%s=%lld is out of range", length, (long long)block);
  const std::string format = text(info, "act_format", "none");
  a.act_format = find_activation_format(format.c_str());
  if (!a.act_format) fail(COMPRESS_INVALID, "act_format '%s' is not known", format.c_str());
  a.act_group = integer(info, "act_group", &zero);
  if (a.act_group < 0 || a.act_group > kLargestBlock || (a.act_group && spec_.convolution))
    fail(COMPRESS_INVALID, "act_group=%lld: at least 0, and 0 for convolutions", (long long)a.act_group);
  const std::string mode = text(info, "mode", "exact");
  if (mode != "exact" && mode != "folded") fail(COMPRESS_INVALID, "mode '%s' is not exact or folded", mode.c_str());
  a.mode = mode == "folded" ? COMPRESS_MODE_FOLDED : COMPRESS_MODE_EXACT;
  const std::string activation = text(info, "activation", "none");
  if (activation == "gelu_tanh")
    a.activation = COMPRESS_ACTIVATION_GELU_TANH;
  else if (activation == "silu")
    a.activation = COMPRESS_ACTIVATION_SILU;
  else if (activation != "none")
    fail(COMPRESS_INVALID, "activation '%s' is not none, gelu_tanh or silu", activation.c_str());
  if (!spec_.convolution) return;
  pair(info, "kernel", 1, nullptr, a.geometry.kernel);
  pair(info, "stride", 1, &one, a.geometry.stride);
  pair(info, "padding", 0, &zero, a.geometry.padding);
  pair(info, "dilation", 1, &one, a.geometry.dilation);
  a.geometry.groups = integer(info, "groups", &one);
  if (a.geometry.groups < 1) fail(COMPRESS_INVALID, "groups=%lld", (long long)a.geometry.groups);
}

// Whether there is no attribute of that name, of any type that onnxruntime can be asked for.
bool Node::absent(const ort::KernelInfo* info, const char* name) const {
  int64_t whole;
  float real;
  size_t size = 0;
  const ort::Status found[] = {
      api_.attribute(info, name, &whole),
      api_.attribute(info, name, &real),
      api_.attribute(info, name, static_cast<char*>(nullptr), &size),
      api_.attribute(info, name, static_cast<int64_t*>(nullptr), &size),
      api_.attribute(info, name, static_cast<float*>(nullptr), &size),
  };
  bool none = true;
  for (const ort::Status status : found) {
    none = none && status;
    if (status) api_.release_status(status);
  }
  return none;
}

int64_t Node::integer(const ort::KernelInfo* info, const char* name, const int64_t* otherwise) const {
  int64_t value = 0;
  const ort::Status status = api_.attribute(info, name, &value);
  if (!status) return value;
  api_.release_status(status);
  if (otherwise && absent(info, name)) return *otherwise;
  fail(COMPRESS_INVALID, "attribute %s must be given as an integer", name);
}

std::string Node::text(const ort::KernelInfo* info, const char* name, const char* otherwise) const {
  size_t size = 0;
  const ort::Status status = api_.attribute(info, name, static_cast<char*>(nullptr), &size);
  if (status) {
    api_.release_status(status);
    if (absent(info, name)) return otherwise;
    fail(COMPRESS_INVALID, "attribute %s must be given as a string", name);
  }
  if (size > kLongestText) fail(COMPRESS_INVALID, "attribute %s has %zu characters", name, size);
  char value[kLongestText + 1] = {};
  check(api_, api_.attribute(info, name, value, &size));
  return printable(value);
}

void Node::pair(const ort::KernelInfo* info, const char* name, int64_t least, const int64_t* otherwise,
                int64_t* out) const {
  size_t count = 0;
  const ort::Status status = api_.attribute(info, name, static_cast<int64_t*>(nullptr), &count);
  if (status) {
    api_.release_status(status);
    if (!otherwise || !absent(info, name)) fail(COMPRESS_INVALID, "attribute %s must be given as two integers", name);
    out[0] = out[1] = *otherwise;
    return;
  }
  if (count != 2) fail(COMPRESS_INVALID, "attribute %s has %zu values, not two", name, count);
  check(api_, api_.attribute(info, name, out, &count));
  for (int i = 0; i < 2; ++i)
    if (out[i] < least || out[i] > kLargestGeometry)
      fail(COMPRESS_INVALID, "attribute %s holds %lld, which is out of range", name, (long long)out[i]);
}

void Node::read_constants(const ort::KernelInfo* info) {
  Tensor tensors[kRoles];
  Inputs in;
  bool present[kRoles] = {}, constant[kRoles] = {};
  size_t count = 0;
  check(api_, api_.input_count(info, &count));
  for (size_t i = 0; i < std::min(count, spec_.input_count); ++i) {
    const Role role = spec_.inputs[i].role;
    size_t size = 0;
    check(api_, api_.input_name(info, i, nullptr, &size));
    present[role] = size > 1;  // the closing zero
    if (!present[role]) continue;
    int is_constant = 0;
    const ort::Value* value = nullptr;
    check(api_, api_.constant_input(info, i, &is_constant, &value));
    if (is_constant && value) {
      tensors[role] = read_tensor(api_, value);
      constant[role] = true;
    } else if (!known_tensor(info, i, &tensors[role])) {
      continue;
    }
    in.at[role] = &tensors[role];
  }
  check_presence(present);
  has_table_ = present[kTable];
  check_inputs(in);
  for (int role = 0; role < kRoles; ++role)
    is_kept_[role] = constant[role] && role != kX && role != kCodes && role != kZeroPoints && role != kScales &&
                     role != kResidual && tensors[role].type != ort::kFloat;
  const bool all_scales = constant[kScales] && (!present[kGlobalScale] || constant[kGlobalScale]);
  is_kept_[kScales] = all_scales && (present[kGlobalScale] || tensors[kScales].type != ort::kFloat);
  for (int role = 0; role < kRoles; ++role)
    if (is_kept_[role]) kept_[role] = role == kScales ? scales(in) : to_float(tensors[role]);
}

// Type and shape of an input without data, as far as the model says; false when it says nothing.
bool Node::known_tensor(const ort::KernelInfo* info, size_t index, Tensor* out) const {
  ort::TypeInfo* type = nullptr;
  const ort::Status status = api_.input_type(info, index, &type);
  if (status) api_.release_status(status);
  if (status || !type) return false;
  struct Release {
    const ort::Api& api;
    ort::TypeInfo* type;
    ~Release() { api.release_type_info(type); }
  } release{api_, type};
  const ort::TensorInfo* tensor = nullptr;
  check(api_, api_.tensor_info_of_type(type, &tensor));
  if (!tensor) fail(COMPRESS_INVALID, "input %zu is not a tensor", index);
  *out = read_tensor(api_, tensor);
  // No axes may mean that nothing is known of the shape; a number without axes is checked when there is data.
  return out->rank > 0;
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
  return x.shape[1] < 0 ? -1 : x.shape[1] / g.groups * g.kernel[0] * g.kernel[1];
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

// Scales as float32, with the global scale in them.
std::vector<float> Node::scales(const Inputs& in) const {
  std::vector<float> values = to_float(*in[kScales]);
  if (in[kGlobalScale])
    for (float& value : values) value *= *in[kGlobalScale]->as<float>();
  return values;
}

// One computation: what the kernels want to know, and the float32 copies it points to.
struct Node::Call {
  Inputs in;
  Tensor tensors[kRoles];
  std::vector<float> copies[kRoles];
  compress_weight weight{};
  compress_vectors vectors{};
  compress_options options{};
  compress_geometry geometry{};
  int64_t rows = 0, act_group = 0, act_scale_count = 0, act_zero_count = 0;
};

const float* Node::floats(Call& call, Role role) const {
  if (!call.in[role]) return nullptr;
  if (is_kept_[role]) return kept_[role].data();
  const Tensor& tensor = *call.in[role];
  if (role == kScales && call.in[kGlobalScale])
    call.copies[role] = scales(call.in);
  else if (tensor.type == ort::kFloat)
    return tensor.as<float>();
  else
    call.copies[role] = to_float(tensor);
  return call.copies[role].data();
}

// A static activation scale or zero point: one number, or one for every group of every row.
const float* Node::spread(Call& call, Role role, int64_t* count) const {
  const Tensor* tensor = call.in[role];
  if (!tensor) return nullptr;
  *count = tensor->count();
  if (*count == 1) return tensor->as<float>();
  const int64_t groups = call.act_group ? blocks_of(contracted(*call.in[kX]), call.act_group) : 1;
  call.copies[role] = expand(*tensor, scale_target(*call.in[kX], spec_.convolution, groups));
  *count = int64_t(call.copies[role].size());
  return call.copies[role].data();
}

void Node::read_inputs(Call& call, const ort::KernelContext* context) const {
  bool present[kRoles] = {};
  size_t count = 0;
  check(api_, api_.input_count(context, &count));
  for (size_t i = 0; i < std::min(count, spec_.input_count); ++i) {
    const Role role = spec_.inputs[i].role;
    const ort::Value* value = nullptr;
    check(api_, api_.input(context, i, &value));
    if (!value) continue;
    call.tensors[role] = read_tensor(api_, value);
    call.in.at[role] = &call.tensors[role];
    present[role] = true;
  }
  check_presence(present);
  check_inputs(call.in);
}

void Node::fill(Call& call) const {
  const Attributes& a = attributes_;
  const Tensor& x = *call.in[kX];
  const Tensor& codes = *call.in[kCodes];
  const int64_t k = contracted(x);
  call.act_group = a.act_group < k ? a.act_group : 0;
  if (spec_.convolution) {
    call.geometry = a.geometry;
    call.rows = call.geometry.batch = x.shape[0];
    call.geometry.channels = x.shape[1];
    call.geometry.height = x.shape[2];
    call.geometry.width = x.shape[3];
  } else {
    call.rows = x.count() / k;
  }
  if (spec_.vectors) {
    const bool whole = call.in[kCodebook]->type == ort::kInt8;  // needs no rounding
    call.vectors = {codes.as<uint8_t>(), floats(call, kCodebook), floats(call, kScales), codes.shape[0], k, a.d,
                    call.in[kScales]->shape[0], int32_t(a.bits), whole ? COMPRESS_MODE_EXACT : a.mode};
  } else {
    const Tensor& scales = *call.in[kScales];
    const Tensor* zeros = call.in[kZeroPoints];
    call.weight = {codes.as<uint8_t>(), floats(call, kScales), zeros ? zeros->as<uint8_t>() : nullptr,
                   floats(call, kTable), codes.shape[0], k, a.block_size, scales.shape[0], scales.shape[1],
                   zeros ? zeros->shape[0] : 0, zeros ? zeros->shape[1] : 0, int32_t(a.bits), a.mode};
  }
  compress_options& o = call.options;
  o.smooth = floats(call, kSmooth);
  o.act_scale = spread(call, kActScale, &call.act_scale_count);
  o.act_zero_point = spread(call, kActZeroPoint, &call.act_zero_count);
  o.act_scale_rows = call.act_scale_count;
  o.act_zero_rows = call.act_zero_count;
  o.act_low = a.act_format->low;
  o.act_high = a.act_format->high;
  o.act_max = a.act_format->largest;
  o.bias = floats(call, kBias);
  o.low_rank_a = floats(call, kLowRankA);
  o.low_rank_b = floats(call, kLowRankB);
  o.rank = call.in[kLowRankA] ? call.in[kLowRankA]->shape[1] : 0;
  o.activation = a.activation;
}

void Node::multiply(const Call& call, const float* x, float* y, const compress_runner* runner) const {
  char message[256] = "";
  compress_status status = COMPRESS_UNSUPPORTED;
  if (attributes_.act_format->kind == ActivationFormat::kInteger && !call.act_group && !how_.in_float) {
    if (spec_.convolution && spec_.vectors)
      status = compress_vqconv2d(x, &call.geometry, &call.vectors, &call.options, y, runner, message, sizeof message);
    else if (spec_.convolution)
      status = compress_qconv2d(x, &call.geometry, &call.weight, &call.options, y, runner, message, sizeof message);
    else if (spec_.vectors)
      status = compress_vqmatmul(x, call.rows, &call.vectors, &call.options, y, runner, message, sizeof message);
    else
      status = compress_qmatmul(x, call.rows, &call.weight, &call.options, y, runner, message, sizeof message);
  }
  if (status == COMPRESS_OK) return;
  if (status == COMPRESS_NO_MEMORY) throw std::bad_alloc();
  if (status == COMPRESS_INVALID) fail(status, "%s", message);
  GeneralCall general{x,
                      call.rows,
                      spec_.vectors ? nullptr : &call.weight,
                      spec_.vectors ? &call.vectors : nullptr,
                      spec_.convolution ? &call.geometry : nullptr,
                      &call.options,
                      attributes_.act_format,
                      call.act_group,
                      call.act_scale_count,
                      call.act_zero_count};
  compute_in_float(general, y, runner);
}

void Node::compute(ort::KernelContext* context) const {
  Call call;
  read_inputs(call, context);
  const Tensor& x = *call.in[kX];
  const Tensor y = output_of(x, call.in[kCodes]->shape[0]);
  ort::Value* value = nullptr;
  check(api_, api_.output(context, 0, y.shape, y.rank, &value));
  const size_t x_count = size_t(x.count()), y_count = size_t(y.count());
  if (!y_count) return;
  void* out = nullptr;
  check(api_, api_.tensor_data(value, &out));
  Threads threads{api_, context};
  const compress_runner pool{Threads::run, &threads, how_.threads};
  const compress_runner* runner = how_.threads > 1 ? &pool : nullptr;
  fill(call);
  if (x.type == ort::kFloat) {
    call.options.residual = floats(call, kResidual);
    multiply(call, x.as<float>(), static_cast<float*>(out), runner);
    return;
  }
  std::unique_ptr<float[]> wide_x(new float[x_count]), wide_y(new float[y_count]), wide_residual;
  in_pieces(x_count, runner, [&](size_t i) { wide_x[i] = float_of_half(x.as<uint16_t>()[i]); });
  if (const Tensor* residual = call.in[kResidual]) {
    wide_residual.reset(new float[y_count]);
    in_pieces(y_count, runner, [&](size_t i) { wide_residual[i] = float_of_half(residual->as<uint16_t>()[i]); });
    call.options.residual = wide_residual.get();
  }
  multiply(call, wide_x.get(), wide_y.get(), runner);
  in_pieces(y_count, runner, [&](size_t i) { static_cast<uint16_t*>(out)[i] = half_of_float(wide_y[i]); });
}

}  // namespace compress
