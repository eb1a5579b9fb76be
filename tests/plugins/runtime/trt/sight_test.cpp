// An embedding's engine where memory is short, over an engine that copies tokens.
#include "trt/sight.h"

#include <gtest/gtest.h>

#include <map>
#include <numeric>

#include "on_host.h"

namespace awq2trt {
namespace trt {
namespace {

constexpr int64_t kLongest = 8;

class CopyingContext : public Context {
 public:
  void set_shape(const std::string&, const std::vector<int64_t>& shape) override { count_ = shape.back(); }
  void set_address(const std::string& tensor, void* address) override { addresses_[tensor] = address; }
  void enqueue(void*) override {
    const auto* const ids = static_cast<const int64_t*>(addresses_.at(kInputIds));
    std::copy(ids, ids + count_, static_cast<float*>(addresses_.at(kInputsEmbeds)));
  }

 private:
  int64_t count_ = 0;
  std::map<std::string, void*> addresses_;
};

class CopyingEngine : public Engine {
 public:
  const std::string& title() const override { return title_; }
  std::unique_ptr<Context> new_context(int32_t, void*) override { return std::make_unique<CopyingContext>(); }

 private:
  std::string title_ = "an engine that copies";
};

// Has so many blocks and no more.
class ShortMemory : public on_host::HostMemory {
 public:
  explicit ShortMemory(size_t* live) : HostMemory(live), live_(*live) { use_on_this_thread(); }
  void* allocate_host(size_t bytes) override {
    if (live_ >= most) throw Error(ErrorCode::kOutOfDeviceMemory, "no memory", "", "");
    return HostMemory::allocate_host(bytes);
  }
  size_t most = 4;  // of ids and embeddings, on the host and on the device

 private:
  size_t& live_;
};

// A longer call may fail before it has memory for ids, or only before that for embeddings.
TEST(EmbeddingEngine, embeds_again_after_a_call_without_memory) {
  Contract decoder{};
  decoder.hidden_size = 1;
  for (size_t most = 0; most < 4; ++most) {
    size_t live = 0;
    ShortMemory memory(&live);
    EmbeddingEngine engine(TokenEngine(std::make_unique<CopyingEngine>(), {{1, kLongest}}, nullptr), decoder,
                           Number::kFloat32, &memory);
    std::vector<int32_t> ids(kLongest);
    std::iota(ids.begin(), ids.end(), 5);
    std::vector<float> rows(ids.size());
    engine.embed(ids.data(), 3, rows.data());
    memory.most = most;
    EXPECT_THROW(engine.embed(ids.data(), ids.size(), rows.data()), Error);
    EXPECT_THROW(engine.embed(ids.data(), 2, rows.data()), Error);
    memory.most = 4;
    engine.embed(ids.data(), 2, rows.data());
    EXPECT_EQ(rows[1], 6);
    engine.embed(ids.data(), ids.size(), rows.data());
    EXPECT_EQ(rows, std::vector<float>(ids.begin(), ids.end()));
  }
}

}  // namespace
}  // namespace trt
}  // namespace awq2trt
