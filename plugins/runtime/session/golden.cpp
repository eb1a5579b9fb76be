// See golden.h.
#include "session/golden.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <numeric>

namespace awq2trt {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr char kDescription[] = "golden.json";
constexpr char kLogitsFile[] = "logits";
constexpr int kFormat = 1;

struct GoldenCall {
  std::string name;
  std::vector<int32_t> tokens;
  std::vector<float> logits;
};

[[noreturn]] void malformed(const std::string& what, const fs::path& where) {
  throw Error(ErrorCode::kMalformed, what, where.string(), "copy the directory again, or export the model again.");
}

std::string read_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in.is_open()) {
    throw Error(ErrorCode::kNotFound, "the model has no such golden output", path.string(), "export the model again.");
  }
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

GoldenCall read_call(const json& entry, const fs::path& folder, const Backend& backend) {
  GoldenCall call;
  call.name = entry.at("name").get<std::string>();
  for (const json& token : entry.at("tokens")) {
    if (!token.is_number_unsigned() || token.get<uint64_t>() >= static_cast<uint64_t>(backend.vocab_size())) {
      malformed("call " + call.name + ": tokens of the model's vocabulary are expected", folder / kDescription);
    }
    call.tokens.push_back(token.get<int32_t>());
  }
  if (call.tokens.empty() || static_cast<int64_t>(call.tokens.size()) > backend.capacity()) {
    malformed("call " + call.name + ": tokens are expected, at most " + std::to_string(backend.capacity()),
              folder / kDescription);
  }
  const fs::path file = entry.at("files").at(kLogitsFile).get<std::string>();
  if (file != file.filename()) malformed("a file of the directory is expected", folder / kDescription);
  const std::string bytes = read_file(folder / file);
  call.logits.resize(static_cast<size_t>(backend.vocab_size()));
  if (bytes.size() != call.logits.size() * sizeof(float)) {
    malformed(std::to_string(call.logits.size()) + " float32 are expected", folder / file);
  }
  std::copy(bytes.begin(), bytes.end(), reinterpret_cast<char*>(call.logits.data()));
  return call;
}

// The scores after a call's tokens.
std::vector<float> run(const GoldenCall& call, const Backend& backend) {
  const std::unique_ptr<Cache> cache = backend.new_cache(backend.capacity());
  const auto longest = static_cast<size_t>(backend.longest_call());
  for (size_t begin = 0; begin < call.tokens.size(); begin += longest) {
    cache->append(&call.tokens[begin], std::min(longest, call.tokens.size() - begin));
  }
  std::vector<float> logits(call.logits.size());
  cache->read_logits(logits.data());
  return logits;
}

}  // namespace

double relative_error(const std::vector<float>& got, const std::vector<float>& expected) {
  const double mean = std::accumulate(expected.begin(), expected.end(), 0.0) / static_cast<double>(expected.size());
  double difference = 0, spread = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double off = static_cast<double>(got[i]) - expected[i], apart = expected[i] - mean;
    difference += off * off;
    spread += apart * apart;
  }
  return std::sqrt(difference) / std::max(std::sqrt(spread), std::numeric_limits<double>::min());
}

GoldenCheck check_golden(const std::string& directory, const Backend& backend) {
  const fs::path folder(directory);
  GoldenCheck check;
  std::vector<GoldenCall> calls;
  try {
    const json description = json::parse(read_file(folder / kDescription));
    if (description.at("format_version") != kFormat) malformed("an unknown format version", folder / kDescription);
    check.allowed_error = description.at("relative_tolerance").get<double>();
    for (const json& entry : description.at("calls")) {
      if (entry.at("cache_position") == 0) calls.push_back(read_call(entry, folder, backend));
    }
  } catch (const json::exception& error) {
    malformed(error.what(), folder / kDescription);
  }
  if (calls.empty()) malformed("it has no call that begins a conversation", folder / kDescription);
  for (const GoldenCall& call : calls) {
    const double error = relative_error(run(call, backend), call.logits);
    if (!(error <= check.allowed_error)) {  // not so for NaN
      throw Error(ErrorCode::kWrongAnswers,
                  "call " + call.name + ": relative error of the scores " + std::to_string(error) + ", allowed are " +
                      std::to_string(check.allowed_error),
                  backend.title(), "report it, with the output of `awq2trt doctor`.");
    }
    check.worst_error = std::max(check.worst_error, error);
    ++check.calls;
  }
  return check;
}

}  // namespace awq2trt
