// See model_state.h. Quick checks come first: nothing is loaded for a model that this machine cannot run.
#include <sys/utsname.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>

#include "artifact/files.h"
#include "artifact/manifest.h"
#include "backend/contract.h"
#include "backend/forecast.h"
#include "ort/cpu.h"
#include "ort/cuda.h"
#include "ort/cuda_memory.h"
#include "ort/operators.h"
#include "ort/session.h"
#include "session/model_state.h"
#include "trt/backend.h"
#include "trt/engine.h"

namespace awq2trt {
namespace detail {
namespace {

constexpr char kCpuProvider[] = "CPUExecutionProvider";
constexpr char kCudaProvider[] = "CUDAExecutionProvider";
constexpr char kTokenizerConfig[] = "tokenizer_config.json";

void check_options(const LoadOptions& options) {
  const auto refuse = [](const std::string& what, const char* field) {
    throw Error(ErrorCode::kBadArgument, what, std::string("LoadOptions::") + field, "");
  };
  if (options.threads < 0) refuse("got " + std::to_string(options.threads) + ", expected 0 or more", "threads");
  if (options.device < 0) refuse("got " + std::to_string(options.device) + ", expected 0 or more", "device");
  if ((options.allocator.allocate == nullptr) != (options.allocator.free == nullptr)) {
    refuse("one of its functions is missing", "allocator");
  }
}

void check_cpu(const LoweredRecord& record, const std::string& directory) {
  utsname machine{};
  if (record.cpus.empty() || uname(&machine) != 0) return;
  if (std::find(record.cpus.begin(), record.cpus.end(), machine.machine) != record.cpus.end()) return;
  std::string expected;
  for (const std::string& cpu : record.cpus) expected += (expected.empty() ? "" : " or ") + cpu;
  throw Error(ErrorCode::kWrongDevice,
              std::string("this machine's CPU is ") + machine.machine + ", expected " + expected, directory,
              "build the model with --target cpu.");
}

// Without the caches if the application itself allocates their memory.
Needs needs_of(const Manifest& manifest, const Contract& contract, const LoadOptions& options) {
  Needs needs = predict_needs(manifest, contract);
  if (options.allocator.allocate != nullptr) needs.caches = 0;
  return needs;
}

// What ONNX Runtime need not load; nothing where the application hands out memory, which is not for weights.
std::vector<ort::StoredWeight> stored_weights(const std::string& model, const LoadOptions& options) {
  constexpr uintmax_t kMostBytes = uintmax_t{64} << 20;  // of a graph; a larger file has its weights inside
  constexpr uint64_t kLeastBytes = 64 << 10;             // ONNX Runtime loads hundreds of smaller ones in no time
  std::error_code problem;
  const uintmax_t bytes = std::filesystem::file_size(model, problem);
  if (options.allocator.allocate != nullptr || problem || bytes > kMostBytes) return {};
  std::string graph(bytes, '\0');
  std::ifstream in(model, std::ios::binary);
  if (!in.read(graph.data(), static_cast<std::streamsize>(bytes))) return {};
  return ort::find_stored_weights(graph, kLeastBytes);
}

std::unique_ptr<Backend> open_lowered(const std::string& directory, const Manifest& manifest,
                                      const LoadOptions& options) {
  const LoweredRecord& record = *manifest.lowered;
  const Contract contract = read_contract(manifest.decoder, directory);
  const bool on_cpu = record.provider == kCpuProvider;
  if (!on_cpu && record.provider != kCudaProvider) {
    throw Error(ErrorCode::kUnsupported, "this library does not know the execution provider " + record.provider,
                directory, "use a later version of this library.");
  }
  check_cpu(record, directory);
  std::unique_ptr<DeviceMemory> memory = on_cpu ? nullptr : ort::open_cuda_memory(record, options);
  if (memory != nullptr) require_memory(needs_of(manifest, contract, options), memory->info(), memory->title());
  const auto library = ort::Library::open(options.onnxruntime_library, record.minimum_onnxruntime);
  ort::Execution execution;
  execution.threads = options.threads;
  if (record.plugin_version) execution.operators = ort::find_operators(*record.plugin_version, directory, options);
  const std::string model = directory + "/" + manifest.decoder.model;
  const int64_t longest_call = std::min(record.longest_chunk, contract.capacity);
  if (on_cpu) return ort::make_cpu_backend(ort::Session::open(library, model, execution), contract, longest_call);
  if (!library->has_provider(kCudaProvider)) {
    throw Error(ErrorCode::kNoRuntime, "ONNX Runtime " + library->version() + " here was built without CUDA", directory,
                "install ONNX Runtime for GPUs (onnxruntime-gpu), and name its file in AWQ2TRT_ONNXRUNTIME.");
  }
  const ort::CudaExecution cuda{options.device, options.cuda_graph, memory->stream()};
  execution.cuda = &cuda;
  execution.place = {memory->runtime_name(), memory->index()};
  const ort::CudaPlan plan{contract, longest_call, options.cuda_graph, directory, stored_weights(model, options)};
  return ort::make_cuda_backend(plan, std::move(memory), [&](const std::vector<ort::DeviceWeight>& weights) {
    execution.weights = weights;
    return ort::Session::open(library, model, execution);
  });
}

std::unique_ptr<Backend> open_built_engine(const std::string& directory, const Manifest& manifest,
                                           const LoadOptions& options) {
  const std::string path = directory + "/" + *manifest.decoder.engine;
  const Contract contract = read_contract(manifest.decoder, directory);
  const LoweredRecord any_gpu{};
  std::unique_ptr<DeviceMemory> memory;
  std::optional<Error> without_gpu;
  try {
    memory = ort::open_cuda_memory(any_gpu, options);
    require_memory(needs_of(manifest, contract, options), memory->info(), memory->title());
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kNoDriver) throw;
    without_gpu = error;  // TensorRT, which is asked next, reports this in its own words
  }
  std::unique_ptr<trt::Engine> engine = trt::open_engine(path, *manifest.engine, options);
  if (without_gpu) throw Error(*without_gpu);
  return trt::make_engine_backend(contract, manifest.engine->profiles, std::move(memory),
                                  [&] { return std::move(engine); });
}

[[noreturn]] void refuse_tokenizer(const std::string& what, const std::string& directory) {
  throw Error(ErrorCode::kWrongTokenizer, what + ": the tokenizer is that of another model", directory,
              "copy the directory again, or make it again with `awq2trt build`.");
}

// The text of a special token in tokenizer_config.json; empty if it has none.
std::string special_token(const nlohmann::json& config, const char* key) {
  const auto found = config.find(key);
  if (found == config.end()) return "";
  if (found->is_object() && found->value("content", nlohmann::json()).is_string()) return found->at("content");
  return found->is_string() ? found->get<std::string>() : "";
}

void check_tokenizer(const Tokenizer& tokenizer, const TokensRecord& tokens, int64_t vocab_size,
                     const std::string& directory) {
  if (tokenizer.size() > vocab_size) {
    refuse_tokenizer(
        "it has " + std::to_string(tokenizer.size()) + " tokens, the model scores " + std::to_string(vocab_size),
        directory);
  }
  for (const int32_t id : tokens.stop) {
    if (id >= tokenizer.size()) refuse_tokenizer("it has no token " + std::to_string(id), directory);
  }
  std::ifstream in(directory + "/" + kTokenizerConfig, std::ios::binary);
  const nlohmann::json config = nlohmann::json::parse(in, nullptr, false);
  if (!config.is_object()) return;  // the template's reader says what is wrong with it
  for (const auto& [key, id] : {std::pair{"bos_token", tokens.bos}, std::pair{"eos_token", tokens.eos}}) {
    const std::string text = special_token(config, key);
    if (!text.empty() && id && tokenizer.find(text) != *id) {
      refuse_tokenizer("its " + std::string(key) + " " + text + " is " + std::to_string(tokenizer.find(text)) +
                           ", expected " + std::to_string(*id),
                       directory);
    }
  }
}

std::unique_ptr<ChatTemplate> open_template(const std::string& directory) {
  try {
    return ChatTemplate::from_directory(directory);
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kNotFound) return nullptr;
    throw;
  }
}

}  // namespace

std::shared_ptr<const ModelState> load_model(const std::string& directory, const LoadOptions& options) {
  check_options(options);
  const Manifest manifest = read_manifest(directory);
  check_files(directory, manifest, options.verify);
  auto model = std::make_shared<ModelState>();
  model->directory = directory;
  model->tokenizer = Tokenizer::from_directory(directory);
  model->chat_template = open_template(directory);
  model->stop_tokens = manifest.tokens.stop;
  const int64_t vocab_size = read_contract(manifest.decoder, directory).vocab_size;
  check_tokenizer(*model->tokenizer, manifest.tokens, vocab_size, directory);
  model->backend =
      manifest.lowered ? open_lowered(directory, manifest, options) : open_built_engine(directory, manifest, options);
  return model;
}

}  // namespace detail
}  // namespace awq2trt
