// Golden calls: tokens, and the scores that must follow; and a golden image, if the model sees. In: a model's
// directory, whose golden.json `awq2trt export` wrote, and its backend. Out: how far the scores are off.
//
// Only calls that begin a conversation, whose scores are in raw files (awq2trt/artifact/golden.py), are run here; the
// others are in NumPy's format, and `awq2trt check --golden` runs them.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "awq2trt/awq2trt.hpp"
#include "backend/backend.h"

namespace awq2trt {

// Norm of the difference divided by the norm of `expected` around its mean; NaN if any number is. Both: [vocab_size].
double relative_error(const std::vector<float>& got, const std::vector<float>& expected);

// Runs all calls. Throws Error: kNotFound if there are none, kMalformed, kWrongAnswers if one is off.
// `window_slots`: patches of a window, for a vision graph with windows; `rotary`: tables of a text, for a decoder that
// reads tables.
GoldenCheck check_golden(const std::string& directory, const Backend& backend, int64_t window_slots,
                         const std::shared_ptr<const RotaryRows>& rotary);

}  // namespace awq2trt
