// See golden.h.
#include "session/golden.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>

#include "backend/contract.h"
#include "images/patches.h"

namespace awq2trt {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr char kDescription[] = "golden.json";
constexpr char kLogitsFile[] = "logits";
constexpr char kImage[] = "vision";
constexpr char kAttended[] = "attended";
constexpr int kFormat = 1;

struct GoldenCall {
  std::string name;
  std::vector<int32_t> tokens;
  std::vector<float> logits;
};

// A prepared image, and what the vision graph must make of it.
struct GoldenImage {
  PreparedImage prepared;
  std::vector<float> embeddings;
  double allowed_error;
  bool attended;  // every conversation begins with its token
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

// A file that an entry names.
fs::path file_of(const json& entry, const char* name, const fs::path& folder) {
  const fs::path file = entry.at("files").at(name).get<std::string>();
  if (file != file.filename()) malformed("a file of the directory is expected", folder / kDescription);
  return folder / file;
}

// All numbers of a file that an entry names.
std::vector<float> read_numbers(const json& entry, const char* name, Number number, const fs::path& folder) {
  const fs::path file = file_of(entry, name, folder);
  const std::string bytes = read_file(file);
  std::vector<float> numbers(bytes.size() / bytes_of(number));
  if (numbers.empty() || bytes.size() % bytes_of(number) != 0) malformed("numbers are expected", file);
  widen(bytes.data(), number, numbers.size(), numbers.data());
  return numbers;
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
  call.logits = read_numbers(entry, kLogitsFile, Number::kFloat32, folder);
  if (call.logits.size() != static_cast<size_t>(backend.vocab_size())) {
    malformed("call " + call.name + ": scores of " + std::to_string(backend.vocab_size()) + " tokens are expected",
              folder / kDescription);
  }
  return call;
}

Indices read_indices(const json& entry, const IndexContract& index, const fs::path& folder) {
  const fs::path file = file_of(entry, index.name.c_str(), folder);
  const std::string bytes = read_file(file);
  const auto row = static_cast<size_t>(index.columns) * sizeof(int64_t);
  if (bytes.empty() || bytes.size() % row != 0) malformed("rows of whole numbers are expected", file);
  Indices indices{index.name, std::vector<int64_t>(bytes.size() / sizeof(int64_t)), {}};
  std::memcpy(indices.values.data(), bytes.data(), bytes.size());
  indices.shape = {static_cast<int64_t>(bytes.size() / row)};
  if (index.columns != 1) indices.shape.push_back(index.columns);
  return indices;
}

GoldenImage read_image(const json& entry, const fs::path& folder, const VisionContract& seeing) {
  GoldenImage image{{},
                    read_numbers(entry, kImageEmbeddings, Number::kFloat32, folder),
                    entry.at("relative_tolerance").get<double>(),
                    entry.value(kAttended, false)};
  PreparedImage& prepared = image.prepared;
  prepared.pixels = read_numbers(entry, kPixelValues, Number::kFloat16, folder);
  prepared.pieces = static_cast<int64_t>(image.embeddings.size()) / seeing.width;
  if (prepared.pieces * seeing.width != static_cast<int64_t>(image.embeddings.size())) {
    malformed("whole pieces of an image are expected", folder / kDescription);
  }
  if (image.attended && prepared.pieces != seeing.pieces) {
    malformed("an image of " + std::to_string(seeing.pieces) + " pieces is expected", folder / kDescription);
  }
  for (const IndexContract& index : seeing.indices) prepared.indices.push_back(read_indices(entry, index, folder));
  const auto count = static_cast<int64_t>(prepared.pixels.size());
  prepared.shape = seeing.numbers != 0 ? std::vector<int64_t>{count / seeing.numbers, seeing.numbers}
                                       : std::vector<int64_t>{count / (kChannels * seeing.side * seeing.side),
                                                              kChannels, seeing.side, seeing.side};
  return image;
}

// The scores after a call's tokens. `image`: at the first of them, if there is one.
std::vector<float> run(const GoldenCall& call, const Backend& backend, const detail::DecoderTables* tables,
                       const detail::Pieces& image) {
  detail::Prompt prompt{call.tokens, {}};
  if (image != nullptr) prompt.images.push_back({0, 1, image});
  const std::shared_ptr<const Tables> filled = tables == nullptr ? nullptr : tables->of(prompt);
  const std::unique_ptr<Cache> cache = backend.new_cache(backend.capacity());
  const auto longest = static_cast<size_t>(backend.longest_call());
  const Embedder* const embedder = backend.embedder();
  std::vector<float> rows;
  for (size_t begin = 0; begin < call.tokens.size(); begin += longest) {
    const size_t count = std::min(longest, call.tokens.size() - begin);
    if (embedder != nullptr) {
      rows.resize(count * static_cast<size_t>(embedder->width()));
      embedder->embed(&call.tokens[begin], count, rows.data());
    }
    cache->append({&call.tokens[begin], count, rows.data(), filled});
  }
  std::vector<float> logits(call.logits.size());
  cache->read_logits(logits.data());
  return logits;
}

// Refuses an error that is larger than allowed, or NaN.
void check_error(const std::string& what, double error, double allowed, const Backend& backend) {
  if (error <= allowed) return;
  throw Error(ErrorCode::kWrongAnswers, what + std::to_string(error) + ", allowed are " + std::to_string(allowed),
              backend.title(), "report it, with the output of `awq2trt doctor`.");
}

// Gives the pieces that are seen.
std::vector<float> check_image(const GoldenImage& image, const Backend& backend, const fs::path& where) {
  std::vector<float> seen = backend.embedder()->see(image.prepared);
  if (seen.size() != image.embeddings.size()) malformed("pieces of another image", where);
  check_error("the image: relative error of its pieces ", relative_error(seen, image.embeddings), image.allowed_error,
              backend);
  return seen;
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

GoldenCheck check_golden(const std::string& directory, const Backend& backend, const VisionContract* seeing,
                         const detail::DecoderTables* tables) {
  const fs::path folder(directory);
  GoldenCheck check;
  std::vector<GoldenCall> calls;
  std::optional<GoldenImage> image;
  try {
    const json description = json::parse(read_file(folder / kDescription));
    if (description.at("format_version") != kFormat) malformed("an unknown format version", folder / kDescription);
    check.allowed_error = description.at("relative_tolerance").get<double>();
    if (description.contains(kImage)) {
      if (seeing == nullptr) malformed("an image for a model of text", folder / kDescription);
      image = read_image(description.at(kImage), folder, *seeing);
    }
    for (const json& entry : description.at("calls")) {
      if (entry.at("cache_position") == 0) calls.push_back(read_call(entry, folder, backend));
    }
  } catch (const json::exception& error) {
    malformed(error.what(), folder / kDescription);
  }
  if (calls.empty()) malformed("it has no call that begins a conversation", folder / kDescription);
  detail::Pieces first;
  if (image) {
    const detail::SeenImage seen{check_image(*image, backend, folder / kDescription), 1, {}, {}};
    if (image->attended) first = std::make_shared<const detail::SeenImage>(seen);
  }
  for (const GoldenCall& call : calls) {
    const double error = relative_error(run(call, backend, tables, first), call.logits);
    check_error("call " + call.name + ": relative error of the scores ", error, check.allowed_error, backend);
    check.worst_error = std::max(check.worst_error, error);
    ++check.calls;
  }
  return check;
}

}  // namespace awq2trt
