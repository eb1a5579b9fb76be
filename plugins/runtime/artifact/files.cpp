// See files.h.
#include "artifact/files.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <sstream>

#include "artifact/sha256.h"

namespace awq2trt {
namespace {

namespace fs = std::filesystem;

constexpr size_t kPieceBytes = size_t{4} << 20;
constexpr size_t kShownDigits = 12;
constexpr char kAgain[] = "copy the directory again, or make it again with `awq2trt build`.";

void check_size(const fs::path& path, const FileRecord& record) {
  std::error_code problem;
  if (!fs::is_regular_file(path, problem)) {
    throw Error(ErrorCode::kNotFound, "the manifest lists this file, but it is missing", path.string(), kAgain);
  }
  const uint64_t size_bytes = fs::file_size(path, problem);
  if (problem || size_bytes != record.size_bytes) {
    const bool shorter = size_bytes < record.size_bytes;
    throw Error(ErrorCode::kChangedFile,
                "expected " + std::to_string(record.size_bytes) + " bytes, got " + std::to_string(size_bytes) +
                    (shorter ? ": truncated, as a copy onto a full disk is" : ""),
                path.string(), kAgain);
  }
}

void check_hash(const fs::path& path, const FileRecord& record) {
  std::ifstream in(path, std::ios::binary);
  const std::unique_ptr<char[]> piece(new char[kPieceBytes]);
  Sha256 hash;
  while (in.read(piece.get(), kPieceBytes), in.gcount() > 0) hash.update(piece.get(), static_cast<size_t>(in.gcount()));
  if (in.bad() || !in.eof())
    throw Error(ErrorCode::kNotFound, "it cannot be read", path.string(), "check its permissions.");
  const std::string sha256 = hash.finish();
  if (sha256 != record.sha256) {
    throw Error(ErrorCode::kChangedFile,
                "its sha256 is " + sha256.substr(0, kShownDigits) + "..., but " +
                    record.sha256.substr(0, kShownDigits) + "... was written, so it was changed since",
                path.string(), kAgain);
  }
}

// What must be unchanged for hashes not to be checked again: names, sizes, hashes, times of change.
std::string state_of(const fs::path& directory, const Manifest& manifest) {
  std::ostringstream state;
  std::error_code problem;
  for (const auto& [name, record] : manifest.files) {
    const auto changed = fs::last_write_time(directory / name, problem).time_since_epoch().count();
    state << name << '\n' << record.size_bytes << ' ' << record.sha256 << ' ' << changed << '\n';
  }
  return state.str();
}

// Where we note that files were hashed; empty if there is no such place.
fs::path note_path(const std::string& state, const fs::path& directory) {
  const char* const cache = std::getenv("XDG_CACHE_HOME");
  const char* const home = std::getenv("HOME");
  fs::path folder;
  if (cache != nullptr && *cache != '\0') {
    folder = cache;
  } else if (home != nullptr && *home != '\0') {
    folder = fs::path(home) / ".cache";
  } else {
    return {};
  }
  std::error_code problem;
  const std::string whole = fs::absolute(directory, problem).string() + '\n' + state;
  Sha256 key;
  key.update(whole.data(), whole.size());
  return folder / "awq2trt" / "verified" / key.finish();
}

}  // namespace

void check_files(const std::string& directory, const Manifest& manifest, Verify verify) {
  const fs::path folder(directory);
  for (const auto& [name, record] : manifest.files) check_size(folder / name, record);
  if (verify == Verify::kSizes) return;
  const fs::path note = note_path(state_of(folder, manifest), folder);
  std::error_code problem;
  if (verify == Verify::kFirstLoad && !note.empty() && fs::exists(note, problem)) return;
  for (const auto& [name, record] : manifest.files) check_hash(folder / name, record);
  if (note.empty()) return;
  fs::create_directories(note.parent_path(), problem);
  std::ofstream(note) << directory << '\n';
}

}  // namespace awq2trt
