// An engine whose calls take tokens: a decoder, or an embedding. In: the engine and its profiles. Out: for a number of
// tokens, the context to call.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "artifact/manifest.h"
#include "awq2trt/awq2trt.hpp"
#include "trt/engine.h"

namespace awq2trt {
namespace trt {

// Each profile has one context, which serves everybody: addresses are set before each call.
class TokenEngine {
 public:
  TokenEngine(std::unique_ptr<Engine> engine, std::vector<ProfileRecord> profiles, void* stream)
      : engine_(std::move(engine)), profiles_(std::move(profiles)) {
    for (size_t i = 0; i < profiles_.size(); ++i) {
      contexts_.push_back(engine_->new_context(static_cast<int32_t>(i), stream));
    }
  }

  const std::string& title() const { return engine_->title(); }

  // That of the narrowest profile that takes so many tokens.
  Context& context_for(int64_t count) const {
    const ProfileRecord* best = nullptr;
    for (const ProfileRecord& profile : profiles_) {
      if (profile.takes(count) && (best == nullptr || profile.longest < best->longest)) best = &profile;
    }
    if (best == nullptr) {
      throw Error(ErrorCode::kUnsupported, "no profile of the engine takes " + std::to_string(count) + " tokens",
                  title(), "build the model again.");
    }
    return *contexts_[static_cast<size_t>(best - profiles_.data())];
  }

  // Most tokens of a call.
  int64_t longest() const {
    int64_t longest = 1;
    for (const ProfileRecord& profile : profiles_) longest = std::max(longest, profile.longest);
    return longest;
  }

 private:
  std::unique_ptr<Engine> engine_;
  std::vector<ProfileRecord> profiles_;
  std::vector<std::unique_ptr<Context>> contexts_;  // of each profile; they go first
};

}  // namespace trt
}  // namespace awq2trt
