// One node of the operator table: its attributes and inputs, checked, and its computation.
#pragma once

#include <string>
#include <vector>

#include "include/compress_kernels.h"
#include "onnxruntime/abi.h"
#include "onnxruntime/formats.h"
#include "onnxruntime/tensor.h"

namespace compress {

// What an input means, in any operator.
enum Role {
  kX,
  kCodes,
  kScales,
  kZeroPoints,
  kTable,
  kCodebook,
  kBias,
  kActScale,
  kActZeroPoint,
  kSmooth,
  kLowRankA,
  kLowRankB,
  kGlobalScale,
  kResidual,
  kRoles
};

struct InputSpec {
  Role role;
  int type;  // the only one it may have; kUndefined: the node checks
  bool optional;
};

// One entry of the operator table, compress/kernels/schema.py.
struct OperatorSpec {
  const char* name;
  bool convolution, vectors;
  const InputSpec* inputs;
  size_t input_count;
};

extern const OperatorSpec kOperators[4];

struct Attributes {
  int64_t bits = 0, block_size = 0, d = 0, act_group = 0;
  const ActivationFormat* act_format = nullptr;
  int mode = COMPRESS_MODE_EXACT, activation = COMPRESS_ACTIVATION_NONE;
  compress_geometry geometry{};  // of convolutions; batch, channels, height and width come with x
};

// Inputs by role, null where absent (or, before there is data, not known).
struct Inputs {
  const Tensor* at[kRoles] = {};
  const Tensor* operator[](Role role) const { return at[role]; }
};

struct Execution {
  int threads;    // that work is cut for
  bool in_float;  // never by integer kernels
};

constexpr int64_t kLargestBlock = int64_t(1) << 31;  // positions of a block, and of a sum

inline int64_t blocks_of(int64_t count, int64_t size) { return (count + size - 1) / size; }
// What activation scales spread over: one for each group of each row, or for each image.
Tensor scale_target(const Tensor& x, bool convolution, int64_t groups);

class Node {
 public:
  // Throws Failure when attributes, constant inputs or known shapes do not fit together.
  Node(const ort::Api& api, const OperatorSpec& spec, const ort::KernelInfo* info, Execution how);

  // Throws Failure when the inputs do not fit together.
  void compute(ort::KernelContext* context) const;

  // Name of operator and node, for messages.
  const std::string& title() const { return title_; }
  const ort::Api& api() const { return api_; }

 private:
  struct Call;

  void read_attributes(const ort::KernelInfo* info);
  int64_t integer(const ort::KernelInfo* info, const char* name, const int64_t* otherwise) const;
  std::string text(const ort::KernelInfo* info, const char* name, const char* otherwise) const;
  void pair(const ort::KernelInfo* info, const char* name, int64_t least, const int64_t* otherwise, int64_t* out) const;
  bool absent(const ort::KernelInfo* info, const char* name) const;

  void read_constants(const ort::KernelInfo* info);
  bool known_tensor(const ort::KernelInfo* info, size_t index, Tensor* out) const;

  // Inputs that are null, and extents of -1, fit anything: they are absent, or not known yet.
  void check_inputs(const Inputs& in) const;
  void check_weight(const Inputs& in, int64_t k) const;
  void check_vectors(const Inputs& in, int64_t k) const;
  void check_zero_points(const Inputs& in) const;  // reads data
  void check_output(const Inputs& in, int64_t n) const;
  void check_presence(const bool* present) const;

  int64_t contracted(const Tensor& x) const;  // k, or -1 when x's shape does not say
  Tensor output_of(const Tensor& x, int64_t n) const;

  void read_inputs(Call& call, const ort::KernelContext* context) const;
  void fill(Call& call) const;
  void multiply(const Call& call, const float* x, float* y, const compress_runner* runner) const;
  const float* floats(Call& call, Role role) const;
  const float* spread(Call& call, Role role, int64_t* count) const;
  std::vector<float> scales(const Inputs& in) const;

  ort::Api api_;
  const OperatorSpec& spec_;
  Attributes attributes_;
  std::string title_;
  Execution how_;
  bool has_table_ = false, zero_points_checked_ = false;
  std::vector<float> kept_[kRoles];  // constant inputs that are not float32, as float32
  bool is_kept_[kRoles] = {};
};

}  // namespace compress
