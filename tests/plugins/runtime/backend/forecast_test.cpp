// How much of a GPU's memory a model takes, computed by hand, and when it is refused.
#include "backend/forecast.h"

#include <gtest/gtest.h>

#include "awq2trt/awq2trt.hpp"

namespace awq2trt {
namespace {

constexpr uint64_t kGibibyte = 1ull << 30;

Manifest lowered() {
  Manifest manifest;
  manifest.decoder.model = "model.onnx";
  manifest.files = {{"model.onnx", {1000, ""}}, {"model.onnx.data", {3 * kGibibyte, ""}}, {"tokenizer.json", {7, ""}}};
  manifest.lowered.emplace();
  return manifest;
}

Contract contract() {
  Contract contract{};
  contract.caches.assign(2 * 4, {"past", "present", Number::kFloat16, 64});  // keys and values of four layers
  contract.number = Number::kFloat16;
  contract.heads = 2;
  contract.head_dim = 64;
  contract.capacity = 1024;
  return contract;
}

std::string refusal(const Needs& needs, const MemoryInfo& memory) {
  try {
    require_memory(needs, memory, "A GPU");
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kOutOfDeviceMemory);
    return error.what();
  }
  return "";
}

TEST(Forecast, CountsWeightsAndCaches) {
  const Needs needs = predict_needs(lowered(), contract());
  EXPECT_EQ(needs.weights, 3 * kGibibyte + 1000);
  EXPECT_EQ(needs.caches, 8u * 2 * 1024 * 64 * 2);
  Contract with_tables = contract();
  with_tables.tables = {{kAttendedImages, Number::kFloat16, {8, 4, 32}}, {kImageOfSlot, Number::kInt64, {1024}}};
  EXPECT_EQ(predict_needs(lowered(), with_tables).caches - needs.caches, 8u * 4 * 32 * 2 + 1024 * 8);
  Manifest seeing = lowered();
  seeing.vision.emplace();
  seeing.vision->vision.model = "vision.onnx";
  seeing.vision->embedding.model = "embedding.onnx";  // stays on the CPU
  seeing.files.insert({{"vision.onnx.data", {11, ""}}, {"embedding.onnx.data", {13, ""}}});
  EXPECT_EQ(predict_needs(seeing, contract()).weights, 3 * kGibibyte + 1011);
  Manifest engine = lowered();
  engine.lowered.reset();
  engine.engine.emplace();
  engine.decoder.engine = "model.engine";
  engine.files["model.engine"] = {5, ""};
  EXPECT_EQ(predict_needs(engine, contract()).weights, 5u);
  Manifest seeing_engines = seeing;  // a kit has the graphs, too, from which its engines were built
  seeing_engines.lowered.reset();
  seeing_engines.engine.emplace();
  seeing_engines.decoder.engine = "model.engine";
  seeing_engines.vision->vision.engine = "vision.engine";
  seeing_engines.vision->embedding.engine = "embedding.engine";
  seeing_engines.files.insert(
      {{"model.engine", {5, ""}}, {"vision.engine", {70, ""}}, {"embedding.engine", {900, ""}}});
  EXPECT_EQ(predict_needs(seeing_engines, contract()).weights, 975u);
}

TEST(Forecast, RefusesWhatDoesNotFit) {
  const Needs needs{3 * kGibibyte, kGibibyte, kGibibyte / 2};
  EXPECT_EQ(refusal(needs, {needs.total(), 8 * kGibibyte}), "");
  const std::string busy = refusal(needs, {4 * kGibibyte, 8 * kGibibyte});
  EXPECT_NE(busy.find("at least 4.50 GiB of GPU memory (weights 3.00, caches 1.00, runtime 0.50), of which 4.00 are "
                      "free of 8.00"),
            std::string::npos)
      << busy;
  EXPECT_NE(busy.find("nvidia-smi"), std::string::npos);
  EXPECT_NE(refusal(needs, {4 * kGibibyte, 4 * kGibibyte}).find("use a GPU with more memory"), std::string::npos);
}

}  // namespace
}  // namespace awq2trt
