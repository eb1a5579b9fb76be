// The C interface; see awq2trt.h.
#include "awq2trt/awq2trt.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "library/c_calls.h"

struct awq2trt_model {
  awq2trt::Model model;
};
struct awq2trt_session {
  awq2trt::Session session;
};

namespace {

using awq2trt::Error;
using awq2trt::ErrorCode;
using awq2trt::c_calls::give;
using awq2trt::c_calls::guarded;
using awq2trt::c_calls::require;

// The caller's structure, of any version: fields that it lacks are 0.
template <typename Options>
Options known(const Options* given) {
  Options options{};
  if (given == nullptr) return options;
  if (given->size < sizeof(given->size)) {
    throw Error(ErrorCode::kBadArgument, "the structure's size is not set", "the call", "set it to sizeof.");
  }
  std::memcpy(&options, given, std::min(given->size, sizeof(options)));
  return options;
}

std::string text_of(const char* text) { return text == nullptr ? std::string() : std::string(text); }

std::vector<int32_t> tokens_of(const int32_t* tokens, size_t count) {
  require(tokens != nullptr || count == 0);
  return count == 0 ? std::vector<int32_t>() : std::vector<int32_t>(tokens, tokens + count);
}

awq2trt::LoadOptions load_options(const awq2trt_load_options* given) {
  const awq2trt_load_options from = known(given);
  if (from.verify < 0 || from.verify > static_cast<int32_t>(awq2trt::Verify::kAlways)) {
    throw Error(ErrorCode::kBadArgument, "got " + std::to_string(from.verify) + ", expected 0 to 2",
                "awq2trt_load_options.verify", "");
  }
  awq2trt::LoadOptions options;
  options.verify = static_cast<awq2trt::Verify>(from.verify);
  options.device = from.device;
  options.threads = from.threads;
  options.cuda_graph = from.no_cuda_graph == 0;
  options.onnxruntime_library = text_of(from.onnxruntime_library);
  options.operators_library = text_of(from.operators_library);
  options.tensorrt_library = text_of(from.tensorrt_library);
  options.trust_directory_library = from.trust_directory_library != 0;
  options.stream = from.stream;
  options.allocator = {from.allocate, from.free, from.allocator_context};
  return options;
}

awq2trt::GenerateOptions generate_options(const awq2trt_generate_options* given) {
  const awq2trt_generate_options from = known(given);
  require((from.logit_bias != nullptr || from.logit_bias_count == 0) && (from.stop != nullptr || from.stop_count == 0));
  awq2trt::GenerateOptions options;
  options.max_tokens = from.max_tokens;
  options.temperature = from.temperature;
  options.top_k = from.top_k;
  if (from.top_p != 0.0f) options.top_p = from.top_p;
  options.min_p = from.min_p;
  if (from.repetition_penalty != 0.0f) options.repetition_penalty = from.repetition_penalty;
  if (from.has_seed != 0) options.seed = from.seed;
  for (size_t i = 0; i < from.logit_bias_count; ++i) {
    options.logit_bias.emplace_back(from.logit_bias[i].token, from.logit_bias[i].bias);
  }
  for (size_t i = 0; i < from.stop_count; ++i) {
    require(from.stop[i].data != nullptr || from.stop[i].bytes == 0);
    options.stop.emplace_back(from.stop[i].bytes == 0 ? "" : from.stop[i].data, from.stop[i].bytes);
  }
  options.stop_tokens = tokens_of(from.stop_tokens, from.stop_tokens_count);
  options.ignore_model_stops = from.ignore_model_stops != 0;
  return options;
}

awq2trt::Message message_of(const awq2trt_message& from) {
  require((from.role != nullptr || from.role_bytes == 0) && (from.content != nullptr || from.content_bytes == 0));
  awq2trt::Message message;
  if (from.role_bytes > 0) message.role.assign(from.role, from.role_bytes);
  if (from.content_bytes > 0) message.content.assign(from.content, from.content_bytes);
  return message;
}

void give(const awq2trt::Result& from, awq2trt_result* result) {
  awq2trt_result made{};
  made.finish_reason = static_cast<int32_t>(from.finish_reason);
  made.prompt_tokens = from.stats.prompt_tokens;
  made.new_tokens = from.stats.new_tokens;
  made.prefill_ms = from.stats.prefill_ms;
  made.decode_ms = from.stats.decode_ms;
  give(from.text, &made.text, &made.text_bytes);
  try {
    give(from.tokens, &made.tokens, &made.tokens_count);
  } catch (...) {
    std::free(made.text);
    throw;
  }
  *result = made;
}

#define AWQ2TRT_STRUCTURE(structure) {#structure, "", 0, sizeof(structure)}
#define AWQ2TRT_FIELD(structure, field) {#structure, #field, offsetof(structure, field), sizeof(structure::field)}

// A field that is a pointer takes the size of a pointer. NOLINTBEGIN(bugprone-sizeof-expression)
constexpr awq2trt_layout kLayouts[] = {
    AWQ2TRT_STRUCTURE(awq2trt_load_options),
    AWQ2TRT_FIELD(awq2trt_load_options, size),
    AWQ2TRT_FIELD(awq2trt_load_options, verify),
    AWQ2TRT_FIELD(awq2trt_load_options, device),
    AWQ2TRT_FIELD(awq2trt_load_options, threads),
    AWQ2TRT_FIELD(awq2trt_load_options, no_cuda_graph),
    AWQ2TRT_FIELD(awq2trt_load_options, trust_directory_library),
    AWQ2TRT_FIELD(awq2trt_load_options, reserved),
    AWQ2TRT_FIELD(awq2trt_load_options, onnxruntime_library),
    AWQ2TRT_FIELD(awq2trt_load_options, operators_library),
    AWQ2TRT_FIELD(awq2trt_load_options, stream),
    AWQ2TRT_FIELD(awq2trt_load_options, allocate),
    AWQ2TRT_FIELD(awq2trt_load_options, free),
    AWQ2TRT_FIELD(awq2trt_load_options, allocator_context),
    AWQ2TRT_FIELD(awq2trt_load_options, tensorrt_library),
    AWQ2TRT_STRUCTURE(awq2trt_message),
    AWQ2TRT_FIELD(awq2trt_message, role),
    AWQ2TRT_FIELD(awq2trt_message, role_bytes),
    AWQ2TRT_FIELD(awq2trt_message, content),
    AWQ2TRT_FIELD(awq2trt_message, content_bytes),
    AWQ2TRT_STRUCTURE(awq2trt_text),
    AWQ2TRT_FIELD(awq2trt_text, data),
    AWQ2TRT_FIELD(awq2trt_text, bytes),
    AWQ2TRT_STRUCTURE(awq2trt_bias),
    AWQ2TRT_FIELD(awq2trt_bias, token),
    AWQ2TRT_FIELD(awq2trt_bias, bias),
    AWQ2TRT_STRUCTURE(awq2trt_generate_options),
    AWQ2TRT_FIELD(awq2trt_generate_options, size),
    AWQ2TRT_FIELD(awq2trt_generate_options, max_tokens),
    AWQ2TRT_FIELD(awq2trt_generate_options, temperature),
    AWQ2TRT_FIELD(awq2trt_generate_options, top_k),
    AWQ2TRT_FIELD(awq2trt_generate_options, top_p),
    AWQ2TRT_FIELD(awq2trt_generate_options, min_p),
    AWQ2TRT_FIELD(awq2trt_generate_options, repetition_penalty),
    AWQ2TRT_FIELD(awq2trt_generate_options, has_seed),
    AWQ2TRT_FIELD(awq2trt_generate_options, seed),
    AWQ2TRT_FIELD(awq2trt_generate_options, logit_bias),
    AWQ2TRT_FIELD(awq2trt_generate_options, logit_bias_count),
    AWQ2TRT_FIELD(awq2trt_generate_options, stop),
    AWQ2TRT_FIELD(awq2trt_generate_options, stop_count),
    AWQ2TRT_FIELD(awq2trt_generate_options, stop_tokens),
    AWQ2TRT_FIELD(awq2trt_generate_options, stop_tokens_count),
    AWQ2TRT_FIELD(awq2trt_generate_options, ignore_model_stops),
    AWQ2TRT_FIELD(awq2trt_generate_options, reserved),
    AWQ2TRT_STRUCTURE(awq2trt_result),
    AWQ2TRT_FIELD(awq2trt_result, text),
    AWQ2TRT_FIELD(awq2trt_result, text_bytes),
    AWQ2TRT_FIELD(awq2trt_result, tokens),
    AWQ2TRT_FIELD(awq2trt_result, tokens_count),
    AWQ2TRT_FIELD(awq2trt_result, finish_reason),
    AWQ2TRT_FIELD(awq2trt_result, reserved),
    AWQ2TRT_FIELD(awq2trt_result, prompt_tokens),
    AWQ2TRT_FIELD(awq2trt_result, new_tokens),
    AWQ2TRT_FIELD(awq2trt_result, prefill_ms),
    AWQ2TRT_FIELD(awq2trt_result, decode_ms),
};
// NOLINTEND(bugprone-sizeof-expression)

}  // namespace

const char* awq2trt_version(void) { return AWQ2TRT_VERSION; }
const char* awq2trt_last_error(void) { return awq2trt::c_calls::last_error; }
void awq2trt_free(void* result) { std::free(result); }

const awq2trt_layout* awq2trt_layouts(size_t* count) {
  *count = std::size(kLayouts);
  return kLayouts;
}

int32_t awq2trt_model_load(const char* directory, const awq2trt_load_options* options, awq2trt_model** model) {
  return guarded([&] {
    require(directory != nullptr && model != nullptr);
    *model = new awq2trt_model{awq2trt::Model::load(directory, load_options(options))};
  });
}

void awq2trt_model_close(awq2trt_model* model) { delete model; }
int64_t awq2trt_model_capacity(const awq2trt_model* model) { return model->model.capacity(); }
int64_t awq2trt_model_vocab_size(const awq2trt_model* model) { return model->model.vocab_size(); }
int64_t awq2trt_model_tokens_per_image(const awq2trt_model* model) { return model->model.tokens_per_image(); }
const char* awq2trt_model_title(const awq2trt_model* model) { return model->model.title().c_str(); }

int32_t awq2trt_model_check(const awq2trt_model* model, double* worst_error, double* allowed_error) {
  return guarded([&] {
    require(model != nullptr);
    const awq2trt::GoldenCheck check = model->model.check();
    if (worst_error != nullptr) *worst_error = check.worst_error;
    if (allowed_error != nullptr) *allowed_error = check.allowed_error;
  });
}

int32_t awq2trt_encode(const awq2trt_model* model, const char* text, size_t bytes, int32_t allow_special,
                       int32_t** tokens, size_t* count) {
  return guarded([&] {
    require(model != nullptr && (text != nullptr || bytes == 0) && tokens != nullptr && count != nullptr);
    give(model->model.encode(std::string_view(text, bytes), allow_special != 0), tokens, count);
  });
}

int32_t awq2trt_decode(const awq2trt_model* model, const int32_t* tokens, size_t count, char** text, size_t* bytes) {
  return guarded([&] {
    require(model != nullptr && text != nullptr && bytes != nullptr);
    give(model->model.decode(tokens_of(tokens, count)), text, bytes);
  });
}

int32_t awq2trt_session_open(const awq2trt_model* model, int64_t max_tokens, awq2trt_session** session) {
  return guarded([&] {
    require(model != nullptr && session != nullptr);
    awq2trt::SessionOptions options;
    options.max_tokens = max_tokens;
    *session = new awq2trt_session{model->model.session(options)};
  });
}

void awq2trt_session_close(awq2trt_session* session) { delete session; }

int32_t awq2trt_session_append(awq2trt_session* session, const awq2trt_message* messages, size_t count) {
  return guarded([&] {
    require(session != nullptr && (messages != nullptr || count == 0));
    std::vector<awq2trt::Message> list;
    for (size_t i = 0; i < count; ++i) list.push_back(message_of(messages[i]));
    session->session.append(list);
  });
}

int32_t awq2trt_session_append_text(awq2trt_session* session, const char* text, size_t bytes, int32_t allow_special) {
  return guarded([&] {
    require(session != nullptr && (text != nullptr || bytes == 0));
    session->session.append_text(std::string_view(text, bytes), allow_special != 0);
  });
}

int32_t awq2trt_session_append_tokens(awq2trt_session* session, const int32_t* tokens, size_t count) {
  return guarded([&] {
    require(session != nullptr);
    session->session.append_tokens(tokens_of(tokens, count));
  });
}

int32_t awq2trt_session_append_image(awq2trt_session* session, const uint8_t* rgb, int32_t width, int32_t height) {
  return guarded([&] {
    require(session != nullptr);
    session->session.append_image(rgb, width, height);
  });
}

int32_t awq2trt_session_generate(awq2trt_session* session, const awq2trt_generate_options* options,
                                 awq2trt_callback callback, void* context, awq2trt_result* result) {
  return guarded([&] {
    require(session != nullptr && result != nullptr);
    awq2trt::TextCallback listener;
    if (callback != nullptr) {
      listener = [&](std::string_view text) { return callback(text.data(), text.size(), context) != 0; };
    }
    give(session->session.generate(generate_options(options), listener), result);
  });
}

void awq2trt_result_free(awq2trt_result* result) {
  if (result == nullptr) return;
  std::free(result->text);
  std::free(result->tokens);
  *result = awq2trt_result{};
}

int32_t awq2trt_session_logits(awq2trt_session* session, float* logits, size_t count) {
  return guarded([&] {
    require(session != nullptr && logits != nullptr);
    const std::vector<float> scores = session->session.logits();
    if (count != scores.size()) {
      throw Error(ErrorCode::kBadArgument,
                  "there is room for " + std::to_string(count) + " scores, expected " + std::to_string(scores.size()),
                  "awq2trt_session_logits", "awq2trt_model_vocab_size says how many there are.");
    }
    std::copy(scores.begin(), scores.end(), logits);
  });
}

int32_t awq2trt_session_rewind(awq2trt_session* session, int64_t tokens) {
  return guarded([&] {
    require(session != nullptr);
    session->session.rewind(tokens);
  });
}

int32_t awq2trt_session_fork(const awq2trt_session* session, awq2trt_session** copy) {
  return guarded([&] {
    require(session != nullptr && copy != nullptr);
    *copy = new awq2trt_session{session->session.fork()};
  });
}

void awq2trt_session_cancel(awq2trt_session* session) {
  if (session != nullptr) session->session.cancel();
}

int32_t awq2trt_session_tokens(const awq2trt_session* session, int32_t** tokens, size_t* count) {
  return guarded([&] {
    require(session != nullptr && tokens != nullptr && count != nullptr);
    give(session->session.tokens(), tokens, count);
  });
}

int64_t awq2trt_session_capacity(const awq2trt_session* session) { return session->session.capacity(); }
