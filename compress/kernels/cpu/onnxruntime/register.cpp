// The entry that onnxruntime calls: `SessionOptions::RegisterCustomOpsLibrary` with the path of this library.
#include <algorithm>
#include <cstdlib>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <thread>
#include <utility>

#include "common/parallel.h"
#include "onnxruntime/node.h"

namespace compress {
namespace {

// How many threads a session has is nothing that onnxruntime tells; whoever limits them may say so here. Work is cut by
// it, but runs on the session's threads, however many there are.
constexpr const char* kThreadsKey = "compress.threads";
// "1": all is computed in floating point, to compare with.
constexpr const char* kFloatKey = "compress.float";
constexpr const char* kDomain = "compress";

// An operator for x of one element type; the type of y is x's.
struct Operator : ort::CustomOp {
  const OperatorSpec* spec;
  int x_type;
  Execution how;
};

const Operator& self(const ort::CustomOp* op) { return *static_cast<const Operator*>(op); }

ort::Status tell(const ort::Api& api, const std::string& title) noexcept {
  try {
    throw;
  } catch (const Failure& failure) {
    const std::string text = title.empty() ? failure.what() : title + ": " + failure.what();
    return api.create_status(failure.status() == COMPRESS_INVALID ? ort::kInvalidArgument : ort::kFail, text.c_str());
  } catch (const std::bad_alloc&) {
    return api.create_status(ort::kFail, "compress: out of memory");
  } catch (const std::exception& other) {
    return api.create_status(ort::kFail, other.what());
  } catch (...) {
    return api.create_status(ort::kFail, "compress: unknown error");
  }
}

ort::Status create_kernel(const ort::CustomOp* op, const void* const* table, const ort::KernelInfo* info, void** out) {
  const ort::Api api(table);
  try {
    *out = new Node(api, *self(op).spec, info, self(op).how);
    return nullptr;
  } catch (...) {
    return tell(api, "");
  }
}

ort::Status compute(void* kernel, ort::KernelContext* context) {
  const Node& node = *static_cast<const Node*>(kernel);
  try {
    node.compute(context);
    return nullptr;
  } catch (...) {
    return tell(node.api(), node.title());
  }
}

int input_type(const ort::CustomOp* op, size_t index) {
  const InputSpec& input = self(op).spec->inputs[index];
  return input.role == kX || input.role == kResidual ? self(op).x_type : input.type;
}

Operator make_operator(const OperatorSpec& spec, int x_type, Execution how) {
  Operator op{};
  op.version = ort::kApiVersion;
  op.spec = &spec;
  op.x_type = x_type;
  op.how = how;
  op.name = [](const ort::CustomOp* o) { return self(o).spec->name; };
  op.execution_provider = [](const ort::CustomOp*) { return "CPUExecutionProvider"; };
  op.input_type = input_type;
  op.input_count = [](const ort::CustomOp* o) { return self(o).spec->input_count; };
  op.output_type = [](const ort::CustomOp* o, size_t) { return self(o).x_type; };
  op.output_count = [](const ort::CustomOp*) { return size_t(1); };
  op.kernel_destroy = [](void* kernel) { delete static_cast<Node*>(kernel); };
  op.input_characteristic = [](const ort::CustomOp* o, size_t i) {
    return int(self(o).spec->inputs[i].optional ? ort::kOptional : ort::kRequired);
  };
  op.output_characteristic = [](const ort::CustomOp*, size_t) { return int(ort::kRequired); };
  op.input_memory_type = [](const ort::CustomOp*, size_t) { return 0; };
  const auto zero = [](const ort::CustomOp*) { return 0; };  // nothing is variadic
  op.variadic_input_min_arity = op.variadic_input_homogeneity = zero;
  op.variadic_output_min_arity = op.variadic_output_homogeneity = zero;
  op.create_kernel_v2 = create_kernel;
  op.kernel_compute_v2 = compute;
  op.start_version = [](const ort::CustomOp*) { return 1; };
  op.end_version = [](const ort::CustomOp*) { return 1; };
  return op;
}

constexpr int kTypes[] = {ort::kFloat, ort::kFloat16};

// The domain and its operators; sessions keep pointers to them.
struct Domain {
  Operator operators[8];
  ort::CustomOpDomain* handle = nullptr;
};

// A number among the session's options, 0 when it is not there.
int option(const ort::Api& api, const ort::SessionOptions* options, const char* key) {
  int given = 0;
  check(api, api.has_config_entry(options, key, &given));
  if (!given) return 0;
  char value[16] = {};
  size_t size = sizeof value - 1;
  check(api, api.config_entry(options, key, value, &size));
  return std::atoi(value);
}

Execution execution(const ort::Api& api, const ort::SessionOptions* options) {
  const int given = option(api, options, kThreadsKey);
  const int threads = given > 0 ? given : int(std::thread::hardware_concurrency());
  return {std::min(std::max(threads, 1), kThreadLimit), option(api, options, kFloatKey) == 1};
}

ort::CustomOpDomain* domain_of(const ort::Api& api, Execution how) {
  // Never freed: sessions may outlive every moment at which a static object could be.
  static std::mutex& mutex = *new std::mutex;
  static auto& domains = *new std::map<std::pair<int, bool>, Domain*>;
  std::lock_guard<std::mutex> lock(mutex);
  const std::pair<int, bool> key(how.threads, how.in_float);
  const auto found = domains.find(key);
  if (found != domains.end()) return found->second->handle;
  auto domain = std::make_unique<Domain>();
  check(api, api.create_domain(kDomain, &domain->handle));
  size_t i = 0;
  for (const OperatorSpec& spec : kOperators)
    for (const int type : kTypes) {
      domain->operators[i] = make_operator(spec, type, how);
      check(api, api.add_operator(domain->handle, &domain->operators[i++]));
    }
  return (domains[key] = domain.release())->handle;
}

}  // namespace
}  // namespace compress

extern "C" COMPRESS_API compress::ort::Status RegisterCustomOps(compress::ort::SessionOptions* options,
                                                                const compress::ort::ApiBase* base) {
  using namespace compress;
  const void* const* table = base->get_api(ort::kApiVersion);
  if (!table) {  // its first version is enough to say so
    const void* const* oldest = base->get_api(1);
    if (!oldest) return nullptr;
    const std::string text = std::string("compress needs onnxruntime 1.17 or later, this is ") + base->version();
    return ort::Api(oldest).create_status(ort::kNotImplemented, text.c_str());
  }
  const ort::Api api(table);
  try {
    check(api, api.add_domain(options, domain_of(api, execution(api, options))));
    return nullptr;
  } catch (...) {
    return tell(api, "compress");
  }
}
