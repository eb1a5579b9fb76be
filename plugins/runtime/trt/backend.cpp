// See backend.h.
#include "trt/backend.h"

#include <algorithm>

#include "backend/buffer.h"
#include "backend/worker.h"

namespace awq2trt {
namespace trt {
namespace {

// State that all conversations share. Everything in it that touches the device runs on `worker`.
struct Device {
  Contract contract;
  std::vector<ProfileRecord> profiles;
  std::unique_ptr<DeviceMemory> memory;
  std::unique_ptr<Engine> engine;
  std::vector<std::unique_ptr<Context>> contexts;  // of each profile
  std::string title;
  mutable Worker worker;

  // The narrowest profile that takes that many tokens.
  Context& context_for(int64_t count) const {
    const ProfileRecord* best = nullptr;
    for (const ProfileRecord& profile : profiles) {
      const bool fits = profile.shortest <= count && count <= profile.longest;
      if (fits && (best == nullptr || profile.longest < best->longest)) best = &profile;
    }
    if (best == nullptr) {
      throw Error(ErrorCode::kUnsupported, "no profile of the engine takes " + std::to_string(count) + " tokens", title,
                  "build the model again.");
    }
    return *contexts[static_cast<size_t>(best - profiles.data())];
  }

  int64_t longest_call() const {
    int64_t longest = 1;
    for (const ProfileRecord& profile : profiles) longest = std::max(longest, profile.longest);
    return std::min(longest, contract.capacity);
  }
  size_t row_bytes() const { return bytes_of(contract.number) * static_cast<size_t>(contract.vocab_size); }
};

// Buffers of a conversation; lives and works on the worker's thread.
class Slot {
 public:
  explicit Slot(const Device& device)
      : device_(device),
        ids_(device_buffer(sizeof(int64_t) * static_cast<size_t>(device.longest_call()))),
        slot_(device_buffer(sizeof(int64_t))),
        logits_(device_buffer(device.row_bytes() * rows_of(device.longest_call()))),
        host_(device.memory.get(), Buffer::Kind::kHost,
              std::max(device.row_bytes(), sizeof(int64_t) * static_cast<size_t>(device.longest_call() + 1))) {
    for (const CachePair& pair : contract().caches) {
      caches_.push_back(device_buffer(contract().cache_bytes(pair, contract().capacity)));
    }
  }

  void append(const NewTokens& tokens, int64_t position) {
    const size_t count = tokens.count;
    Context& context = device_.context_for(static_cast<int64_t>(count));  // refuses more than there is room for
    DeviceMemory& memory = *device_.memory;
    int64_t* const staged = static_cast<int64_t*>(host_.get());
    staged[0] = position;
    std::copy(tokens.ids, tokens.ids + count, staged + 1);
    memory.write(slot_.get(), staged, sizeof(int64_t));
    memory.write(ids_.get(), staged + 1, sizeof(int64_t) * count);
    rows_ = rows_of(static_cast<int64_t>(count));
    bind(&context, static_cast<int64_t>(count));
    context.enqueue(memory.stream());
    memory.synchronize();
  }

  // Copies the scores to the host, where widen_logits() finds them until the next call.
  void fetch_logits() {
    const char* const last = static_cast<const char*>(logits_.get()) + device_.row_bytes() * (rows_ - 1);
    device_.memory->read(host_.get(), last, device_.row_bytes());
    device_.memory->synchronize();
  }
  void widen_logits(float* logits) const {
    widen(host_.get(), contract().number, static_cast<size_t>(contract().vocab_size), logits);
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
  const Contract& contract() const { return device_.contract; }
  size_t rows_of(int64_t count) const { return device_.contract.all_rows ? static_cast<size_t>(count) : 1; }
  Buffer device_buffer(size_t bytes) const { return Buffer(device_.memory.get(), Buffer::Kind::kDevice, bytes); }

  void bind(Context* context, int64_t count) const {
    context->set_shape(kInputIds, {1, count});
    context->set_shape(kCachePosition, {1});
    context->set_address(kInputIds, ids_.get());
    context->set_address(kCachePosition, slot_.get());
    context->set_address(kLogits, logits_.get());
    for (size_t i = 0; i < caches_.size(); ++i) {
      const CachePair& pair = contract().caches[i];
      context->set_shape(pair.past, contract().cache_shape(pair, contract().capacity));
      context->set_address(pair.past, caches_[i].get());
      context->set_address(pair.present, caches_[i].get());
    }
  }

  const Device& device_;
  Buffer ids_, slot_, logits_, host_;
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

class EngineBackend : public Backend {
 public:
  explicit EngineBackend(std::shared_ptr<const Device> device) : device_(std::move(device)) {}

  int64_t capacity() const override { return device_->contract.capacity; }
  int64_t longest_call() const override { return device_->longest_call(); }
  int64_t vocab_size() const override { return device_->contract.vocab_size; }
  const std::string& title() const override { return device_->title; }
  std::unique_ptr<Cache> new_cache(int64_t capacity) const override {
    return std::make_unique<EngineCache>(device_, capacity);
  }

 private:
  std::shared_ptr<const Device> device_;
};

}  // namespace

std::unique_ptr<Backend> make_engine_backend(const Contract& contract, const std::vector<ProfileRecord>& profiles,
                                             std::unique_ptr<DeviceMemory> memory,
                                             const std::function<std::unique_ptr<Engine>()>& open) {
  // Objects of the worker's thread are destroyed there.
  const std::shared_ptr<Device> device(new Device, [](Device* ended) {
    ended->worker.run([&] {
      ended->contexts.clear();
      ended->engine.reset();
    });
    delete ended;
  });
  device->contract = contract;
  device->profiles = profiles;
  device->memory = std::move(memory);
  device->worker.run([&] {
    device->memory->use_on_this_thread();
    device->engine = open();
    for (size_t i = 0; i < profiles.size(); ++i) {
      device->contexts.push_back(device->engine->new_context(static_cast<int32_t>(i), device->memory->stream()));
    }
  });
  device->title = device->engine->title() + ", " + device->memory->title();
  return std::make_unique<EngineBackend>(device);
}

}  // namespace trt
}  // namespace awq2trt
