// See sha256.h.
#include "artifact/sha256.h"

#include <algorithm>
#include <cstring>

namespace awq2trt {

void Sha256::update(const void* data, size_t bytes) {
  const uint8_t* at = static_cast<const uint8_t*>(data);
  total_bytes_ += bytes;
  while (bytes > 0) {
    if (held_ == 0 && bytes >= kSha256BlockBytes) {
      const size_t blocks = bytes / kSha256BlockBytes;
      absorb(state_.data(), at, blocks);
      at += blocks * kSha256BlockBytes, bytes -= blocks * kSha256BlockBytes;
      continue;
    }
    const size_t taken = std::min(bytes, kSha256BlockBytes - held_);
    std::memcpy(rest_.data() + held_, at, taken);
    held_ += taken, at += taken, bytes -= taken;
    if (held_ == kSha256BlockBytes) {
      absorb(state_.data(), rest_.data(), 1);
      held_ = 0;
    }
  }
}

std::string Sha256::finish() {
  const uint64_t bits = total_bytes_ * 8;
  const uint8_t one = 0x80, zero = 0;
  update(&one, 1);
  while (held_ != kSha256BlockBytes - sizeof(bits)) update(&zero, 1);
  uint8_t length[sizeof(bits)];
  for (size_t i = 0; i < sizeof(bits); ++i) length[i] = static_cast<uint8_t>(bits >> (56 - 8 * i));
  update(length, sizeof(length));
  std::string digits;
  for (const uint32_t word : state_) {
    for (int shift = 28; shift >= 0; shift -= 4) digits += "0123456789abcdef"[word >> shift & 15];
  }
  return digits;
}

}  // namespace awq2trt
