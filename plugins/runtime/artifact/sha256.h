// SHA-256 (FIPS 180-4). In: bytes, in pieces. Out: the digest as 64 hexadecimal digits.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "artifact/sha256_blocks.h"

namespace awq2trt {

class Sha256 {
 public:
  void update(const void* data, size_t bytes);
  std::string finish();

 private:
  std::array<uint32_t, kSha256Words> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                               0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<uint8_t, kSha256BlockBytes> rest_{};  // bytes that do not fill a block yet
  size_t held_ = 0;
  uint64_t total_bytes_ = 0;
};

}  // namespace awq2trt
