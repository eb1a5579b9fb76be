// Random numbers that are the same on every machine: Philox4x64-10. In: a seed; out: the 64-bit words that NumPy's
// Philox(key=seed).random_raw() gives.
//
// Source: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC11, and its Random123 library.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace awq2trt {

class Philox {
 public:
  explicit Philox(uint64_t seed) : key_{seed, 0} {}

  uint64_t next() {
    if (used_ == words_.size()) {
      ++block_;  // the first block is number 1, as in NumPy
      words_ = block(block_, key_);
      used_ = 0;
    }
    return words_[used_++];
  }

 private:
  using Key = std::array<uint64_t, 2>;
  using Words = std::array<uint64_t, 4>;

  static Words block(uint64_t number, Key key) {
    constexpr int kRounds = 10;
    constexpr uint64_t kMultiplier0 = 0xD2E7470EE14C6C93, kMultiplier1 = 0xCA5A826395121157;
    constexpr uint64_t kKeyStep0 = 0x9E3779B97F4A7C15, kKeyStep1 = 0xBB67AE8584CAA73B;
    Words words{number, 0, 0, 0};
    for (int round = 0; round < kRounds; ++round) {
      const Wide product0 = static_cast<Wide>(kMultiplier0) * words[0];
      const Wide product1 = static_cast<Wide>(kMultiplier1) * words[2];
      words = {static_cast<uint64_t>(product1 >> 64) ^ words[1] ^ key[0], static_cast<uint64_t>(product1),
               static_cast<uint64_t>(product0 >> 64) ^ words[3] ^ key[1], static_cast<uint64_t>(product0)};
      key[0] += kKeyStep0;
      key[1] += kKeyStep1;
    }
    return words;
  }

  __extension__ using Wide = unsigned __int128;

  Key key_;
  uint64_t block_ = 0;
  Words words_{};
  size_t used_ = 4;  // of `words_`
};

}  // namespace awq2trt
