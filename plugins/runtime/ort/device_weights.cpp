// See device_weights.h.
#include "ort/device_weights.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <future>
#include <map>
#include <memory>
#include <thread>
#include <utility>

#include "awq2trt/awq2trt.hpp"

namespace awq2trt {
namespace ort {
namespace {

constexpr size_t kPieceBytes = size_t{4} << 20;  // a millisecond of reading for one thread
constexpr unsigned kMostThreads = 8;             // which together read as fast as PCIe 5 carries
constexpr size_t kAlignment = 256;               // that of cudaMalloc

size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

size_t whole_bytes(const std::vector<StoredWeight>& stored) {
  size_t bytes = 0;
  for (const StoredWeight& weight : stored) bytes += aligned(weight.bytes);
  return bytes;
}

class File {
 public:
  explicit File(std::string path) : path_(std::move(path)), descriptor_(open(path_.c_str(), O_RDONLY | O_CLOEXEC)) {}
  ~File() {
    if (descriptor_ >= 0) close(descriptor_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  // From any thread.
  void read(uint64_t offset, size_t bytes, char* to) const {
    while (bytes > 0) {
      const ssize_t taken = pread(descriptor_, to, bytes, static_cast<off_t>(offset));
      if (taken <= 0) {
        throw Error(ErrorCode::kChangedFile, "it cannot be read at byte " + std::to_string(offset), path_,
                    "copy the directory again, or make it again with `awq2trt build`.");
      }
      offset += static_cast<uint64_t>(taken), to += taken, bytes -= static_cast<size_t>(taken);
    }
  }

 private:
  std::string path_;
  int descriptor_;
};

// A part of a weight that is read and copied at once.
struct Piece {
  const File* file;
  uint64_t offset;
  size_t bytes;
  char* to;  // on the device
};

// Half of the host's memory is read into while the device copies the other half.
class Transfer {
 public:
  explicit Transfer(DeviceMemory* memory)
      : memory_(*memory),
        threads_(std::max(1u, std::min(kMostThreads, std::thread::hardware_concurrency()))),
        host_(memory, Buffer::Kind::kHost, 2 * threads_ * kPieceBytes) {}

  void run(const std::vector<Piece>& pieces) {
    size_t half = 0;
    for (size_t begin = 0; begin < pieces.size(); begin += threads_, half = 1 - half) {
      const size_t end = std::min(pieces.size(), begin + threads_);
      char* const staged = static_cast<char*>(host_.get()) + half * threads_ * kPieceBytes;
      std::vector<std::future<void>> readers;
      for (size_t i = begin; i < end; ++i) {
        char* const to = staged + (i - begin) * kPieceBytes;
        readers.push_back(std::async(std::launch::async,
                                     [&piece = pieces[i], to] { piece.file->read(piece.offset, piece.bytes, to); }));
      }
      try {
        for (std::future<void>& reader : readers) reader.get();
      } catch (...) {
        memory_.synchronize();  // before the host's memory goes
        throw;
      }
      memory_.synchronize();  // the other half's copies, which had this long
      for (size_t i = begin; i < end; ++i) {
        memory_.write(pieces[i].to, staged + (i - begin) * kPieceBytes, pieces[i].bytes);
      }
    }
    memory_.synchronize();
  }

 private:
  DeviceMemory& memory_;
  const size_t threads_;
  const Buffer host_;
};

}  // namespace

DeviceWeights::DeviceWeights(DeviceMemory* memory, const std::string& directory,
                             const std::vector<StoredWeight>& stored)
    : buffer_(memory, Buffer::Kind::kDevice, std::max(kAlignment, whole_bytes(stored))) {
  std::map<std::string, std::unique_ptr<const File>> files;
  std::vector<Piece> pieces;
  char* to = static_cast<char*>(buffer_.get());
  for (const StoredWeight& weight : stored) {
    std::unique_ptr<const File>& file = files[weight.file];
    if (file == nullptr) file = std::make_unique<const File>(directory + "/" + weight.file);
    for (size_t done = 0; done < weight.bytes; done += kPieceBytes) {
      pieces.push_back({file.get(), weight.offset + done, std::min(kPieceBytes, weight.bytes - done), to + done});
    }
    weights_.push_back({weight.name, weight.type, weight.shape, to, weight.bytes});
    to += aligned(weight.bytes);
  }
  if (!pieces.empty()) Transfer(memory).run(pieces);
}

}  // namespace ort
}  // namespace awq2trt
