// A backend runs a decoder: there is one for each runtime (ort/, trt/), behind the few calls that sessions need.
//
// In: tokens, or their embeddings. Out: scores of what follows them, and the cache of each conversation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "images/prepared.h"

namespace awq2trt {

// Numbers of the tables that a decoder reads, as Contract::tables has them: the same in every call until the images of
// a conversation change. Slots and numbers of images are whole, and exact in a float.
using Tables = std::vector<std::vector<float>>;

// New tokens of a conversation.
struct NewTokens {
  const int32_t* ids;
  size_t count;
  // What a decoder of embeddings reads instead of ids, [count, width]; null for a decoder of tokens.
  const float* rows = nullptr;
  std::shared_ptr<const Tables> tables = nullptr;  // for a decoder that reads some; others only if they differ
};

// The graphs beside the decoder of a model that sees. Any thread may call it.
class Embedder {
 public:
  virtual ~Embedder() = default;
  virtual int64_t width() const = 0;  // of a row, with all parts that the decoder reads
  // Rows of tokens, [count, width].
  virtual void embed(const int32_t* ids, size_t count, float* rows) const = 0;
  // Pieces of a prepared image: [pieces, width], rows in place of those of image tokens, or what a decoder attends to.
  virtual std::vector<float> see(const PreparedImage& image) const = 0;
};

// The cache of one conversation, and the scores of its last call. Used by one thread at a time.
class Cache {
 public:
  virtual ~Cache() = default;

  virtual int64_t capacity() const = 0;
  virtual int64_t position() const = 0;  // tokens in it

  // Appends tokens: at least one, at most the backend's longest call, and no more than there is room for.
  virtual void append(const NewTokens& tokens) = 0;
  // Results of the last append: all scores, [vocab_size]; and, if the graph itself finds it, the token with the largest
  // one, the lowest of equals.
  virtual bool finds_best() const { return false; }
  virtual int32_t best() { return -1; }
  virtual void read_logits(float* logits) = 0;

  virtual void rewind(int64_t position) = 0;  // keeps the first tokens, at most as many as it has
  virtual std::unique_ptr<Cache> fork() const = 0;
};

// Any thread may ask for caches. Caches of different threads run at the same time, or wait for each other.
class Backend {
 public:
  virtual ~Backend() = default;

  virtual int64_t capacity() const = 0;      // of the largest cache
  virtual int64_t longest_call() const = 0;  // tokens
  virtual int64_t vocab_size() const = 0;
  virtual const std::string& title() const = 0;  // for people
  virtual std::unique_ptr<Cache> new_cache(int64_t capacity) const = 0;
  virtual const Embedder* embedder() const { return nullptr; }  // null for a decoder of tokens
};

}  // namespace awq2trt
