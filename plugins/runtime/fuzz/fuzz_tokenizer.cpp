// In: bytes, up to the first zero byte a tokenizer.json, after it a text. For any bytes, the result is ids and text,
// or an Error.
#include <cstdint>
#include <cstdlib>
#include <sstream>

#include "awq2trt/awq2trt.hpp"
#include "text/tokenizer.h"
#include "text/unicode.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string all(reinterpret_cast<const char*>(data), size);
  const size_t end = std::min(all.find('\0'), all.size());
  const std::string text = end < all.size() ? all.substr(end + 1) : "Hello world\n 12 \xE4\xBD\xA0";
  try {
    std::istringstream in(all.substr(0, end));
    const auto tokenizer = awq2trt::Tokenizer::from_stream(in, "tokenizer.json");
    for (const bool special : {false, true}) {
      const std::vector<int32_t> ids = tokenizer->encode(text, {special, true});
      if (awq2trt::find_ill_formed(tokenizer->decode(ids, !special)) != std::string::npos) std::abort();
    }
  } catch (const awq2trt::Error&) {
  }
  return 0;
}
