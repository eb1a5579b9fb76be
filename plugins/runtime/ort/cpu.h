// ONNX Runtime on the CPU. In: a model that was built for the target `cpu`. Out: a backend whose caches grow with their
// conversations. Calls of several threads run at once, on one pool of threads.
#pragma once

#include <memory>
#include <string>

#include "backend/backend.h"
#include "backend/contract.h"
#include "ort/session.h"

namespace awq2trt {
namespace ort {

// `embedder`: null for a decoder of tokens.
std::unique_ptr<Backend> make_cpu_backend(std::shared_ptr<const Session> session, const Contract& contract,
                                          int64_t longest_call, std::unique_ptr<Embedder> embedder);

}  // namespace ort
}  // namespace awq2trt
