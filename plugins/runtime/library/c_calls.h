// What functions of the C interfaces share: no exception leaves one, and what it gives belongs to the caller.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <string>
#include <vector>

#include "awq2trt/awq2trt.hpp"

namespace awq2trt::c_calls {

// The text of this thread's last error. A fixed buffer, since memory may have run out.
inline thread_local char last_error[4096] = "";

inline int32_t fail(ErrorCode code, const char* text) noexcept {
  std::strncpy(last_error, text, sizeof(last_error) - 1);
  return static_cast<int32_t>(code);
}

// Runs a function that may throw. Returns 0, or the code of the error that `last_error` then describes.
template <typename Work>
int32_t guarded(const Work& work) noexcept {
  last_error[0] = '\0';
  try {
    work();
    return 0;
  } catch (const Error& error) {
    return fail(error.code(), error.what());
  } catch (const std::bad_alloc&) {
    return fail(ErrorCode::kInternal, "out of memory");
  } catch (const std::exception& error) {
    return fail(ErrorCode::kInternal, error.what());
  } catch (...) {  // of the caller's own functions
    return fail(ErrorCode::kInternal, "an exception of no standard type");
  }
}

inline void require(bool given) {
  if (!given) throw Error(ErrorCode::kBadArgument, "a null pointer", "the call", "");
}

// Bytes that the caller frees with `std::free`, and a null byte behind them.
inline void* copy(const void* from, size_t bytes) {
  void* const made = std::malloc(bytes + 1);
  if (made == nullptr) throw std::bad_alloc();
  if (bytes > 0) std::memcpy(made, from, bytes);
  static_cast<char*>(made)[bytes] = '\0';
  return made;
}

inline void give(const std::vector<int32_t>& from, int32_t** tokens, size_t* count) {
  *tokens = static_cast<int32_t*>(copy(from.data(), from.size() * sizeof(int32_t)));
  *count = from.size();
}

inline void give(const std::string& from, char** text, size_t* bytes) {
  *text = static_cast<char*>(copy(from.data(), from.size()));
  *bytes = from.size();
}

}  // namespace awq2trt::c_calls
