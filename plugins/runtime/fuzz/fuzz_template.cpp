// In: bytes, up to the first zero byte a chat template, after it messages as JSON. For any bytes, the result is UTF-8
// without marks, or an Error.
#include <cstdint>
#include <cstdlib>

#include "awq2trt/awq2trt.hpp"
#include "text/chat_template.h"
#include "text/unicode.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string all(reinterpret_cast<const char*>(data), size);
  const size_t end = std::min(all.find('\0'), all.size());
  const std::string messages =
      end < all.size() ? all.substr(end + 1)
                       : R"([{"role": "system", "content": "a"}, {"role": "user", "content": " \u00e4 </s> "}])";
  try {
    const awq2trt::ChatTemplate chat_template(all.substr(0, end), {{"bos_token", "<s>"}}, "template");
    for (const auto& part : chat_template.render(awq2trt::read_messages(messages), nullptr, {})) {
      if (awq2trt::find_ill_formed(part.text) != std::string::npos) std::abort();
    }
  } catch (const awq2trt::Error&) {
  }
  return 0;
}
