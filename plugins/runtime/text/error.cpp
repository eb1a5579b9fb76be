// The text of an error: where, what, and on its own line the fix.
#include "awq2trt/awq2trt.hpp"

namespace awq2trt {

Error::Error(ErrorCode code, const std::string& what, const std::string& where, const std::string& fix)
    : std::runtime_error(where + ": " + what + (fix.empty() ? "" : "\n  fix: " + fix)), code_(code) {}

Error::~Error() = default;

}  // namespace awq2trt
