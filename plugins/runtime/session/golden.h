// Golden calls: tokens, and the scores that must follow; and a golden image, if the model sees. In: a model's
// directory, whose golden.json `awq2trt export` wrote, and its backend. Out: how far the scores are off.
//
// Only calls that begin a conversation, whose scores are in raw files (awq2trt/artifact/golden.py), are run here; the
// others are in NumPy's format, and `awq2trt check --golden` runs them.
#pragma once

#include <string>
#include <vector>

#include "awq2trt/awq2trt.hpp"
#include "backend/backend.h"
#include "backend/contract.h"
#include "session/tables.h"

namespace awq2trt {

// Norm of the difference divided by the norm of `expected` around its mean; NaN if any number is. Both: [vocab_size].
double relative_error(const std::vector<float>& got, const std::vector<float>& expected);

// Runs all calls. Throws Error: kNotFound if there are none, kMalformed, kWrongAnswers if one is off.
// `seeing`: what the vision graph reads, null for a model of text; `tables`: null for a decoder that reads none.
GoldenCheck check_golden(const std::string& directory, const Backend& backend, const VisionContract* seeing,
                         const detail::DecoderTables* tables);

}  // namespace awq2trt
