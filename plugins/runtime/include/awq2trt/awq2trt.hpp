// awq2trt for C++ applications: load a model that `awq2trt build` wrote, and let it answer.
//
//   auto model = awq2trt::Model::load("build/smollm2/cpu");
//   auto session = model.session();
//   session.append({{"user", "What is the capital of France?"}});
//   awq2trt::GenerateOptions options;
//   options.temperature = 0.7f;
//   auto result = session.generate(options, [](std::string_view utf8) { std::cout << utf8 << std::flush; return true;
//   });
//
// In: a directory, conversations or text. Out: text, tokens, scores. This header needs C++17 and the standard library
// alone. Everything that goes wrong throws `Error`; nothing is ever printed.
//
// Threads: a Model may be used from any number of threads. A Session is used by one thread at a time (a second one gets
// ErrorCode::kBusy), except for cancel(), which any thread may call. Different sessions of one model may be used at
// once. A Session keeps what it needs of its model alive.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#define AWQ2TRT_API __attribute__((visibility("default")))

namespace awq2trt {

// ---- Errors ----

// The numbers are those of the C interface, and stay what they are.
enum class ErrorCode : int32_t {
  kBadArgument = 1,      // the caller's: a null pointer, an option out of its range
  kNotFound = 2,         // no such file or directory
  kMalformed = 3,        // a file that is not what its format says: JSON, a regular expression, a vocabulary with holes
  kUnsupported = 4,      // a part of tokenizer.json, of a template or of a model that this library does not know
  kInvalidUtf8 = 5,      // text that is not UTF-8
  kTemplateRaised = 6,   // the chat template refused the messages
  kLimit = 7,            // deeper, longer or larger than what is worked on
  kInternal = 8,         // host memory used up, and what nobody foresaw
  kChangedFile = 9,      // a file's size or hash is not what the manifest says: truncated, or changed since
  kFutureManifest = 10,  // written by a version of awq2trt that is later than this library
  kNotAModel = 11,       // an artifact of another kind: a checkpoint, an exported graph, a directory of several
  kNoTemplate = 12,      // the model has no chat template
  kWrongTokenizer = 13,  // the tokenizer is that of another model
  kEmptyPrompt = 14,     // there is nothing to continue
  kTooLong = 15,         // more tokens than the session holds
  kBusy = 16,            // the session is in use by another thread
  kNoRuntime = 17,       // ONNX Runtime or TensorRT is not installed, or too old
  kNoDriver = 18,        // no GPU, or no driver for it
  kWrongDevice = 19,     // built for another GPU than this one, or there is no GPU of that number
  kOutOfDeviceMemory = 20,   // the GPU's memory does not suffice
  kEngineVersion = 21,       // the engine is of another version of TensorRT
  kRefused = 22,             // the runtime refuses the model, and its own message says why
  kRunFailed = 23,           // the runtime failed while it ran the model
  kOperatorsMissing = 24,    // the library of custom operators is not installed
  kOperatorsVersion = 25,    // it is of another version than the model wants
  kOperatorsUntrusted = 26,  // it lies in the model's own directory, and no one allowed to load code from there
  kWrongAnswers = 27         // the model's golden outputs do not come out
};

// What went wrong: a code for programs; for people what was got and expected, where, and the command that fixes it.
class AWQ2TRT_API Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& what, const std::string& where, const std::string& fix);
  ~Error() override;
  ErrorCode code() const noexcept { return code_; }

 private:
  ErrorCode code_;
};

// ---- Options ----

enum class Verify {
  kFirstLoad,  // sizes always; hashes when these files are loaded for the first time on this machine
  kSizes,      // sizes alone
  kAlways,     // sizes and hashes at every load
};

// Memory of the GPU that the application hands out itself, for what sessions own: caches, tokens and scores. Weights
// and what is computed in between stay the runtime's. The functions are called from any thread, and outlive the model;
// `allocate` returns null if there is no memory left.
struct DeviceAllocator {
  void* (*allocate)(size_t bytes, void* context) = nullptr;
  void (*free)(void* memory, void* context) = nullptr;
  void* context = nullptr;
};

struct LoadOptions {
  Verify verify = Verify::kFirstLoad;
  int32_t device = 0;      // number of the GPU; of no meaning for models built for the CPU
  int32_t threads = 0;     // of the CPU; 0 for the runtime's own choice
  bool cuda_graph = true;  // decode in a captured CUDA graph
  // Libraries, each a path: empty for the environment variable AWQ2TRT_ONNXRUNTIME (AWQ2TRT_PLUGIN_PATH), else what the
  // loader finds.
  std::string onnxruntime_library;
  std::string operators_library;
  std::string tensorrt_library;  // and AWQ2TRT_TENSORRT
  // Whether the operator library in the model's own directory may be loaded: it is code, and as trusted as whoever made
  // the directory.
  bool trust_directory_library = false;
  void* stream = nullptr;     // CUDA stream to work on; null for one of our own
  DeviceAllocator allocator;  // both functions, or none for cuMemAlloc
};

struct SessionOptions {
  int64_t max_tokens = 0;  // tokens of the cache, prompt and answers together; 0 for as many as the model was built for
};

struct Message {
  std::string role;  // "system", "user", "assistant"
  std::string content;
};

// How an answer is chosen. The order of operations: docs/sampling.md.
struct GenerateOptions {
  int64_t max_tokens = 0;           // of the answer; 0 for as many as the session holds
  float temperature = 0.0f;         // divides the scores; 0 always takes the best token
  int32_t top_k = 0;                // only the k best tokens; 0 for all
  float top_p = 1.0f;               // only the fewest best tokens whose probabilities reach p; 1 for all
  float min_p = 0.0f;               // only tokens at least p times as probable as the best; 0 for all
  float repetition_penalty = 1.0f;  // divides positive and multiplies negative scores of tokens that are there; 1: none
  std::optional<uint64_t> seed;     // of the random numbers; none for another answer each time
  std::vector<std::pair<int32_t, float>> logit_bias;  // token, and what its score gets on top
  std::vector<std::string> stop;                      // the answer ends before the first of these texts
  std::vector<int32_t> stop_tokens;                   // besides the model's own
  bool ignore_model_stops = false;                    // for measurements: the model's own stop tokens do not count
};

// ---- Results ----

enum class FinishReason : int32_t {
  kStopToken = 1,   // the model ended its answer
  kStopString = 2,  // one of GenerateOptions::stop came
  kMaxTokens = 3,   // GenerateOptions::max_tokens are there
  kFull = 4,        // the session's cache is full
  kCallback = 5,    // the callback returned false
  kCancelled = 6,   // cancel() was called
};

struct Stats {
  int64_t prompt_tokens = 0;  // that this call had to run before the first new one
  int64_t new_tokens = 0;
  double prefill_ms = 0.0;  // until the first new token was chosen
  double decode_ms = 0.0;   // all later ones
};

struct Result {
  std::string text;             // whole characters; without the stop string
  std::vector<int32_t> tokens;  // all that were chosen, without the stop token
  FinishReason finish_reason = FinishReason::kStopToken;
  Stats stats;
};

// The model's golden outputs, compared. An error is the norm of the difference of the scores, over the norm of the
// expected ones around their mean.
struct GoldenCheck {
  int64_t calls = 0;
  double worst_error = 0.0, allowed_error = 0.0;
};

// Gets whole UTF-8 characters as they become certain; returns whether to go on. What it throws ends the answer, and
// comes out of generate().
using TextCallback = std::function<bool(std::string_view utf8)>;

// ---- Model and session ----

namespace detail {
class ModelState;
class SessionState;
}  // namespace detail

class Session;

class AWQ2TRT_API Model {
 public:
  // Reads the manifest, checks files and device, loads the weights. Throws Error.
  static Model load(const std::string& directory, const LoadOptions& options = {});

  Session session(const SessionOptions& options = {}) const;

  // Ids of a text, as the model's tokenizer writes them. `allow_special`: whether e.g. "<|im_end|>" in the text means
  // the token; what users write should not.
  std::vector<int32_t> encode(std::string_view text, bool allow_special = false) const;
  std::string decode(const std::vector<int32_t>& tokens) const;  // special tokens have no text

  // Runs the golden calls of the directory, in a session of their own. Throws Error, kWrongAnswers if the scores are
  // not those that the exported model had in PyTorch: another runtime, GPU or driver may round, but not err.
  GoldenCheck check() const;

  int64_t capacity() const;          // most tokens of a session
  int64_t vocab_size() const;        // length of logits
  const std::string& title() const;  // what runs it, for people: "ONNX Runtime 1.31.1, CPU"

 private:
  explicit Model(std::shared_ptr<const detail::ModelState> state);
  std::shared_ptr<const detail::ModelState> state_;
};

// One conversation, with its cache. Appended tokens wait until generate() or logits() runs them.
class AWQ2TRT_API Session {
 public:
  Session(Session&&) noexcept;
  Session& operator=(Session&&) noexcept;
  ~Session();  // no other thread may use the session any more

  // Adds messages to the conversation, through the model's chat template. Answers of generate() are part of the
  // conversation; what the cache holds of it already is not run again. Throws Error; then the session is as it was.
  void append(const std::vector<Message>& messages);
  // Adds plain text or tokens, which end the conversation: messages after them begin a new one. The first text of a
  // session gets what the tokenizer puts around a text. `allow_special`: as for Model::encode.
  void append_text(std::string_view text, bool allow_special = false);
  void append_tokens(const std::vector<int32_t>& tokens);
  // Adds an image of 8-bit RGB, rows from the top, [height, width, 3]. Models that see are not built for this library
  // yet: throws Error, kUnsupported.
  void append_image(const uint8_t* rgb, int32_t width, int32_t height);

  // Answers. The tokens of the answer are appended, without the stop token. Another call goes on with the same answer.
  Result generate(const GenerateOptions& options = {}, const TextCallback& callback = {});

  std::vector<float> logits();  // scores of what follows the last token, [vocab_size]

  // Forgets all tokens but the first `tokens`, and the messages that they were of.
  void rewind(int64_t tokens);
  // A second session that goes on from here, with a copy of the cache.
  Session fork() const;
  // Ends the generate() that runs, after the token or the chunk of the prompt at hand; does nothing if none does.
  void cancel() noexcept;

  std::vector<int32_t> tokens() const;
  int64_t capacity() const;

 private:
  friend class Model;
  explicit Session(std::unique_ptr<detail::SessionState> state);
  std::unique_ptr<detail::SessionState> state_;
};

}  // namespace awq2trt
