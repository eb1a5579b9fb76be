// See cpu.h. One buffer is bound as past and present of a cache, so that TensorScatter writes into it and nothing is
// copied between calls.
#include "ort/cpu.h"

#include <algorithm>
#include <cstring>

namespace awq2trt {
namespace ort {
namespace {

constexpr int64_t kFirstPositions = 256;  // of a new cache; doubled when full

// State that all caches of a model share.
struct Shared {
  std::shared_ptr<const Session> session;
  Contract contract;
  int64_t longest_call;
  std::string title;
};

using Bytes = std::unique_ptr<char[]>;

class CpuCache : public Cache {
 public:
  CpuCache(std::shared_ptr<const Shared> shared, int64_t capacity)
      : shared_(std::move(shared)),
        capacity_(capacity),
        binding_(shared_->session, kHostPlace),
        options_(shared_->session->run_options({})) {
    const Contract& contract = shared_->contract;
    binding_.bind_input(kCachePosition, &slot_, abi::ElementType::kInt64, {1});
    if (contract.next_token) binding_.bind_output(kNextToken, &next_token_, abi::ElementType::kInt64, {1, 1});
  }

  int64_t capacity() const override { return capacity_; }
  int64_t position() const override { return position_; }

  void append(const NewTokens& tokens) override {
    const Contract& contract = shared_->contract;
    const int64_t length = static_cast<int64_t>(tokens.count);
    reserve(position_ + length);
    bind_tokens(tokens);
    rows_ = contract.all_rows ? length : 1;
    logits_.resize(bytes_of(contract.number) * static_cast<size_t>(rows_ * contract.vocab_size));
    slot_ = position_;
    bind_tables(tokens.tables);
    binding_.bind_output(kLogits, logits_.data(), element_type(contract.number), {1, rows_, contract.vocab_size});
    binding_.run(options_.get());
    position_ += length;
  }

  bool finds_best() const override { return shared_->contract.next_token; }
  int32_t best() override { return static_cast<int32_t>(next_token_); }

  void read_logits(float* logits) override {
    const Contract& contract = shared_->contract;
    const size_t count = static_cast<size_t>(contract.vocab_size);
    const size_t before = static_cast<size_t>(rows_ - 1) * count * bytes_of(contract.number);
    widen(logits_.data() + before, contract.number, count, logits);
  }

  void rewind(int64_t position) override { position_ = position; }

  std::unique_ptr<Cache> fork() const override {
    auto copy = std::make_unique<CpuCache>(shared_, capacity_);
    copy->allocate(held_);
    for (size_t i = 0; i < caches_.size(); ++i) {
      const Contract& contract = shared_->contract;
      std::memcpy(copy->caches_[i].get(), caches_[i].get(), contract.cache_bytes(contract.caches[i], held_));
    }
    copy->position_ = position_;
    copy->rows_ = rows_;
    copy->logits_ = logits_;
    copy->next_token_ = next_token_;
    return copy;
  }

 private:
  void bind_tokens(const NewTokens& tokens) {
    const Contract& contract = shared_->contract;
    const auto length = static_cast<int64_t>(tokens.count);
    if (contract.hidden_size == 0) {
      ids_.assign(tokens.ids, tokens.ids + tokens.count);
      binding_.bind_input(kInputIds, ids_.data(), abi::ElementType::kInt64, {1, length});
      return;
    }
    const std::vector<RowPart> parts = contract.row_parts();
    embeddings_.resize(parts.size());
    for (size_t i = 0; i < parts.size(); ++i) {
      embeddings_[i].resize(contract.part_bytes(tokens.count, parts[i]));
      contract.narrow_part(tokens.rows, tokens.count, parts[i], embeddings_[i].data());
      binding_.bind_input(parts[i].name, embeddings_[i].data(), element_type(contract.rows),
                          {1, length, parts[i].channels});
    }
  }

  // Binds tables that are not bound yet.
  void bind_tables(const std::shared_ptr<const Tables>& tables) {
    if (tables == bound_) return;
    const std::vector<TableContract>& read = shared_->contract.tables;
    tables_.resize(read.size());
    for (size_t i = 0; i < read.size(); ++i) {
      tables_[i].resize(read[i].bytes());
      narrow((*tables)[i].data(), read[i].number, read[i].count(), tables_[i].data());
      binding_.bind_input(read[i].name, tables_[i].data(), element_type(read[i].number), read[i].shape);
    }
    bound_ = tables;
  }

  // Makes the caches hold at least `length` positions, keeping what they hold.
  void reserve(int64_t length) {
    if (length <= held_) return;
    int64_t positions = std::max(held_, kFirstPositions);
    while (positions < length) positions *= 2;
    const Contract& contract = shared_->contract;
    positions = contract.free_capacity ? std::min(positions, capacity_) : contract.capacity;
    const int64_t before = held_;
    const std::vector<Bytes> old = allocate(positions);
    for (size_t i = 0; i < old.size(); ++i) {
      // Bytes of one position of a head.
      const size_t row = contract.cache_bytes(contract.caches[i], 1) / static_cast<size_t>(contract.heads);
      for (size_t head = 0; head < static_cast<size_t>(contract.heads); ++head) {
        std::memcpy(caches_[i].get() + head * row * static_cast<size_t>(positions),
                    old[i].get() + head * row * static_cast<size_t>(before), row * static_cast<size_t>(position_));
      }
    }
  }

  // Binds new caches; returns those that were bound before.
  std::vector<Bytes> allocate(int64_t positions) {
    const Contract& contract = shared_->contract;
    std::vector<Bytes> old;
    if (positions == 0) return old;
    std::vector<Bytes> made;
    for (size_t i = 0; i < contract.caches.size(); ++i) {
      const CachePair& pair = contract.caches[i];
      made.push_back(std::make_unique<char[]>(contract.cache_bytes(pair, positions)));
      binding_.bind_cache(pair, made.back().get(), element_type(pair.number), contract.cache_shape(pair, positions));
    }
    old.swap(caches_);
    caches_ = std::move(made);
    held_ = positions;
    return old;
  }

  const std::shared_ptr<const Shared> shared_;
  const int64_t capacity_;
  int64_t position_ = 0, held_ = 0;
  int64_t slot_ = 0, next_token_ = 0;  // bound
  int64_t rows_ = 1;
  std::vector<int64_t> ids_;
  std::vector<char> logits_;
  std::vector<std::vector<char>> embeddings_, tables_;  // bound
  std::shared_ptr<const Tables> bound_;                 // what is in `tables_`
  std::vector<Bytes> caches_;
  Binding binding_;
  Owned<abi::RunOptions> options_;
};

class CpuBackend : public Backend {
 public:
  CpuBackend(std::shared_ptr<const Shared> shared, std::unique_ptr<Embedder> embedder)
      : shared_(std::move(shared)), embedder_(std::move(embedder)) {}

  int64_t capacity() const override { return shared_->contract.capacity; }
  int64_t longest_call() const override { return shared_->longest_call; }
  int64_t vocab_size() const override { return shared_->contract.vocab_size; }
  const std::string& title() const override { return shared_->title; }
  std::unique_ptr<Cache> new_cache(int64_t capacity) const override {
    return std::make_unique<CpuCache>(shared_, capacity);
  }
  const Embedder* embedder() const override { return embedder_.get(); }

 private:
  std::shared_ptr<const Shared> shared_;
  std::unique_ptr<Embedder> embedder_;
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(std::shared_ptr<const Session> session, const Contract& contract,
                                          int64_t longest_call, std::unique_ptr<Embedder> embedder) {
  const std::string title = "ONNX Runtime " + session->library()->version() + ", CPU";
  return std::make_unique<CpuBackend>(
      std::make_shared<const Shared>(Shared{std::move(session), contract, longest_call, title}), std::move(embedder));
}

}  // namespace ort
}  // namespace awq2trt
