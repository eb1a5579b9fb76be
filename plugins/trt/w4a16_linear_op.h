// Names of the W4A16Linear operator, as in plugins/FORMAT.md. awq2trt/opset.py declares the same for Python;
// tests/test_plugin_library.py holds the two together.
#pragma once

namespace awq2trt {

constexpr char kOpType[] = "W4A16Linear";
constexpr char kPluginVersion[] = "1";
constexpr char kPluginNamespace[] = "awq2trt";

constexpr char kGroupSize[] = "group_size";
constexpr char kHasZeros[] = "has_zeros";
constexpr char kHasBias[] = "has_bias";

}  // namespace awq2trt
