// The function that ONNX Runtime looks up when it loads the library (SessionOptions.register_custom_ops_library, or
// RegisterCustomOpsLibrary_V2); it registers every operator of this library.
//
// In:  options of a future session, and the runtime that calls.
// Out: the domain `awq2trt` in the options, once even after several calls. Operators are made once for each
// runtime in the process and live as long as
//      the process, since sessions refer to them until their own end, which may come after that of our static objects.
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "ops/operator.h"
#include "ort/best_token_op.h"
#include "ort/cached_attention_op.h"
#include "ort/custom_operator.h"
#include "ort/fused_linear_op.h"
#include "ort/gated_activation_op.h"
#include "ort/quantized_embedding_op.h"
#include "ort/residual_norm_op.h"
#include "ort/w4a16_linear_op.h"

namespace awq2trt {
namespace ort {
namespace {

struct Registration {
  std::vector<std::unique_ptr<RegisteredOperator>> operators;
  abi::CustomOpDomain* domain = nullptr;
};

Registration make_registration(const Runtime& runtime) {
  Registration registration;
  runtime.call(abi::kCreateCustomOpDomain, kDomain, &registration.domain);
  for (const auto make : {make_w4a16_linear_operators, make_w8a16_linear_operators, make_w4a16_embedding_operators,
                          make_w8a16_embedding_operators, make_cached_attention_operators, make_residual_norm_operators,
                          make_gated_activation_operators, make_fused_linear_operators, make_best_token_operators}) {
    for (std::unique_ptr<CustomOperator>& implementation : make()) {
      registration.operators.push_back(std::make_unique<RegisteredOperator>(runtime, std::move(implementation)));
      runtime.call(abi::kCustomOpDomain_Add, registration.domain, registration.operators.back().get());
    }
  }
  return registration;
}

// The domain for the runtime whose table is `api`.
abi::CustomOpDomain* domain_of(const abi::Api* api) {
  static std::mutex& mutex = *new std::mutex;
  static auto& registrations = *new std::map<const abi::Api*, Registration>;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto known = registrations.find(api);
  if (known != registrations.end()) return known->second.domain;
  return registrations.emplace(api, make_registration(Runtime(api))).first->second.domain;
}

void register_once(const Runtime& runtime, abi::SessionOptions* options, abi::CustomOpDomain* domain) {
  // No session can be made from options that have a domain twice, and options cannot be asked which domains they have.
  constexpr char kRegistered[] = "awq2trt.operators";
  int registered = 0;
  runtime.call(abi::kHasSessionConfigEntry, options, kRegistered, &registered);
  if (registered != 0) return;
  runtime.call(abi::kAddCustomOpDomain, options, domain);
  runtime.call(abi::kAddSessionConfigEntry, options, kRegistered, AWQ2TRT_VERSION);
}

// The table of a runtime that is too old serves only to report that.
abi::Status* refuse(const abi::ApiBase* base) {
  constexpr uint32_t kFirstVersion = 1;
  const Runtime runtime(base->GetApi(kFirstVersion));
  return runtime.guarded([&] {
    throw Failure("awq2trt " AWQ2TRT_VERSION ": its operators need ONNX Runtime " + std::string(abi::kLeastRuntime) +
                      " or later, got " + base->GetVersionString() + ".",
                  abi::ErrorCode::kNotImplemented);
  });
}

}  // namespace
}  // namespace ort
}  // namespace awq2trt

extern "C" __attribute__((visibility("default"))) awq2trt::ort::abi::Status* RegisterCustomOps(
    awq2trt::ort::abi::SessionOptions* options, const awq2trt::ort::abi::ApiBase* base) {
  namespace ort = awq2trt::ort;
  const ort::abi::Api* const api = base->GetApi(ort::abi::kApiVersion);
  if (api == nullptr) return ort::refuse(base);
  const ort::Runtime runtime(api);
  return runtime.guarded([&] { ort::register_once(runtime, options, ort::domain_of(api)); });
}
