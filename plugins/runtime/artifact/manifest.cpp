// See manifest.h.
#include "artifact/manifest.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <sstream>

#include "artifact/kit.h"
#include "awq2trt/awq2trt.hpp"
#include "text/json_fields.h"

namespace awq2trt {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr int kFormat = 2;
constexpr int kDeepest = 32;                     // a manifest has eight levels
constexpr uint64_t kLargestBytes = 64ull << 20;  // a thousand times that of a model with 80 layers
constexpr int64_t kMostPositions = int64_t{1} << 31;
constexpr char kDecoder[] = "decoder";
constexpr char kVision[] = "vision";
constexpr char kEmbedding[] = "embedding";
constexpr char kLlava[] = "llava";
constexpr char kQwenVl[] = "qwen2_5_vl";
constexpr char kQwen3Vl[] = "qwen3_vl";
constexpr char kSmolVlm[] = "smolvlm";
constexpr char kLlavaNext[] = "llava_next";
constexpr char kGemma3[] = "gemma3-vision";
constexpr char kFlamingo[] = "openflamingo";
constexpr const char* kSeeing[] = {kGemma3, kLlava, kLlavaNext, kFlamingo, kQwenVl, kQwen3Vl, kSmolVlm};
constexpr int64_t kLargestPart = 1 << 13;  // of an image, in pixels or frames
constexpr size_t kPositionNumbers = 3;     // frame, row and column
constexpr char kKit[] = "kit";
constexpr char kEngine[] = "engine";
constexpr char kProfiles[] = "profiles";
constexpr char kSequence[] = "sequence", kPatches[] = "patches", kWindows[] = "windows";  // axes of profiles
constexpr char kTensorRt[] = "tensorrt";  // flavour of a Jetson's engine

[[noreturn]] void malformed(const std::string& what, const std::string& where) {
  throw Error(ErrorCode::kMalformed, what, where, "make it again with `awq2trt build`.");
}

json read_json(std::string_view text, const std::string& where) {
  const auto bounded = [&](int depth, json::parse_event_t, json&) {
    if (depth > kDeepest) malformed("nested more than " + std::to_string(kDeepest) + " levels deep", where);
    return true;
  };
  try {
    return json::parse(text, bounded);
  } catch (const json::exception& error) {
    malformed(std::string("not JSON: ") + error.what(), where);
  }
}

int64_t size_of(Fields* fields, const std::string& key, int64_t least) {
  const json& value = fields->need(key);
  const bool fits = value.is_number_integer() && !(value.is_number_unsigned() && value.get<uint64_t>() > INT64_MAX);
  if (!fits || value.get<int64_t>() < least)
    malformed("a whole number is expected, at least " + std::to_string(least), fields->place(key));
  return value.get<int64_t>();
}

const json& list_of(Fields* fields, const std::string& key) {
  const json& value = fields->need(key);
  if (!value.is_array()) malformed("a list is expected", fields->place(key));
  return value;
}

std::vector<std::string> texts_of(Fields* fields, const std::string& key) {
  std::vector<std::string> texts;
  for (const json& value : list_of(fields, key)) {
    if (!value.is_string()) malformed("a list of texts is expected", fields->place(key));
    texts.push_back(value.get<std::string>());
  }
  return texts;
}

Version numbers_of(Fields* fields, const std::string& key) {
  Version numbers;
  for (const json& value : list_of(fields, key)) {
    if (!value.is_number_unsigned() || value.get<uint64_t>() > INT32_MAX) {
      malformed("a list of whole numbers is expected", fields->place(key));
    }
    numbers.push_back(value.get<int>());
  }
  return numbers;
}

std::optional<std::string> text_if(Fields* fields, const std::string& key) {
  return fields->find(key) == nullptr ? std::nullopt : std::optional<std::string>(fields->text(key));
}

// A file's name that stays inside the directory.
bool stays_inside(const std::string& name) {
  const fs::path path(name);
  if (name.empty() || name == kManifestFile || path.is_absolute() || name.find('\0') != std::string::npos) return false;
  return std::none_of(path.begin(), path.end(), [](const fs::path& part) { return part == ".."; });
}

std::map<std::string, FileRecord> read_files(const json& value, const std::string& where) {
  std::map<std::string, FileRecord> files;
  const Fields all(value, where);
  for (const auto& [name, record] : value.items()) {
    if (!stays_inside(name)) malformed("the file name '" + name + "' does not stay inside the directory", where);
    Fields fields(record, all.place(name));
    const FileRecord file{static_cast<uint64_t>(size_of(&fields, "size_bytes", 0)), fields.text("sha256")};
    const auto is_digit = [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); };
    if (file.sha256.size() != 64 || !std::all_of(file.sha256.begin(), file.sha256.end(), is_digit)) {
      malformed("64 hexadecimal digits are expected", fields.place("sha256"));
    }
    files.emplace(name, file);
  }
  return files;
}

std::vector<TensorRecord> read_tensors(Fields* io, const std::string& key) {
  std::vector<TensorRecord> tensors;
  for (const json& value : list_of(io, key)) {
    Fields fields(value, io->place(key));
    TensorRecord tensor{fields.text("name"), fields.text("dtype"), {}, fields.text_or("alias", "")};
    for (const json& axis : list_of(&fields, "shape")) {
      const bool sized = axis.is_number_unsigned() && axis.get<uint64_t>() <= INT32_MAX;
      if (!sized && !axis.is_string()) malformed("sizes and names of axes are expected", fields.place("shape"));
      tensor.shape.push_back(sized ? axis.get<int64_t>() : TensorRecord::kFree);
    }
    tensors.push_back(std::move(tensor));
  }
  return tensors;
}

GraphRecord read_graph(const json& value, const std::string& where) {
  Fields fields(value, where);
  GraphRecord graph;
  graph.model = fields.text("model");
  graph.engine = text_if(&fields, "engine");
  if (graph.engine && !stays_inside(*graph.engine)) {
    malformed("the file name '" + *graph.engine + "' does not stay inside the directory", fields.place("engine"));
  }
  Fields io(fields.need("io"), fields.place("io"));
  graph.inputs = read_tensors(&io, "inputs");
  graph.outputs = read_tensors(&io, "outputs");
  if (io.find("cache") == nullptr) return graph;
  Fields cache(io.need("cache"), io.place("cache"));
  graph.cache_layout = cache.text("layout");
  graph.cache_dtype = cache.text("dtype");
  graph.capacity = size_of(&cache, "capacity", 1);
  if (graph.capacity > kMostPositions)
    malformed("a cache of 2^31 positions at most is expected", cache.place("capacity"));
  return graph;
}

std::vector<double> reals_of(Fields* fields, const std::string& key) {
  std::vector<double> numbers;
  for (const json& value : list_of(fields, key)) {
    if (!value.is_number()) malformed("a list of numbers is expected", fields->place(key));
    numbers.push_back(value.get<double>());
  }
  return numbers;
}

// The number that each pair of channels follows, as in awq2trt/models/families/rotary.py; fewer than `pairs` if the
// sections are of other sizes.
std::vector<size_t> followed_in(const std::vector<int>& sections, size_t pairs, bool interleaved) {
  std::vector<size_t> followed;
  for (size_t pair = 0; interleaved && pair < pairs; ++pair) {
    const size_t turn = pair % kPositionNumbers;
    followed.push_back(pair / kPositionNumbers < static_cast<size_t>(sections[turn]) ? turn : 0);
  }
  for (size_t number = 0; !interleaved && number < kPositionNumbers; ++number) {
    if (static_cast<size_t>(sections[number]) > pairs - followed.size()) break;
    followed.insert(followed.end(), static_cast<size_t>(sections[number]), number);
  }
  return followed;
}

// The first rotary embedding with sections.
std::optional<RopeRecord> read_rope(const json& value, const std::string& where) {
  Fields decoder(value, where);
  for (const json& each : list_of(&decoder, "ropes")) {
    Fields fields(each, decoder.place("ropes"));
    if (fields.find("sections") == nullptr) continue;
    const json& factor = fields.need("factor");
    if (!factor.is_number()) malformed("a number is expected", fields.place("factor"));
    RopeRecord rope{reals_of(&fields, "inv_freq"), factor.get<double>(), {}};
    const Version sections = numbers_of(&fields, "sections");
    if (sections.size() == kPositionNumbers) {
      rope.followed = followed_in(sections, rope.inv_freq.size(), fields.flag_or("interleaved", false));
    }
    if (sections.size() != kPositionNumbers || rope.followed.size() != rope.inv_freq.size()) {
      malformed("three sections of all frequencies are expected", fields.place("sections"));
    }
    return rope;
  }
  return std::nullopt;
}

int64_t part_of_image(Fields* settings, const char* key) {
  const int64_t number = size_of(settings, key, 1);
  if (number > kLargestPart)
    malformed("at most " + std::to_string(kLargestPart) + " is expected", settings->place(key));
  return number;
}

TileRecord read_tiles(Fields* settings, bool side_by_side) {
  const TileRecord tiles{part_of_image(settings, "image_size"), part_of_image(settings, "patch_size"),
                         side_by_side ? 1 : part_of_image(settings, "scale_factor"), side_by_side};
  if (tiles.side() < 1) malformed("tiles of one piece or more are expected", settings->place("image_size"));
  return tiles;
}

PatchRecord read_patches(Fields* settings, bool windows) {
  const PatchRecord patches{part_of_image(settings, "patch_size"), part_of_image(settings, "temporal_patch_size"),
                            part_of_image(settings, "spatial_merge_size"),
                            windows ? part_of_image(settings, "window_size") : 0};
  if (windows && patches.window_side() < 1) {
    malformed("windows of one piece or more are expected", settings->place("window_size"));
  }
  return patches;
}

int32_t token_of(Fields* fields, const std::string& key) {
  const int64_t token = fields->number(key);
  if (token < 0 || token > INT32_MAX) malformed("a token is expected", fields->place(key));
  return static_cast<int32_t>(token);
}

// Families prepare and place images differently; what an unknown one has in its record is not looked at.
VisionRecord read_vision(Fields* model, Fields* graphs) {
  const std::string where = model->place(kVision);
  Fields fields(model->need(kVision), where);
  const std::string family = fields.text("family");
  if (std::find(std::begin(kSeeing), std::end(kSeeing), family) == std::end(kSeeing)) {
    std::string known;
    for (const char* each : kSeeing) known += std::string(known.empty() ? "'" : ", '") + each + "'";
    throw Error(ErrorCode::kUnsupported,
                "this library cannot show images to models of the family '" + family.substr(0, 80) +
                    "', only to those of " + known,
                where, "run it with `awq2trt run --runtime ort`, or use a later version of this library.");
  }
  VisionRecord record{};
  record.image_token = token_of(&fields, "image_token");
  if (family == kLlava || family == kGemma3 || family == kFlamingo) {
    record.kind = family == kGemma3     ? ImageKind::kBlocks
                  : family == kFlamingo ? ImageKind::kAttended
                                        : ImageKind::kPieces;
    record.tokens_per_image = size_of(&fields, "tokens_per_image", 1);
  } else if (family == kSmolVlm || family == kLlavaNext) {
    Fields settings(fields.need("settings"), fields.place("settings"));
    record.tiles = read_tiles(&settings, family == kLlavaNext);
  } else {
    Fields settings(fields.need("settings"), fields.place("settings"));
    record.patches = read_patches(&settings, family == kQwenVl);
    const auto around = [&](const std::string& key) {
      return settings.find(key) == nullptr ? std::vector<int32_t>() : std::vector<int32_t>{token_of(&settings, key)};
    };
    record.before = around("vision_start_token_id");
    record.after = around("vision_end_token_id");
    record.rope = read_rope(model->need(kDecoder), model->place(kDecoder));
  }
  record.vision = read_graph(graphs->need(kVision), graphs->place(kVision));
  record.embedding = read_graph(graphs->need(kEmbedding), graphs->place(kEmbedding));
  return record;
}

// Profiles of a graph; `read` makes each of its axes.
template <typename Read>
auto read_profiles(Fields* graphs, const char* graph, const Read& read) {
  std::vector<decltype(read(graphs))> profiles;
  for (const json& profile : list_of(graphs, graph)) {
    Fields named(profile, graphs->place(graph));
    Fields axes(named.need("axes"), named.place("axes"));
    profiles.push_back(read(&axes));
  }
  if (profiles.empty()) malformed("a list of profiles is expected", graphs->place(graph));
  return profiles;
}

RangeRecord read_range(Fields* axes, const char* axis) {
  Fields range(axes->need(axis), axes->place(axis));
  return {size_of(&range, "shortest", 1), std::min(size_of(&range, "longest", 1), kMostPositions)};
}

std::vector<ProfileRecord> read_token_profiles(Fields* graphs, const char* graph) {
  return read_profiles(graphs, graph, [](Fields* axes) { return read_range(axes, kSequence); });
}

std::vector<ImageProfileRecord> read_image_profiles(Fields* graphs) {
  const auto range_or_one = [](Fields* axes, const char* axis) {
    return axes->find(axis) == nullptr ? RangeRecord{1, 1} : read_range(axes, axis);
  };
  return read_profiles(graphs, kVision, [&](Fields* axes) {
    return ImageProfileRecord{range_or_one(axes, kPatches), range_or_one(axes, kWindows)};
  });
}

LoweredRecord read_lowered(const json& value, const std::string& where) {
  Fields fields(value, where);
  LoweredRecord record;
  record.target = fields.text("target");
  record.provider = fields.text("provider");
  record.minimum_onnxruntime = numbers_of(&fields, "minimum_onnxruntime");
  if (const auto capability = text_if(&fields, "minimum_compute_capability")) {
    record.minimum_compute_capability = parse_version(*capability);
  }
  if (fields.find("minimum_cuda") != nullptr) record.minimum_cuda = numbers_of(&fields, "minimum_cuda");
  record.cpus = texts_of(&fields, "cpus");
  record.plugin_version = text_if(&fields, "plugin_version");
  Fields graphs(fields.need(kProfiles), fields.place(kProfiles));
  for (const ProfileRecord& profile : read_token_profiles(&graphs, kDecoder)) {
    record.longest_chunk = std::max(record.longest_chunk, profile.longest);
  }
  return record;
}

// Of a kit, what is known before its script has built the engines.
EngineRecord read_engine(const json& value, const std::string& where, bool kit, bool sees) {
  Fields fields(value, where);
  EngineRecord record{fields.text("target"),
                      kit ? kTensorRt : fields.text("flavour"),
                      kit ? "" : fields.text("tensorrt_version"),
                      {},
                      {},
                      {}};
  Fields graphs(fields.need(kProfiles), fields.place(kProfiles));
  record.profiles = read_token_profiles(&graphs, kDecoder);
  if (!sees) return record;
  record.embedding_profiles = read_token_profiles(&graphs, kEmbedding);
  record.vision_profiles = read_image_profiles(&graphs);
  return record;
}

std::optional<int32_t> token_if(Fields* fields, const std::string& key) {
  if (fields->find(key) == nullptr) return std::nullopt;
  return static_cast<int32_t>(fields->number(key));
}

TokensRecord read_tokens(const json& value, const std::string& where) {
  Fields fields(value, where);
  TokensRecord tokens{token_if(&fields, "bos"), token_if(&fields, "eos"), {}};
  for (const int id : numbers_of(&fields, "stop")) tokens.stop.push_back(id);
  return tokens;
}

// Refuses a manifest of a later awq2trt before it appears to be damaged.
void refuse_later(Fields* fields) {
  const std::string newer = "use the awq2trt that wrote it (" + fields->text_or("tool_version", "unknown version") +
                            "), or make it again with `awq2trt build`.";
  const int64_t format = size_of(fields, "format_version", 0);
  if (format > kFormat) {
    throw Error(ErrorCode::kFutureManifest,
                "format version " + std::to_string(format) + ", expected " + std::to_string(kFormat), fields->where(),
                newer);
  }
  if (format < kFormat)
    malformed("format version " + std::to_string(format) + " has nothing that runs without Python", fields->where());
  const std::string needed = fields->text("minimum_runtime");
  if (parse_version(needed) > parse_version(AWQ2TRT_VERSION)) {
    throw Error(ErrorCode::kFutureManifest, "it needs awq2trt " + needed + " or later, but this is " AWQ2TRT_VERSION,
                fields->where(), newer);
  }
}

[[noreturn]] void refuse_kind(const std::string& kind, const std::string& directory) {
  throw Error(ErrorCode::kNotAModel, "expected a model that was built, got one of kind '" + kind + "'", directory,
              "build it from the original model, awq2trt build MODEL --target cpu -o DIR, and load DIR/cpu; `awq2trt "
              "run` runs an exported model as it is.");
}

}  // namespace

Version parse_version(std::string_view text) {
  Version version;
  std::istringstream in{std::string(text)};
  for (int number = 0; in >> number; in.get()) {
    version.push_back(number);
    if (in.peek() != '.') break;
  }
  return version;
}

std::string to_text(const Version& version) {
  std::string text;
  for (const int number : version) text += (text.empty() ? "" : ".") + std::to_string(number);
  return text;
}

std::vector<std::pair<std::string, const GraphRecord*>> Manifest::graphs() const {
  std::vector<std::pair<std::string, const GraphRecord*>> all = {{kDecoder, &decoder}};
  if (vision) {
    all.emplace_back(kVision, &vision->vision);
    all.emplace_back(kEmbedding, &vision->embedding);
  }
  return all;
}

Manifest parse_manifest(std::string_view text, const std::string& directory) {
  const std::string where = (fs::path(directory) / kManifestFile).string();
  const json value = read_json(text, where);
  Fields fields(value, where);
  refuse_later(&fields);
  Manifest manifest;
  manifest.kind = fields.text("kind");
  const bool lowered = manifest.kind == "lowered", kit = manifest.kind == kKit;
  if (!lowered && !kit && manifest.kind != kEngine) refuse_kind(manifest.kind, directory);
  manifest.fingerprint = fields.text("fingerprint");
  manifest.files = read_files(fields.need("files"), fields.place("files"));
  Fields contents(fields.need("contents"), fields.place("contents"));
  Fields graphs(contents.need("graphs"), contents.place("graphs"));
  manifest.decoder = read_graph(graphs.need(kDecoder), graphs.place(kDecoder));
  if (manifest.decoder.capacity == 0) malformed("the decoder has no cache", graphs.place(kDecoder));
  if (const json* model = contents.find("model")) {
    Fields parts(*model, contents.place("model"));
    if (parts.find(kVision) != nullptr) manifest.vision = read_vision(&parts, &graphs);
  }
  if (lowered) {
    manifest.lowered = read_lowered(contents.need("lowered"), contents.place("lowered"));
  } else {
    const char* const key = kit ? kKit : kEngine;
    manifest.engine = read_engine(contents.need(key), contents.place(key), kit, manifest.vision.has_value());
  }
  manifest.tokens = read_tokens(contents.need("tokens"), contents.place("tokens"));
  for (const auto& [name, graph] : manifest.graphs()) {
    if (manifest.engine && !graph->engine) malformed("the graph has no engine", graphs.place(name));
    const std::string& listed = manifest.engine && !kit ? *graph->engine : graph->model;
    if (manifest.files.count(listed) == 0) malformed("'" + listed + "' of a graph is not among the files", where);
  }
  return manifest;
}

Manifest read_manifest(const std::string& directory) {
  std::error_code problem;
  const fs::path folder(directory), path = folder / kManifestFile;
  if (!fs::is_directory(folder, problem)) {
    throw Error(ErrorCode::kNotFound, "no such directory", directory, "check the path.");
  }
  if (!fs::is_regular_file(path, problem)) {
    std::string below;
    for (const auto& entry : fs::directory_iterator(folder, problem)) {
      if (!fs::is_regular_file(entry.path() / kManifestFile, problem)) continue;
      if (entry.path().filename() != "checkpoint" || below.empty()) below = entry.path().string();
    }
    if (!below.empty()) {
      throw Error(ErrorCode::kNotAModel, "expected a model's directory, got one that contains several", directory,
                  "name one of them, e.g. " + below + ".");
    }
    throw Error(ErrorCode::kNotFound,
                std::string("there is no ") + kManifestFile + ", so awq2trt did not write this directory", directory,
                "make one with `awq2trt build`; a build that did not finish continues if it is run again.");
  }
  const uint64_t size_bytes = fs::file_size(path, problem);
  if (problem || size_bytes > kLargestBytes) malformed("larger than any manifest", path.string());
  std::ifstream in(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  if (!in.good() && !in.eof())
    throw Error(ErrorCode::kNotFound, "it cannot be read", path.string(), "check its permissions.");
  Manifest manifest = parse_manifest(text, directory);
  if (manifest.kind == kKit) take_finished_engines(directory, &manifest);
  return manifest;
}

}  // namespace awq2trt
