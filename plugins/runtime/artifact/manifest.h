// manifest.json of a model's directory, as far as running the model needs it; plugins/FORMAT.md defines it. In: a
// directory, or the file's text. Out: the manifest, checked for consistency; or an Error that says what is wrong.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace awq2trt {

constexpr char kManifestFile[] = "manifest.json";

using Version = std::vector<int>;  // "1.27" is {1, 27}

struct FileRecord {
  uint64_t size_bytes;
  std::string sha256;  // 64 hexadecimal digits
};

struct TensorRecord {
  static constexpr int64_t kFree = -1;  // an axis with a name instead of a size

  std::string name;
  std::string dtype;  // NumPy's name of it, or "bfloat16"
  std::vector<int64_t> shape;
  std::string alias;  // of an output: the input whose memory it may be; empty for none
};

struct GraphRecord {
  std::string model;                  // its ONNX file
  std::optional<std::string> engine;  // its engine's file
  std::vector<TensorRecord> inputs, outputs;
  std::string cache_layout, cache_dtype;
  int64_t capacity = 0;  // 0 without a cache
};

// How images of any size are divided.
struct PatchRecord {
  int64_t patch_size, frames, merge;
  int64_t window_size;  // of a tower whose patches see a window each; 0 without windows

  int64_t window_side() const { return window_size / merge / patch_size; }  // in pieces
};

// How images are cut into tiles, each of which a tower sees by itself.
struct TileRecord {
  int64_t image_size, patch_size;
  int64_t merge;      // patches along the side of a piece
  bool side_by_side;  // pieces of all tiles lie as in one large image, of which each row has an end

  int64_t side() const { return image_size / patch_size / merge; }  // in pieces
  // That a vision graph makes of a tile.
  int64_t rows() const { return side() * side() + (side_by_side ? 1 : 0); }
};

// The rotary embedding of a decoder in which positions of images have three numbers: frame, row and column.
struct RopeRecord {
  std::vector<double> inv_freq;
  double factor;
  std::vector<size_t> followed;  // the number that each pair of channels follows
};

// How a decoder takes images.
enum class ImageKind {
  kPieces,    // pieces are rows of its tokens, each of which sees those before it
  kBlocks,    // the same, but tokens of an image see each other; something is written around them
  kAttended,  // it attends to pieces of images, of which one token marks each
};

// How images enter a model that sees.
struct VisionRecord {
  ImageKind kind;
  int32_t image_token;                 // stands for a piece of an image, or marks one
  int64_t tokens_per_image;            // image tokens; 0 if they depend on the image's size
  std::optional<PatchRecord> patches;  // of images of any size
  std::optional<TileRecord> tiles;     // the same; there is one of the two at most
  std::optional<RopeRecord> rope;      // nothing if a decoder counts pieces like words
  std::vector<int32_t> before, after;  // tokens around those of an image
  GraphRecord vision, embedding;
};

// Written for one execution provider of ONNX Runtime.
struct LoweredRecord {
  std::string target, provider;
  Version minimum_onnxruntime;
  std::optional<Version> minimum_compute_capability, minimum_cuda;
  std::vector<std::string> cpus;  // as `uname -m` prints them; none means any
  std::optional<std::string> plugin_version;
  int64_t longest_chunk = 1;  // most tokens of one call
};

// Sizes of an axis that an engine's optimization profile takes.
struct RangeRecord {
  int64_t shortest, longest;

  bool takes(int64_t size) const { return shortest <= size && size <= longest; }
};

// Tokens of one call.
using ProfileRecord = RangeRecord;

// Sizes of an image that a vision graph takes; one for an axis that it does not have.
struct ImageProfileRecord {
  RangeRecord patches, windows;
};

// Profiles are in the order of each engine's.
struct EngineRecord {
  std::string target, flavour, tensorrt_version;
  std::vector<ProfileRecord> profiles;  // of the decoder
  // Of the graphs beside it; nothing for a model of text.
  std::vector<ProfileRecord> embedding_profiles;
  std::vector<ImageProfileRecord> vision_profiles;
};

struct TokensRecord {
  std::optional<int32_t> bos, eos;
  std::vector<int32_t> stop;  // all that end an answer
};

struct Manifest {
  std::string kind, fingerprint;
  std::map<std::string, FileRecord> files;
  GraphRecord decoder;
  std::optional<VisionRecord> vision;    // nothing for a model of text
  std::optional<LoweredRecord> lowered;  // one of the two is there
  std::optional<EngineRecord> engine;
  TokensRecord tokens;

  // All of them, the decoder first, with their names in the file.
  std::vector<std::pair<std::string, const GraphRecord*>> graphs() const;
};

// Throws Error: kNotFound, kMalformed, kFutureManifest, kNotAModel (an artifact of a kind that does not run, or a
// directory above several). A kit's engines are those that its script built (kit.h); parse_manifest leaves their
// version empty.
Manifest read_manifest(const std::string& directory);
Manifest parse_manifest(std::string_view text, const std::string& directory);

// "1.31.1" as numbers; stops at the first part that is not a number.
Version parse_version(std::string_view text);
std::string to_text(const Version& version);

}  // namespace awq2trt
