// See cuda.h.
#include "ort/cuda.h"

#include <algorithm>
#include <mutex>
#include <optional>

#include "backend/buffer.h"
#include "backend/worker.h"

namespace awq2trt {
namespace ort {
namespace {

constexpr char kGraphId[] = "gpu_graph_id";
constexpr int kNodeByNode = -1;  // the id that captures nothing

// State that all conversations share. Everything in it that touches the device runs on `worker`.
struct Device {
  Device(const CudaPlan& device_plan, std::unique_ptr<DeviceMemory> device_memory)
      : plan(device_plan), memory(std::move(device_memory)) {}

  CudaPlan plan;
  std::unique_ptr<DeviceMemory> memory;
  std::optional<DeviceWeights> weights;
  std::shared_ptr<const Session> session;
  std::unique_ptr<VisionGraph> vision;  // null for a decoder of tokens
  std::string title;
  int next_graph = 1;
  bool grown = false;  // the arena, for the longest chunk, once and for all
  mutable Worker worker;
};

// Buffers of a conversation, bound once; lives and works on the worker's thread.
class Slot {
 public:
  explicit Slot(Device* device)
      : device_(*device),
        decode_(device->session, place()),
        prefill_(device->session, place()),
        decode_options_(device->session->run_options(settings(device->next_graph++))),
        prefill_options_(device->session->run_options(settings(kNodeByNode))),
        parts_(parts_of(contract())),
        slot_(device_buffer(sizeof(int64_t))),
        token_(device_buffer(sizeof(int64_t))),
        logits_(device_buffer(row_bytes() * (contract().all_rows ? longest() : 1))),
        host_(device->memory.get(), Buffer::Kind::kHost, sizeof(int64_t) * kFields + staged_bytes()),
        host_logits_(device->memory.get(), Buffer::Kind::kHost, row_bytes()) {
    for (const CachePair& pair : contract().caches) {
      caches_.push_back(device_buffer(contract().cache_bytes(pair, contract().capacity)));
    }
    for (const Part& part : parts_) {
      many_.push_back(device_buffer(part.bytes * longest()));
      if (!reads_tokens()) one_.push_back(device_buffer(part.bytes));
    }
    for (const TableContract& table : contract().tables) {
      tables_.push_back(device_buffer(table.bytes()));
      host_tables_.emplace_back(device->memory.get(), Buffer::Kind::kHost, table.bytes());
    }
    bind(&decode_);
    bind(&prefill_);
    bind_tokens(&decode_, one_, 1);
    const std::shared_ptr<const Tables>& text = device->plan.tables;
    const std::vector<int32_t> zeros(longest(), 0);
    const std::vector<float> rows(longest() * static_cast<size_t>(contract().width()), 0.0f);
    if (!device->grown && zeros.size() > 1) append({zeros.data(), zeros.size(), rows.data(), text}, 0);
    device->grown = true;
    append({zeros.data(), 1, rows.data(), text}, 0);  // is captured
    chosen_ = kNone;
  }

  void append(const NewTokens& tokens, int64_t position) {
    const size_t count = tokens.count;
    DeviceMemory& memory = *device_.memory;
    int64_t* const staged = static_cast<int64_t*>(host_.get());
    staged[kPosition] = position;
    memory.write(slot_.get(), &staged[kPosition], sizeof(int64_t));
    write_tables(tokens.tables);
    rows_ = contract().all_rows ? count : 1;
    if (count == 1 && reads_tokens()) {
      staged[kToken] = tokens.ids[0];
      // The token that the last call chose is already in the buffer.
      if (chosen_ != tokens.ids[0]) memory.write(token_.get(), &staged[kToken], sizeof(int64_t));
    } else {
      write_new(tokens, reinterpret_cast<char*>(staged + kFields));
    }
    if (count == 1) {
      decode_.run(decode_options_.get());
    } else {
      bind_tokens(&prefill_, many_, static_cast<int64_t>(count));
      prefill_.run(prefill_options_.get());
    }
    chosen_ = kNone;
    if (contract().next_token) memory.read(&staged[kToken], token_.get(), sizeof(int64_t));
    memory.synchronize();
    if (contract().next_token) chosen_ = staged[kToken];
  }

  int64_t chosen() const { return chosen_; }

  // Copies the scores to the host, where widen_logits() finds them.
  void fetch_logits() {
    const char* const last = static_cast<const char*>(logits_.get()) + row_bytes() * (rows_ - 1);
    device_.memory->read(host_logits_.get(), last, row_bytes());
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
    device_.memory->copy(logits_.get(), other.logits_.get(), row_bytes() * other.rows_);
    device_.memory->copy(token_.get(), other.token_.get(), sizeof(int64_t));
    device_.memory->synchronize();
    rows_ = other.rows_;
    chosen_ = other.chosen_;
  }

 private:
  static constexpr int64_t kNone = -1;
  static constexpr size_t kPosition = 0, kToken = 1, kFields = 2;  // of `host_`, before ids or embeddings

  // An input of the decoder, with what it reads of new tokens.
  struct Part {
    RowPart row;
    size_t bytes;  // of one token
  };
  static std::vector<Part> parts_of(const Contract& contract) {
    if (contract.hidden_size == 0) return {{{kInputIds, 0, 1}, sizeof(int64_t)}};
    std::vector<Part> parts;
    for (const RowPart& row : contract.row_parts()) parts.push_back({row, contract.part_bytes(1, row)});
    return parts;
  }

  const Contract& contract() const { return device_.plan.contract; }
  size_t longest() const { return static_cast<size_t>(device_.plan.longest_call); }
  bool reads_tokens() const { return contract().hidden_size == 0; }
  // Of the longest call.
  size_t staged_bytes() const {
    size_t bytes = 0;
    for (const Part& part : parts_) bytes += part.bytes * longest();
    return bytes;
  }
  size_t row_bytes() const { return bytes_of(contract().number) * static_cast<size_t>(contract().vocab_size); }
  Place place() const { return {device_.memory->runtime_name(), device_.memory->index()}; }
  Buffer device_buffer(size_t bytes) const { return Buffer(device_.memory.get(), Buffer::Kind::kDevice, bytes); }

  std::vector<std::pair<const char*, std::string>> settings(int graph) const {
    if (!device_.plan.graph) return {};
    return {{kGraphId, std::to_string(graph)}};
  }

  // Everything that is the same for every call.
  void bind(Binding* binding) const {
    for (size_t i = 0; i < caches_.size(); ++i) {
      const CachePair& pair = contract().caches[i];
      binding->bind_cache(pair, caches_[i].get(), element_type(pair.number),
                          contract().cache_shape(pair, contract().capacity));
    }
    for (size_t i = 0; i < tables_.size(); ++i) {
      const TableContract& table = contract().tables[i];
      binding->bind_input(table.name, tables_[i].get(), element_type(table.number), table.shape);
    }
    binding->bind_input(kCachePosition, slot_.get(), abi::ElementType::kInt64, {1});
    if (contract().next_token) binding->bind_output(kNextToken, token_.get(), abi::ElementType::kInt64, {1, 1});
  }

  // Writes what the decoder reads of tokens, through the host's memory from `staged` on.
  void write_new(const NewTokens& tokens, char* staged) const {
    for (size_t i = 0; i < parts_.size(); ++i) {
      const size_t bytes = parts_[i].bytes * tokens.count;
      if (reads_tokens()) {
        std::copy(tokens.ids, tokens.ids + tokens.count, reinterpret_cast<int64_t*>(staged));
      } else {
        contract().narrow_part(tokens.rows, tokens.count, parts_[i].row, staged);
      }
      device_.memory->write((tokens.count == 1 ? one_ : many_)[i].get(), staged, bytes);
      staged += bytes;
    }
  }

  // Writes tables that are not there yet; a call without any reads those that are.
  void write_tables(const std::shared_ptr<const Tables>& tables) {
    if (tables == nullptr || tables == written_) return;
    written_ = nullptr;  // until all of them are there
    for (size_t i = 0; i < tables_.size(); ++i) {
      const TableContract& table = contract().tables[i];
      narrow((*tables)[i].data(), table.number, table.count(), host_tables_[i].get());
      device_.memory->write(tables_[i].get(), host_tables_[i].get(), table.bytes());
    }
    written_ = tables;
  }

  void bind_tokens(Binding* binding, const std::vector<Buffer>& inputs, int64_t length) const {
    if (reads_tokens()) {
      binding->bind_input(kInputIds, (length == 1 ? token_ : inputs[0]).get(), abi::ElementType::kInt64, {1, length});
    }
    for (size_t i = 0; i < parts_.size() && !reads_tokens(); ++i) {
      binding->bind_input(parts_[i].row.name, inputs[i].get(), element_type(contract().rows),
                          {1, length, parts_[i].row.channels});
    }
    binding->bind_output(kLogits, logits_.get(), element_type(contract().number),
                         {1, contract().all_rows ? length : 1, contract().vocab_size});
  }

  Device& device_;
  Binding decode_, prefill_;
  Owned<abi::RunOptions> decode_options_, prefill_options_;
  const std::vector<Part> parts_;
  std::vector<Buffer> many_, one_;  // parts of a chunk, and of one token unless the decoder reads `token_`
  Buffer slot_, token_;             // `token_`: next_token of one call, input_ids of the next
  Buffer logits_, host_, host_logits_;
  std::vector<Buffer> caches_;
  std::vector<Buffer> tables_, host_tables_;
  std::shared_ptr<const Tables> written_;  // what is in `tables_`; null for zeros
  size_t rows_ = 1;
  int64_t chosen_ = kNone;  // the token in `token_`, put there by the last call
};

// Slots that no conversation uses, and their device.
class Pool {
 public:
  Pool(const CudaPlan& plan, std::unique_ptr<DeviceMemory> memory, const OpenSession& open, CudaSight sight)
      : device_(plan, std::move(memory)), embedding_(std::move(sight.embedding)) {
    device_.worker.run([&] {
      try {
        start(open, sight);
      } catch (...) {
        release();
        throw;
      }
    });
  }
  ~Pool() {
    device_.worker.run([&] { release(); });
  }

  const Device& device() const { return device_; }
  const EmbeddingGraph* embedding() const { return embedding_.get(); }  // null for a decoder of tokens
  void run(const std::function<void()>& work) { device_.worker.run(work); }

  std::unique_ptr<Slot> take() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!idle_.empty()) {
        std::unique_ptr<Slot> slot = std::move(idle_.back());
        idle_.pop_back();
        return slot;
      }
    }
    std::unique_ptr<Slot> slot;
    run([&] { slot = std::make_unique<Slot>(&device_); });
    return slot;
  }

  void give_back(std::unique_ptr<Slot> slot) {
    const std::lock_guard<std::mutex> lock(mutex_);
    idle_.push_back(std::move(slot));
  }

 private:
  // On the device's thread, as what it gives back is.
  void start(const OpenSession& open, const CudaSight& sight) {
    device_.memory->use_on_this_thread();
    device_.weights.emplace(device_.memory.get(), device_.plan.directory, device_.plan.weights);
    device_.session = open(device_.weights->all());
    device_.title = "ONNX Runtime " + device_.session->library()->version() + ", " + device_.memory->title();
    if (sight.open_vision) device_.vision = sight.open_vision();
    idle_.push_back(std::make_unique<Slot>(&device_));
  }
  void release() {
    idle_.clear();
    device_.vision.reset();
    device_.session.reset();
    device_.weights.reset();
  }

  Device device_;
  const std::unique_ptr<EmbeddingGraph> embedding_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Slot>> idle_;  // guarded by `mutex_`
};

class CudaCache : public Cache {
 public:
  CudaCache(std::shared_ptr<Pool> pool, int64_t capacity)
      : pool_(std::move(pool)), capacity_(capacity), slot_(pool_->take()) {}
  ~CudaCache() override { pool_->give_back(std::move(slot_)); }

  int64_t capacity() const override { return capacity_; }
  int64_t position() const override { return position_; }

  void append(const NewTokens& tokens) override {
    pool_->run([&] { slot_->append(tokens, position_); });
    position_ += static_cast<int64_t>(tokens.count);
  }

  bool finds_best() const override { return pool_->device().plan.contract.next_token; }
  int32_t best() override { return static_cast<int32_t>(slot_->chosen()); }

  void read_logits(float* logits) override {
    pool_->run([&] { slot_->fetch_logits(); });
    slot_->widen_logits(logits);  // on this thread: the worker may be busy with other sessions
  }

  void rewind(int64_t position) override { position_ = position; }

  std::unique_ptr<Cache> fork() const override {
    auto copy = std::make_unique<CudaCache>(pool_, capacity_);
    pool_->run([&] { copy->slot_->copy_from(*slot_); });
    copy->position_ = position_;
    return copy;
  }

 private:
  const std::shared_ptr<Pool> pool_;
  const int64_t capacity_;
  std::unique_ptr<Slot> slot_;
  int64_t position_ = 0;
};

class CudaEmbedder : public Embedder {
 public:
  explicit CudaEmbedder(std::shared_ptr<Pool> pool) : pool_(std::move(pool)) {}

  int64_t width() const override { return pool_->device().plan.contract.width(); }
  void embed(const int32_t* ids, size_t count, float* rows) const override {
    pool_->embedding()->embed(ids, count, rows);
  }
  std::vector<float> see(const PreparedImage& image) const override {
    std::vector<float> pieces;
    pool_->run([&] { pieces = pool_->device().vision->see(image, pool_->device().memory.get()); });
    return pieces;
  }

 private:
  const std::shared_ptr<Pool> pool_;
};

class CudaBackend : public Backend {
 public:
  explicit CudaBackend(std::shared_ptr<Pool> pool) : pool_(std::move(pool)), embedder_(pool_) {}

  int64_t capacity() const override { return pool_->device().plan.contract.capacity; }
  int64_t longest_call() const override { return pool_->device().plan.longest_call; }
  int64_t vocab_size() const override { return pool_->device().plan.contract.vocab_size; }
  const std::string& title() const override { return pool_->device().title; }
  std::unique_ptr<Cache> new_cache(int64_t capacity) const override {
    return std::make_unique<CudaCache>(pool_, capacity);
  }
  const Embedder* embedder() const override { return pool_->embedding() == nullptr ? nullptr : &embedder_; }

 private:
  std::shared_ptr<Pool> pool_;
  CudaEmbedder embedder_;
};

}  // namespace

std::unique_ptr<Backend> make_cuda_backend(const CudaPlan& plan, std::unique_ptr<DeviceMemory> memory,
                                           const OpenSession& open, CudaSight sight) {
  return std::make_unique<CudaBackend>(std::make_shared<Pool>(plan, std::move(memory), open, std::move(sight)));
}

}  // namespace ort
}  // namespace awq2trt
