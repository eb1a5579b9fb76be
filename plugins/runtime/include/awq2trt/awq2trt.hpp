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
// In: a directory, conversations or text. Out: text, tokens, scores. This header needs only C++17 and the standard
// library. All failures throw `Error`; nothing is ever printed.
//
// Threads: a Model may be used from any number of threads. Only one thread at a time may use a Session (a second one
// gets ErrorCode::kBusy), except for cancel(), which any thread may call. Different sessions of one model may be used
// at the same time. A Session keeps the parts of its model that it needs alive.
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

// The numbers are those of the C interface, and never change.
enum class ErrorCode : int32_t {
  kBadArgument = 1,          // a mistake of the caller: a null pointer, an option out of its range
  kNotFound = 2,             // there is no such file or directory
  kMalformed = 3,            // a file is malformed: JSON, a regular expression, a vocabulary with gaps
  kUnsupported = 4,          // this library does not support a part of tokenizer.json, of a template or of a model
  kInvalidUtf8 = 5,          // a text is not UTF-8
  kTemplateRaised = 6,       // the chat template refused the messages
  kLimit = 7,                // an input is nested too deeply, too long or too large
  kInternal = 8,             // host memory is used up, or something unexpected happened
  kChangedFile = 9,          // a file's size or hash differs from the manifest: it was truncated or changed
  kFutureManifest = 10,      // the directory was written by a version of awq2trt later than this library
  kNotAModel = 11,           // the directory is of another kind: a checkpoint, an exported graph, or several models
  kNoTemplate = 12,          // the model has no chat template
  kWrongTokenizer = 13,      // the tokenizer belongs to another model
  kEmptyPrompt = 14,         // there is nothing to continue
  kTooLong = 15,             // there are more tokens than the session can hold
  kBusy = 16,                // the session is in use by another thread
  kNoRuntime = 17,           // ONNX Runtime or TensorRT is not installed, or is too old
  kNoDriver = 18,            // there is no GPU, or no driver for it
  kWrongDevice = 19,         // the model was built for another GPU, or there is no GPU with that number
  kOutOfDeviceMemory = 20,   // the GPU has too little memory
  kEngineVersion = 21,       // the engine needs another version of TensorRT
  kRefused = 22,             // the runtime refuses the model; the message has its reason
  kRunFailed = 23,           // the runtime failed while running the model
  kOperatorsMissing = 24,    // the library of custom operators is not installed
  kOperatorsVersion = 25,    // that library has another version than the model needs
  kOperatorsUntrusted = 26,  // that library is in the model's directory, from which nobody allowed us to load code
  kWrongAnswers = 27         // the model does not reproduce its golden outputs
};

// What went wrong: a code for programs, and for people what was got and expected, where, and how to fix it.
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
  kFirstLoad,  // always sizes; hashes when these files are first loaded on this machine
  kSizes,      // sizes alone
  kAlways,     // sizes and hashes on every load
};

// Functions with which the application itself provides GPU memory for what sessions own: caches, tokens and scores. The
// runtime allocates weights and intermediate results by itself. The functions may be called from any thread, and must
// outlive the model; `allocate` returns null if there is no memory left.
struct DeviceAllocator {
  void* (*allocate)(size_t bytes, void* context) = nullptr;
  void (*free)(void* memory, void* context) = nullptr;
  void* context = nullptr;
};

struct LoadOptions {
  Verify verify = Verify::kFirstLoad;
  int32_t device = 0;      // number of the GPU; ignored for models built for the CPU
  int32_t threads = 0;     // threads of the CPU; 0 for the runtime's own choice
  bool cuda_graph = true;  // whether to decode in a captured CUDA graph
  // Paths of libraries. An empty one means the path in an environment variable (AWQ2TRT_ONNXRUNTIME,
  // AWQ2TRT_PLUGIN_PATH, AWQ2TRT_TENSORRT), or else the library that the loader finds.
  std::string onnxruntime_library;
  std::string operators_library;
  std::string tensorrt_library;
  // Whether the operator library in the model's own directory may be loaded: it is code, which is only as trustworthy
  // as the maker of the directory.
  bool trust_directory_library = false;
  void* stream = nullptr;     // CUDA stream to use; null for one that the library creates
  DeviceAllocator allocator;  // both functions, or neither to use cuMemAlloc
};

struct SessionOptions {
  int64_t max_tokens = 0;  // capacity of the cache, for prompt and answers; 0 for as many as the model was built for
};

struct Message {
  std::string role;  // "system", "user", "assistant"
  std::string content;
};

// How an answer is generated. docs/sampling.md defines the order of operations.
struct GenerateOptions {
  int64_t max_tokens = 0;           // most tokens in the answer; 0 for as many as the session can hold
  float temperature = 0.0f;         // divides the scores; 0 always takes the most probable token
  int32_t top_k = 0;                // restricts the choice to the k most probable tokens; 0 for all
  float top_p = 1.0f;               // restricts it to the fewest most probable tokens that together reach p; 1 for all
  float min_p = 0.0f;               // restricts it to tokens at least p times as probable as the best; 0 for all
  float repetition_penalty = 1.0f;  // divides positive and multiplies negative scores of tokens that occurred; 1: none
  std::optional<uint64_t> seed;     // seed of the random numbers; without one, each answer differs
  std::vector<std::pair<int32_t, float>> logit_bias;  // tokens, and what is added to their scores
  std::vector<std::string> stop;                      // the answer ends before the first of these texts
  std::vector<int32_t> stop_tokens;                   // tokens that end the answer, in addition to the model's own
  bool ignore_model_stops = false;                    // for measurements: whether to ignore the model's own stop tokens
};

// ---- Results ----

enum class FinishReason : int32_t {
  kStopToken = 1,   // the model ended its answer
  kStopString = 2,  // one of GenerateOptions::stop was generated
  kMaxTokens = 3,   // GenerateOptions::max_tokens are there
  kFull = 4,        // the session's cache is full
  kCallback = 5,    // the callback returned false
  kCancelled = 6,   // cancel() was called
};

struct Stats {
  int64_t prompt_tokens = 0;  // number of tokens that this call had to run before the first new one
  int64_t new_tokens = 0;
  double prefill_ms = 0.0;  // time until the first new token was chosen
  double decode_ms = 0.0;   // all later ones
};

struct Result {
  std::string text;             // complete characters, without the stop string
  std::vector<int32_t> tokens;  // all chosen tokens, without the stop token
  FinishReason finish_reason = FinishReason::kStopToken;
  Stats stats;
};

// The comparison with the model's golden outputs. An error is the norm of the difference of the scores, over the norm
// of the expected ones around their mean.
struct GoldenCheck {
  int64_t calls = 0;
  double worst_error = 0.0, allowed_error = 0.0;
};

// Receives complete UTF-8 characters as they become certain, and returns whether to continue. An exception that it
// throws ends the answer, and is passed on by generate().
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
  // the token, which it should not in texts of users.
  std::vector<int32_t> encode(std::string_view text, bool allow_special = false) const;
  std::string decode(const std::vector<int32_t>& tokens) const;  // special tokens have no text

  // Runs the golden calls of the directory, in a session of their own. Throws Error, with kWrongAnswers if the scores
  // differ from those in PyTorch: another runtime, GPU or driver may round differently, but must not be wrong.
  GoldenCheck check() const;

  int64_t capacity() const;    // the most tokens that a session can hold
  int64_t vocab_size() const;  // length of logits
  // Tokens that an image takes of a session; 0 if the model reads text alone, -1 if they depend on the image's size.
  int64_t tokens_per_image() const;
  const std::string& title() const;  // names what runs it: "ONNX Runtime 1.31.1, CPU"

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
  // conversation; tokens that are already in the cache are not run again. Throws Error, which leaves the session
  // unchanged, as the other calls that append do.
  void append(const std::vector<Message>& messages);
  // Adds plain text or tokens, which end the conversation: messages after them begin a new one. The first text of a
  // session gets the special tokens that the tokenizer puts around a text. `allow_special` means the same as in
  // Model::encode.
  void append_text(std::string_view text, bool allow_special = false);
  void append_tokens(const std::vector<int32_t>& tokens);
  // Looks at an image of 8-bit RGB, rows from the top, [height, width, 3]; the pixels may then be freed. The image
  // waits for the next append(), whose messages have "<image>" where it stands, or no marker at all: then it comes
  // before the user's last text. append_text() needs a marker for each image that waits, and append_tokens() as many
  // image tokens in a row as the image takes, or each of its tiles. Of a model that sees, no text may have a marker
  // without an image. Throws Error: kUnsupported if the model reads text alone, kTooLong if the session cannot hold all
  // images that wait, or a decoder that attends to images takes no more of them, kBadArgument if an image has no
  // pixels, more than 2^27, or a side more than 200 times as long as the other.
  void append_image(const uint8_t* rgb, int32_t width, int32_t height);

  // Generates an answer, whose tokens are appended without the stop token. Another call continues the same answer.
  Result generate(const GenerateOptions& options = {}, const TextCallback& callback = {});

  std::vector<float> logits();  // scores of the token that follows the last one, [vocab_size]

  // Forgets all tokens except for the first `tokens`, the messages and images that the others belonged to, and images
  // that wait.
  void rewind(int64_t tokens);
  // Returns a second session that continues from here, with a copy of the cache.
  Session fork() const;
  // Ends a running generate() after its current token, or chunk of the prompt; does nothing if none is running.
  void cancel() noexcept;

  std::vector<int32_t> tokens() const;
  int64_t capacity() const;

 private:
  friend class Model;
  explicit Session(std::unique_ptr<detail::SessionState> state);
  std::unique_ptr<detail::SessionState> state_;
};

}  // namespace awq2trt
