// SHA-256 (plugins/runtime/artifact/sha256.cpp, sha256_blocks.cpp) against the examples of FIPS 180-4 and NIST's test
// vectors, and the CPU's instructions against plain C++.
#include "artifact/sha256.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <string>
#include <vector>

namespace awq2trt {
namespace {

std::string digest(const std::string& text, size_t piece) {
  Sha256 hash;
  for (size_t at = 0; at < text.size(); at += piece) hash.update(text.data() + at, std::min(piece, text.size() - at));
  return hash.finish();
}

TEST(Sha256, IsThatOfTheStandard) {
  const std::string two_blocks = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
  const std::string million(1000000, 'a');
  for (const size_t piece : {size_t{1}, size_t{7}, size_t{64}, size_t{1000}, size_t{2000000}}) {
    EXPECT_EQ(digest("", piece), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    EXPECT_EQ(digest("abc", piece), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    EXPECT_EQ(digest(two_blocks, piece), "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    EXPECT_EQ(digest(million, piece), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  }
}

TEST(Sha256, IsTheSameWithInstructionsAndWithout) {
  std::vector<uint8_t> blocks(kSha256BlockBytes * 9 + 1);
  for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = static_cast<uint8_t>(i * 2654435761u >> 11);
  for (size_t count = 0; count <= 9; ++count) {
    std::array<uint32_t, kSha256Words> fast = {1, 2, 3, 4, 5, 6, 7, 0xffffffff}, plain = fast;
    absorb(fast.data(), blocks.data() + 1, count);
    absorb_portably(plain.data(), blocks.data() + 1, count);
    EXPECT_EQ(fast, plain) << count;
  }
}

}  // namespace
}  // namespace awq2trt
