// See kit.h.
#include "artifact/kit.h"

#include <filesystem>
#include <fstream>
#include <iterator>

#include "artifact/sha256.h"
#include "awq2trt/awq2trt.hpp"

namespace awq2trt {
namespace {

namespace fs = std::filesystem;

constexpr char kSumsFile[] = "SHA256SUMS";
constexpr char kStateSuffix[] = ".state";
constexpr char kAgain[] = "build the engines again: ./finish.sh --rebuild";
constexpr size_t kDigits = 64;
constexpr int kHighestVersion = 99'99'99;

std::string read_file(const fs::path& path, const char* fix) {
  std::ifstream in(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  if (!in.is_open() || in.bad()) throw Error(ErrorCode::kNotFound, "it cannot be read", path.string(), fix);
  return text;
}

bool is_hash(std::string_view text) {
  return text.size() == kDigits && text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

// A version's number; 0 if the text is not a number.
int32_t number_of(std::string_view text) {
  int32_t number = 0;
  for (const char digit : text) {
    if (digit < '0' || digit > '9' || number > kHighestVersion) return 0;
    number = number * 10 + (digit - '0');
  }
  return number;
}

std::string hash_of(const std::string& bytes) {
  Sha256 hash;
  hash.update(bytes.data(), bytes.size());
  return hash.finish();
}

// What the script recorded of an engine.
EngineState state_of(const fs::path& engine, const std::string& kit) {
  const fs::path file = engine.string() + kStateSuffix;
  std::error_code problem;
  if (!fs::is_regular_file(engine, problem) || !fs::is_regular_file(file, problem)) {
    throw Error(ErrorCode::kNotFound, "the kit has no " + engine.filename().string() + " yet", kit,
                "run ./finish.sh there, on the Jetson that the kit is for.");
  }
  return parse_engine_state(read_file(file, kAgain), file.string());
}

}  // namespace

Version tensorrt_version(int32_t number) {
  constexpr int kMajor = 10000, kMinor = 100;
  return {number / kMajor, number / kMinor % (kMajor / kMinor), number % kMinor};
}

EngineState parse_engine_state(std::string_view text, const std::string& where) {
  EngineState state;
  int32_t number = 0;
  while (!text.empty()) {
    const std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(line.size() + 1, text.size()));
    const size_t equals = line.find('=');
    if (equals == std::string_view::npos) continue;
    const std::string_view key = line.substr(0, equals), value = line.substr(equals + 1);
    if (key == "kit") state.kit = value;
    if (key == "sha256") state.sha256 = value;
    if (key == "tensorrt") number = number_of(value);
  }
  state.tensorrt = tensorrt_version(number);
  if (!is_hash(state.kit) || !is_hash(state.sha256) || state.tensorrt[0] == 0) {
    throw Error(ErrorCode::kMalformed, "lines kit=, tensorrt= and sha256= are expected", where, kAgain);
  }
  return state;
}

void take_finished_engines(const std::string& directory, Manifest* manifest) {
  const fs::path folder(directory);
  const std::string sums = hash_of(read_file(folder / kSumsFile, "copy the kit again."));
  for (const auto& [graph, record] : manifest->graphs()) {
    const std::string& name = *record->engine;
    const fs::path engine = folder / name;
    const EngineState state = state_of(engine, directory);
    if (state.kit != sums) {
      throw Error(ErrorCode::kChangedFile, "the engine was built from an earlier kit", engine.string(),
                  "run ./finish.sh again.");
    }
    const std::string version = to_text(state.tensorrt);
    std::string& decoders = manifest->engine->tensorrt_version;  // the decoder is the first
    if (!decoders.empty() && decoders != version) {
      std::string what = "the engine was built by TensorRT " + version;
      what += ", that of the decoder by " + decoders;
      throw Error(ErrorCode::kEngineVersion, what, engine.string(), kAgain);
    }
    decoders = version;
    // The size may be anything: the script recorded the hash.
    std::error_code problem;
    manifest->files[name] = {fs::file_size(engine, problem), state.sha256};
  }
}

}  // namespace awq2trt
