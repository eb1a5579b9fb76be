// See backend.h.
#include "trt/backend.h"

#include <algorithm>

#include "backend/buffer.h"
#include "backend/staged.h"
#include "backend/worker.h"
#include "trt/sight.h"
#include "trt/token_engine.h"

namespace awq2trt {
namespace trt {
namespace {

// State that all conversations share. Everything in it that touches the device runs on `worker`.
struct Device {
  Contract contract;
  std::unique_ptr<DeviceMemory> memory;
  std::unique_ptr<TokenEngine> decoder;
  std::unique_ptr<EmbeddingEngine> embedding;  // null for a decoder of tokens, like the next
  std::unique_ptr<VisionEngine> vision;
  std::string title;
  mutable Worker worker;

  // On the worker's thread, as the next one.
  void open(const EnginePlan& plan, Engines engines) {
    void* const stream = memory->stream();
    decoder = std::make_unique<TokenEngine>(std::move(engines.decoder), plan.record.profiles, stream);
    title = decoder->title() + ", " + memory->title();
    if (!plan.vision) return;
    embedding = std::make_unique<EmbeddingEngine>(
        TokenEngine(std::move(engines.embedding), plan.record.embedding_profiles, stream), contract, plan.vision->rows,
        memory.get());
    vision = std::make_unique<VisionEngine>(std::move(engines.vision), plan.record.vision_profiles, *plan.vision,
                                            memory.get());
  }
  void close() {
    vision.reset();
    embedding.reset();
    decoder.reset();
  }

  int64_t longest_call() const { return std::min(decoder->longest(), contract.capacity); }
  size_t row_bytes() const { return bytes_of(contract.number) * static_cast<size_t>(contract.vocab_size); }
};

// Buffers of a conversation; lives and works on the worker's thread.
class Slot {
 public:
  explicit Slot(const Device& device)
      : device_(device),
        parts_(parts_of(device.contract)),
        slot_(device.memory.get(), sizeof(int64_t)),
        logits_(device_buffer(device.row_bytes() * rows_of(device.longest_call()))),
        host_logits_(device.memory.get(), Buffer::Kind::kHost, device.row_bytes()) {
    const auto longest = static_cast<size_t>(device.longest_call());
    for (const RowPart& part : parts_) new_.emplace_back(device.memory.get(), part_bytes(longest, part));
    for (const TableContract& table : contract().tables) tables_.emplace_back(device.memory.get(), table.bytes());
    for (const CachePair& pair : contract().caches) {
      caches_.push_back(device_buffer(contract().cache_bytes(pair, contract().capacity)));
    }
  }

  void append(const NewTokens& tokens, int64_t position) {
    Context& context = device_.decoder->context_for(static_cast<int64_t>(tokens.count));  // refuses more than it takes
    *static_cast<int64_t*>(slot_.host()) = position;
    slot_.write(sizeof(int64_t));
    write_new(tokens);
    write_tables(tokens.tables);
    rows_ = rows_of(static_cast<int64_t>(tokens.count));
    bind(&context, static_cast<int64_t>(tokens.count));
    context.enqueue(device_.memory->stream());
    device_.memory->synchronize();
  }

  // Copies the scores to the host, where widen_logits() finds them until the next call.
  void fetch_logits() {
    const char* const last = static_cast<const char*>(logits_.get()) + device_.row_bytes() * (rows_ - 1);
    device_.memory->read(host_logits_.get(), last, device_.row_bytes());
    device_.memory->synchronize();
  }
  void widen_logits(float* logits) const {
    widen(host_logits_.get(), contract().number, static_cast<size_t>(contract().vocab_size), logits);
  }

  void copy_from(const Slot& other) {
    for (size_t i = 0; i < caches_.size(); ++i) {
      const size_t bytes = contract().cache_bytes(contract().caches[i], contract().capacity);
      device_.memory->copy(caches_[i].get(), other.caches_[i].get(), bytes);
    }
    device_.memory->copy(logits_.get(), other.logits_.get(), device_.row_bytes() * other.rows_);
    device_.memory->synchronize();
    rows_ = other.rows_;
  }

 private:
  // What the decoder reads of new tokens: their ids, or parts of their rows.
  static std::vector<RowPart> parts_of(const Contract& contract) {
    if (contract.hidden_size == 0) return {{kInputIds, 0, 1}};
    return contract.row_parts();
  }

  const Contract& contract() const { return device_.contract; }
  bool reads_tokens() const { return contract().hidden_size == 0; }
  size_t part_bytes(size_t count, const RowPart& part) const {
    return reads_tokens() ? sizeof(int64_t) * count : contract().part_bytes(count, part);
  }
  size_t rows_of(int64_t count) const { return device_.contract.all_rows ? static_cast<size_t>(count) : 1; }
  Buffer device_buffer(size_t bytes) const { return Buffer(device_.memory.get(), Buffer::Kind::kDevice, bytes); }

  void write_new(const NewTokens& tokens) const {
    for (size_t i = 0; i < parts_.size(); ++i) {
      if (reads_tokens()) {
        std::copy(tokens.ids, tokens.ids + tokens.count, static_cast<int64_t*>(new_[i].host()));
      } else {
        contract().narrow_part(tokens.rows, tokens.count, parts_[i], new_[i].host());
      }
      new_[i].write(part_bytes(tokens.count, parts_[i]));
    }
  }

  // Writes tables that are not there yet; a call without any reads those that are.
  void write_tables(const std::shared_ptr<const Tables>& tables) {
    if (tables == nullptr || tables == written_) return;
    written_ = nullptr;  // until all of them are there
    for (size_t i = 0; i < tables_.size(); ++i) {
      const TableContract& table = contract().tables[i];
      narrow((*tables)[i].data(), table.number, table.count(), tables_[i].host());
      tables_[i].write(table.bytes());
    }
    written_ = tables;
  }

  void bind(Context* context, int64_t count) const {
    const auto bind_input = [context](const char* name, const Staged& input, const std::vector<int64_t>& shape) {
      context->set_shape(name, shape);
      context->set_address(name, input.bound());
    };
    for (size_t i = 0; i < parts_.size(); ++i) {
      std::vector<int64_t> shape = {1, count};
      if (!reads_tokens()) shape.push_back(parts_[i].channels);
      bind_input(parts_[i].name, new_[i], shape);
    }
    bind_input(kCachePosition, slot_, {1});
    for (size_t i = 0; i < tables_.size(); ++i) {
      const TableContract& table = contract().tables[i];
      bind_input(table.name.c_str(), tables_[i], table.shape);
    }
    context->set_address(kLogits, logits_.get());
    for (size_t i = 0; i < caches_.size(); ++i) {
      const CachePair& pair = contract().caches[i];
      context->set_shape(pair.past, contract().cache_shape(pair, contract().capacity));
      context->set_address(pair.past, caches_[i].get());
      context->set_address(pair.present, caches_[i].get());
    }
  }

  const Device& device_;
  const std::vector<RowPart> parts_;
  Staged slot_;
  std::vector<Staged> new_, tables_;       // each part of new tokens
  std::shared_ptr<const Tables> written_;  // what is in `tables_`; null for zeros
  Buffer logits_, host_logits_;
  std::vector<Buffer> caches_;
  size_t rows_ = 1;
};

class EngineCache : public Cache {
 public:
  EngineCache(std::shared_ptr<const Device> device, int64_t capacity)
      : device_(std::move(device)), capacity_(capacity) {
    run([&] { slot_ = std::make_unique<Slot>(*device_); });
  }
  ~EngineCache() override {
    run([&] { slot_.reset(); });
  }

  int64_t capacity() const override { return capacity_; }
  int64_t position() const override { return position_; }
  void append(const NewTokens& tokens) override {
    run([&] { slot_->append(tokens, position_); });
    position_ += static_cast<int64_t>(tokens.count);
  }
  void read_logits(float* logits) override {
    run([&] { slot_->fetch_logits(); });
    slot_->widen_logits(logits);  // on this thread: the worker may be busy with other sessions
  }
  void rewind(int64_t position) override { position_ = position; }
  std::unique_ptr<Cache> fork() const override {
    auto copy = std::make_unique<EngineCache>(device_, capacity_);
    run([&] { copy->slot_->copy_from(*slot_); });
    copy->position_ = position_;
    return copy;
  }

 private:
  void run(const std::function<void()>& work) const { device_->worker.run(work); }

  const std::shared_ptr<const Device> device_;
  const int64_t capacity_;
  std::unique_ptr<Slot> slot_;
  int64_t position_ = 0;
};

class EngineEmbedder : public Embedder {
 public:
  explicit EngineEmbedder(std::shared_ptr<const Device> device) : device_(std::move(device)) {}

  int64_t width() const override { return device_->contract.width(); }
  void embed(const int32_t* ids, size_t count, float* rows) const override {
    device_->worker.run([&] { device_->embedding->embed(ids, count, rows); });
  }
  std::vector<float> see(const PreparedImage& image) const override {
    std::vector<float> pieces;
    device_->worker.run([&] { pieces = device_->vision->see(image); });
    return pieces;
  }

 private:
  const std::shared_ptr<const Device> device_;
};

class EngineBackend : public Backend {
 public:
  explicit EngineBackend(std::shared_ptr<const Device> device) : device_(std::move(device)), embedder_(device_) {}

  int64_t capacity() const override { return device_->contract.capacity; }
  int64_t longest_call() const override { return device_->longest_call(); }
  int64_t vocab_size() const override { return device_->contract.vocab_size; }
  const std::string& title() const override { return device_->title; }
  std::unique_ptr<Cache> new_cache(int64_t capacity) const override {
    return std::make_unique<EngineCache>(device_, capacity);
  }
  const Embedder* embedder() const override { return device_->embedding == nullptr ? nullptr : &embedder_; }

 private:
  std::shared_ptr<const Device> device_;
  EngineEmbedder embedder_;
};

}  // namespace

std::unique_ptr<Backend> make_engine_backend(const EnginePlan& plan, std::unique_ptr<DeviceMemory> memory,
                                             const std::function<Engines()>& open) {
  // Objects of the worker's thread are destroyed there.
  const std::shared_ptr<Device> device(new Device, [](Device* ended) {
    ended->worker.run([&] { ended->close(); });
    delete ended;
  });
  device->contract = plan.contract;
  device->memory = std::move(memory);
  device->worker.run([&] {
    device->memory->use_on_this_thread();
    device->open(plan, open());
  });
  return std::make_unique<EngineBackend>(device);
}

}  // namespace trt
}  // namespace awq2trt
