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
#include "ort/embedder.h"
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

// The graphs beside a decoder of embeddings; what executes the vision graph executes the decoder, too.
class Beside {
 public:
  Beside(const std::string& directory, const Manifest& manifest, const Contract& decoder,
         std::shared_ptr<const ort::Library> library)
      : directory_(directory),
        record_(*manifest.vision),
        library_(std::move(library)),
        decoder_(decoder),
        contract_(read_vision_contract(record_, decoder, directory)) {}

  ort::EmbeddingGraph open_embedding() const {
    ort::Execution execution;
    execution.threads = 1;  // it copies rows
    return {open(record_.embedding, execution), decoder_};
  }
  ort::VisionGraph open_vision(const ort::Execution& execution) const {
    return {open(record_.vision, execution), contract_};
  }

 private:
  std::shared_ptr<const ort::Session> open(const GraphRecord& graph, const ort::Execution& execution) const {
    return ort::Session::open(library_, directory_ + "/" + graph.model, execution);
  }

  std::string directory_;
  VisionRecord record_;
  std::shared_ptr<const ort::Library> library_;
  Contract decoder_;
  VisionContract contract_;
};

// A model that was built for ONNX Runtime, as far as it has been opened.
struct Lowered {
  const std::string& directory;
  const Manifest& manifest;
  const LoadOptions& options;
  Contract contract;
  std::shared_ptr<const ort::Library> library;
  ort::Execution execution;      // of the decoder
  std::optional<Beside> beside;  // nothing for a model of text

  std::string model() const { return directory + "/" + manifest.decoder.model; }
  int64_t longest_call() const { return std::min(manifest.lowered->longest_chunk, contract.capacity); }
};

std::unique_ptr<Backend> open_on_cpu(const Lowered& lowered) {
  std::unique_ptr<Embedder> embedder;
  if (lowered.beside) {
    ort::Execution seeing;
    seeing.threads = lowered.options.threads;
    embedder =
        std::make_unique<ort::CpuEmbedder>(lowered.beside->open_embedding(), lowered.beside->open_vision(seeing));
  }
  return ort::make_cpu_backend(ort::Session::open(lowered.library, lowered.model(), lowered.execution),
                               lowered.contract, lowered.longest_call(), std::move(embedder));
}

std::unique_ptr<Backend> open_on_cuda(Lowered lowered, std::unique_ptr<DeviceMemory> memory,
                                      const std::shared_ptr<const Tables>& text) {
  if (!lowered.library->has_provider(kCudaProvider)) {
    throw Error(ErrorCode::kNoRuntime, "ONNX Runtime " + lowered.library->version() + " here was built without CUDA",
                lowered.directory,
                "install ONNX Runtime for GPUs (onnxruntime-gpu), and name its file in AWQ2TRT_ONNXRUNTIME.");
  }
  const LoadOptions& options = lowered.options;
  const ort::CudaExecution cuda{options.device, options.cuda_graph, memory->stream()};
  const ort::CudaExecution seeing_cuda{options.device, false, memory->stream()};
  lowered.execution.cuda = &cuda;
  lowered.execution.place = {memory->runtime_name(), memory->index()};
  ort::Execution seeing;
  seeing.cuda = &seeing_cuda;
  seeing.place = lowered.execution.place;
  ort::CudaSight sight;
  if (lowered.beside) {
    sight.embedding = std::make_unique<ort::EmbeddingGraph>(lowered.beside->open_embedding());
    sight.open_vision = [&] { return std::make_unique<ort::VisionGraph>(lowered.beside->open_vision(seeing)); };
  }
  const ort::CudaPlan plan{lowered.contract,
                           lowered.longest_call(),
                           options.cuda_graph,
                           lowered.directory,
                           stored_weights(lowered.model(), options),
                           text};
  const auto open = [&](const std::vector<ort::DeviceWeight>& weights) {
    lowered.execution.weights = weights;
    return ort::Session::open(lowered.library, lowered.model(), lowered.execution);
  };
  return ort::make_cuda_backend(plan, std::move(memory), open, std::move(sight));
}

std::unique_ptr<Backend> open_lowered(const std::string& directory, const Manifest& manifest,
                                      const LoadOptions& options, const std::shared_ptr<const Tables>& text) {
  const LoweredRecord& record = *manifest.lowered;
  const bool on_cpu = record.provider == kCpuProvider;
  if (!on_cpu && record.provider != kCudaProvider) {
    throw Error(ErrorCode::kUnsupported, "this library does not know the execution provider " + record.provider,
                directory, "use a later version of this library.");
  }
  check_cpu(record, directory);
  Lowered lowered{directory, manifest, options, read_contract(manifest.decoder, directory), nullptr, {}, {}};
  std::unique_ptr<DeviceMemory> memory = on_cpu ? nullptr : ort::open_cuda_memory(record, options);
  if (memory != nullptr) require_memory(needs_of(manifest, lowered.contract, options), memory->info(), memory->title());
  lowered.library = ort::Library::open(options.onnxruntime_library, record.minimum_onnxruntime);
  lowered.execution.threads = options.threads;
  if (record.plugin_version) {
    lowered.execution.operators = ort::find_operators(*record.plugin_version, directory, options);
  }
  if (manifest.vision) lowered.beside.emplace(directory, manifest, lowered.contract, lowered.library);
  return on_cpu ? open_on_cpu(lowered) : open_on_cuda(std::move(lowered), std::move(memory), text);
}

std::unique_ptr<Backend> open_built_engine(const std::string& directory, const Manifest& manifest,
                                           const LoadOptions& options) {
  trt::EnginePlan plan{read_contract(manifest.decoder, directory), *manifest.engine, {}};
  if (manifest.vision) plan.vision = read_vision_contract(*manifest.vision, plan.contract, directory);
  const LoweredRecord any_gpu{};
  std::unique_ptr<DeviceMemory> memory;
  std::optional<Error> without_gpu;
  try {
    memory = ort::open_cuda_memory(any_gpu, options);
    require_memory(needs_of(manifest, plan.contract, options), memory->info(), memory->title());
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kNoDriver) throw;
    without_gpu = error;  // TensorRT, which is asked next, reports this in its own words
  }
  const auto open = [&] {
    const trt::LoadEngine load = trt::open_tensorrt(plan.record, options);
    const auto load_of = [&](const GraphRecord& graph) { return load(directory + "/" + *graph.engine); };
    trt::Engines engines{load_of(manifest.decoder), nullptr, nullptr};
    if (manifest.vision) engines.embedding = load_of(manifest.vision->embedding);
    if (manifest.vision) engines.vision = load_of(manifest.vision->vision);
    return engines;
  };
  if (without_gpu) {
    open();
    throw Error(*without_gpu);
  }
  return trt::make_engine_backend(plan, std::move(memory), open);
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

std::unique_ptr<Sight> open_sight(const std::string& directory, const Manifest& manifest, const Contract& contract,
                                  const ModelState& model) {
  const VisionContract seen = read_vision_contract(*manifest.vision, contract, directory);
  if (manifest.vision->image_token >= contract.vocab_size) {
    throw Error(ErrorCode::kUnsupported,
                "the image token " + std::to_string(manifest.vision->image_token) + " is not one of the " +
                    std::to_string(contract.vocab_size) + " tokens of the decoder",
                directory, "make it again with `awq2trt build`.");
  }
  for (const std::vector<int32_t>* around : {&manifest.vision->before, &manifest.vision->after}) {
    for (const int32_t token : *around) {
      if (token < contract.vocab_size) continue;
      throw Error(ErrorCode::kUnsupported, "the decoder has no token " + std::to_string(token), directory,
                  "make it again with `awq2trt build`.");
    }
  }
  const ImageProcessor processor = ImageProcessor::from_directory(directory);
  if (const auto& patches = manifest.vision->patches) {
    processor.require_patches(patches->patch_size, patches->frames, patches->merge);
  } else if (const auto& tiles = manifest.vision->tiles) {
    processor.require_tiles(tiles->image_size, tiles->side_by_side);
  } else {
    processor.require_side(seen.side);
  }
  return std::make_unique<Sight>(*manifest.vision, seen, processor, *model.tokenizer, model.chat_template.get());
}

}  // namespace

std::shared_ptr<const ModelState> load_model(const std::string& directory, const LoadOptions& options) {
  check_options(options);
  return load_model(directory, options.verify,
                    [&](const Manifest& manifest, const std::shared_ptr<const Tables>& text) {
                      return manifest.lowered ? open_lowered(directory, manifest, options, text)
                                              : open_built_engine(directory, manifest, options);
                    });
}

std::shared_ptr<const ModelState> load_model(const std::string& directory, Verify verify, const OpenBackend& open) {
  const Manifest manifest = read_manifest(directory);
  check_files(directory, manifest, verify);
  auto model = std::make_shared<ModelState>();
  model->directory = directory;
  model->tokenizer = Tokenizer::from_directory(directory);
  model->chat_template = open_template(directory);
  model->stop_tokens = manifest.tokens.stop;
  const Contract contract = read_contract(manifest.decoder, directory);
  if ((contract.hidden_size != 0) != manifest.vision.has_value()) {
    throw Error(ErrorCode::kUnsupported, "its decoder reads embeddings, and no graph makes them, or the contrary",
                directory, "make it again with `awq2trt build`.");
  }
  check_tokenizer(*model->tokenizer, manifest.tokens, contract.vocab_size, directory);
  if (manifest.vision) model->sight = open_sight(directory, manifest, contract, *model);
  model->tables = tables_of(manifest, contract, directory);
  model->backend = open(manifest, model->tables ? model->tables->text() : nullptr);
  return model;
}

}  // namespace detail
}  // namespace awq2trt
