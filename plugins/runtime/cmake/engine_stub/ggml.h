// What the template engine's json.cpp needs of llama.cpp's ggml.h.
#pragma once

#include <cassert>

#define GGML_ASSERT(condition) assert(condition)
