// The part of onnxruntime's C interface that our operators need, declared here so that the library builds without
// onnxruntime's headers.
//
// onnxruntime hands out its functions as one table that only ever grows at the end: a function keeps its index for
// good. The indices below count the members of OrtApi in onnxruntime_c_api.h; tests/kernels/test_onnx_kernels.py calls
// every one of them through a real session, and compares what comes back with what the model says.
#pragma once

#include <cstddef>
#include <cstdint>

namespace compress {
namespace ort {

constexpr uint32_t kApiVersion = 17;  // 2023: the first with everything used here

// Opaque to us.
struct AllocatedStatus;
struct CustomOpDomain;
struct KernelContext;
struct KernelInfo;
struct SessionOptions;
struct ShapeInferContext;
struct TensorInfo;
struct TypeInfo;
struct Value;
using Status = AllocatedStatus*;  // null: all is well

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2, kNotImplemented = 9 };

enum ElementType : int {
  kUndefined = 0,  // as the type of an input: any
  kFloat = 1,
  kUint8 = 2,
  kInt8 = 3,
  kFloat16 = 10,
  kFloat8E4M3 = 17
};

enum Characteristic : int { kRequired = 0, kOptional = 1 };

struct ApiBase {
  const void* const* (*get_api)(uint32_t version);  // null when this onnxruntime does not know that version
  const char* (*version)();
};

// The table of functions.
class Api {
 public:
  Api() = default;
  explicit Api(const void* const* table) : table_(table) {}

  Status create_status(ErrorCode code, const char* text) const { return at<Status(int, const char*)>(0)(code, text); }
  const char* message(Status status) const { return at<const char*(Status)>(2)(status); }
  void release_status(Status status) const { at<void(Status)>(93)(status); }

  Status create_domain(const char* name, CustomOpDomain** out) const {
    return at<Status(const char*, CustomOpDomain**)>(26)(name, out);
  }
  Status add_operator(CustomOpDomain* domain, const struct CustomOp* op) const {
    return at<Status(CustomOpDomain*, const CustomOp*)>(27)(domain, op);
  }
  Status add_domain(SessionOptions* options, CustomOpDomain* domain) const {
    return at<Status(SessionOptions*, CustomOpDomain*)>(28)(options, domain);
  }
  Status has_config_entry(const SessionOptions* options, const char* key, int* out) const {
    return at<Status(const SessionOptions*, const char*, int*)>(237)(options, key, out);
  }
  Status config_entry(const SessionOptions* options, const char* key, char* out, size_t* size) const {
    return at<Status(const SessionOptions*, const char*, char*, size_t*)>(238)(options, key, out, size);
  }

  Status tensor_data(Value* value, void** out) const { return at<Status(Value*, void**)>(51)(value, out); }
  Status tensor_info_of_type(const TypeInfo* type, const TensorInfo** out) const {  // null: no tensor
    return at<Status(const TypeInfo*, const TensorInfo**)>(55)(type, out);
  }
  Status element_type(const TensorInfo* info, int* out) const {
    return at<Status(const TensorInfo*, int*)>(60)(info, out);
  }
  Status rank(const TensorInfo* info, size_t* out) const {
    return at<Status(const TensorInfo*, size_t*)>(61)(info, out);
  }
  Status shape(const TensorInfo* info, int64_t* out, size_t count) const {  // -1: not known
    return at<Status(const TensorInfo*, int64_t*, size_t)>(62)(info, out, count);
  }
  Status tensor_info(const Value* value, TensorInfo** out) const {
    return at<Status(const Value*, TensorInfo**)>(65)(value, out);
  }
  void release_type_info(TypeInfo* info) const { at<void(TypeInfo*)>(98)(info); }
  void release_tensor_info(TensorInfo* info) const { at<void(TensorInfo*)>(99)(info); }

  Status attribute(const KernelInfo* info, const char* name, float* out) const {
    return at<Status(const KernelInfo*, const char*, float*)>(85)(info, name, out);
  }
  Status attribute(const KernelInfo* info, const char* name, int64_t* out) const {
    return at<Status(const KernelInfo*, const char*, int64_t*)>(86)(info, name, out);
  }
  // With `out` null, `size` gets the size; of strings with the closing zero.
  Status attribute(const KernelInfo* info, const char* name, char* out, size_t* size) const {
    return at<Status(const KernelInfo*, const char*, char*, size_t*)>(87)(info, name, out, size);
  }
  Status attribute(const KernelInfo* info, const char* name, float* out, size_t* size) const {
    return at<Status(const KernelInfo*, const char*, float*, size_t*)>(162)(info, name, out, size);
  }
  Status attribute(const KernelInfo* info, const char* name, int64_t* out, size_t* size) const {
    return at<Status(const KernelInfo*, const char*, int64_t*, size_t*)>(163)(info, name, out, size);
  }
  Status input_count(const KernelInfo* info, size_t* out) const {
    return at<Status(const KernelInfo*, size_t*)>(230)(info, out);
  }
  Status input_name(const KernelInfo* info, size_t index, char* out, size_t* size) const {
    return at<Status(const KernelInfo*, size_t, char*, size_t*)>(232)(info, index, out, size);
  }
  Status input_type(const KernelInfo* info, size_t index, TypeInfo** out) const {
    return at<Status(const KernelInfo*, size_t, TypeInfo**)>(234)(info, index, out);
  }
  Status node_name(const KernelInfo* info, char* out, size_t* size) const {
    return at<Status(const KernelInfo*, char*, size_t*)>(244)(info, out, size);
  }
  Status constant_input(const KernelInfo* info, size_t index, int* constant, const Value** out) const {
    return at<Status(const KernelInfo*, size_t, int*, const Value**)>(249)(info, index, constant, out);
  }

  Status input_count(const KernelContext* context, size_t* out) const {
    return at<Status(const KernelContext*, size_t*)>(88)(context, out);
  }
  Status input(const KernelContext* context, size_t index, const Value** out) const {  // null: absent
    return at<Status(const KernelContext*, size_t, const Value**)>(90)(context, index, out);
  }
  Status output(KernelContext* context, size_t index, const int64_t* shape, size_t rank, Value** out) const {
    return at<Status(KernelContext*, size_t, const int64_t*, size_t, Value**)>(91)(context, index, shape, rank, out);
  }
  // `batches` 0: tasks are handed out one by one. Does nothing when `user` is null.
  Status parallel_for(const KernelContext* context, void (*task)(void*, size_t), size_t count, size_t batches,
                      void* user) const {
    return at<Status(const KernelContext*, void (*)(void*, size_t), size_t, size_t, void*)>(274)(context, task, count,
                                                                                              batches, user);
  }

 private:
  template <typename Function>
  Function* at(size_t index) const {
    return reinterpret_cast<Function*>(const_cast<void*>(table_[index]));
  }
  const void* const* table_ = nullptr;
};

// What an operator tells onnxruntime; members that are null are not asked for at `version`.
struct CustomOp {
  uint32_t version;
  void* (*create_kernel)(const CustomOp*, const void* const* api, const KernelInfo*);
  const char* (*name)(const CustomOp*);
  const char* (*execution_provider)(const CustomOp*);
  int (*input_type)(const CustomOp*, size_t);
  size_t (*input_count)(const CustomOp*);
  int (*output_type)(const CustomOp*, size_t);
  size_t (*output_count)(const CustomOp*);
  void (*kernel_compute)(void*, KernelContext*);
  void (*kernel_destroy)(void*);
  int (*input_characteristic)(const CustomOp*, size_t);
  int (*output_characteristic)(const CustomOp*, size_t);
  int (*input_memory_type)(const CustomOp*, size_t);
  int (*variadic_input_min_arity)(const CustomOp*);
  int (*variadic_input_homogeneity)(const CustomOp*);
  int (*variadic_output_min_arity)(const CustomOp*);
  int (*variadic_output_homogeneity)(const CustomOp*);
  Status (*create_kernel_v2)(const CustomOp*, const void* const* api, const KernelInfo*, void**);
  Status (*kernel_compute_v2)(void*, KernelContext*);
  Status (*infer_output_shape)(const CustomOp*, ShapeInferContext*);
  int (*start_version)(const CustomOp*);
  int (*end_version)(const CustomOp*);
  size_t (*may_inplace)(int**, int**);
  void (*release_may_inplace)(int*, int*);
  size_t (*alias_map)(int**, int**);
  void (*release_alias_map)(int*, int*);
};

}  // namespace ort
}  // namespace compress
