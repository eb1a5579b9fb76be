// How an error reads: where, what, and on a line of its own the fix.
#include "awq2trt/awq2trt.hpp"

namespace awq2trt {

Error::Error(ErrorCode code, const std::string& what, const std::string& where, const std::string& fix)
    : std::runtime_error(where + ": " + what + (fix.empty() ? "" : "\n  fix: " + fix)), code_(code) {}

Error::~Error() = default;

}  // namespace awq2trt
