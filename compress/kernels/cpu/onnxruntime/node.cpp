#include "onnxruntime/node.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <new>

#include "common/parallel.h"
#include "onnxruntime/fallback.h"

namespace compress {
namespace {

constexpr int64_t kLargestGeometry = 4096;  // of kernel, stride, padding and dilation: no layer comes near it
constexpr size_t kLongestText = 64;
constexpr size_t kConvertedAtOnce = size_t(1) << 16;

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

// Text of a model in a message: what is not ASCII could break whoever decodes it.
std::string printable(std::string text) {
  for (char& c : text)
    if (c < ' ' || c > '~') c = '?';
  return text;
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

  int32_t members;

  struct Task {
    compress_body body;
    void* context;
    size_t count;
    std::atomic<size_t> next;
  };

  static void run(void* self, compress_body body, void* context, size_t count) {
    const auto* threads = static_cast<const Threads*>(self);
    Task task{body, context, count, {0}};
    // onnxruntime would give each thread one run of neighbouring tasks; taken one by one they also fill the gaps that
    // other processes tear, and a thread that wakes late does less.
    const auto member = [](void* user, size_t) {
      auto* what = static_cast<Task*>(user);
      for (size_t i; (i = what->next.fetch_add(1, std::memory_order_relaxed)) < what->count;)
        what->body(what->context, i);
    };
    const size_t members = std::min(count, size_t(threads->members));
    const ort::Status status = threads->api.parallel_for(threads->context, member, members, 0, &task);
    if (!status) return;
    threads->api.release_status(status);
    for (size_t i = 0; i < count; ++i) body(context, i);
  }
};

template <typename Work>
void in_pieces(size_t count, const compress_runner* runner, Work&& work) {
  const size_t pieces = (count + kConvertedAtOnce - 1) / kConvertedAtOnce;
  parallel_for(runner, pieces, [&](size_t p) {
    const size_t end = std::min(count, (p + 1) * kConvertedAtOnce);
    for (size_t i = p * kConvertedAtOnce; i < end; ++i) work(i);
  });
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
  if (constant[kZeroPoints]) check_zero_points(in);
  zero_points_checked_ = constant[kZeroPoints];
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
  if (!zero_points_checked_) check_zero_points(call.in);
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
  Threads threads{api_, context, how_.threads};
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
