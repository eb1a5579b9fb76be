// Stand-ins for engines: the graphs from which they would be built, which ONNX Runtime computes on the host. In: the
// directory of an engine that also has these graphs. Out: engines that refuse what TensorRT would, or would not notice:
// shapes that are not those of the manifest or outside the profile, tensors without an address, addresses without
// enough of the device's memory behind them, a cache of two memories, and threads other than the worker's.
#pragma once

#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "on_host.h"
#include "ort/session.h"
#include "trt/backend.h"

namespace on_host {

using nlohmann::json;
namespace abi = awq2trt::ort::abi;

// What is allocated, and on which thread that must be.
struct Blocks {
  size_t live = 0;     // of the device and of the host
  size_t written = 0;  // bytes, to the device
  std::map<const char*, size_t> of_device;
  std::thread::id thread;

  void require_thread() const {
    if (std::this_thread::get_id() != thread) throw std::runtime_error("the engine is used on another thread");
  }
  void require(const void* address, size_t bytes, const std::string& tensor) const {
    const char* const first = static_cast<const char*>(address);
    auto block = of_device.upper_bound(first);
    const bool known = block != of_device.begin() && (--block, first + bytes <= block->first + block->second);
    if (!known) throw std::runtime_error("no memory of the device for " + tensor);
  }
};

class TrackedMemory : public HostMemory {
 public:
  explicit TrackedMemory(Blocks* blocks) : HostMemory(&blocks->live, &blocks->written), blocks_(*blocks) {}
  void use_on_this_thread() override {
    HostMemory::use_on_this_thread();
    blocks_.thread = std::this_thread::get_id();
  }
  void* allocate(size_t bytes) override {
    void* const memory = HostMemory::allocate(bytes);
    blocks_.of_device[static_cast<const char*>(memory)] = bytes;
    return memory;
  }
  void free(void* memory) noexcept override {
    blocks_.of_device.erase(static_cast<const char*>(memory));
    free_host(memory);
  }
  void free_host(void* memory) noexcept override {
    blocks_.require_thread();  // ends the program
    HostMemory::free_host(memory);
  }

 private:
  Blocks& blocks_;
};

using Shape = std::vector<int64_t>;

inline size_t bytes_of(const std::string& dtype, const Shape& shape) {
  static const std::map<std::string, size_t> kBytes = {{"int64", 8}, {"float32", 4}, {"float16", 2}, {"bfloat16", 2}};
  return std::accumulate(shape.begin(), shape.end(), kBytes.at(dtype),
                         [](size_t bytes, int64_t size) { return bytes * static_cast<size_t>(size); });
}

inline abi::ElementType type_of(const std::string& dtype) {
  if (dtype == "int64") return abi::ElementType::kInt64;
  if (dtype == "float32") return abi::ElementType::kFloat;
  return dtype == "float16" ? abi::ElementType::kFloat16 : abi::ElementType::kBFloat16;
}

// A graph as the manifest has it.
struct StandInGraph {
  std::shared_ptr<const awq2trt::ort::Session> session;
  json io, profiles;
  int64_t patches_of_piece;
  const Blocks& blocks;
};

class StandInContext : public awq2trt::trt::Context {
 public:
  StandInContext(const StandInGraph& graph, const json& axes) : graph_(graph), axes_(axes) {}

  void set_shape(const std::string& input, const Shape& shape) override {
    graph_.blocks.require_thread();
    require_tensor(input, {"inputs"});
    shapes_[input] = shape;
  }
  void set_address(const std::string& tensor, void* address) override {
    graph_.blocks.require_thread();
    require_tensor(tensor, {"inputs", "outputs"});
    addresses_[tensor] = address;
  }
  void enqueue(void*) override {
    graph_.blocks.require_thread();
    awq2trt::ort::Binding binding(graph_.session, awq2trt::ort::kHostPlace);
    std::map<std::string, int64_t> sizes;  // of axes with names
    for (const json& input : graph_.io.at("inputs")) {
      const std::string name = input.at("name"), dtype = input.at("dtype");
      const Shape& shape = shape_of(input, &sizes);
      binding.bind_input(name, memory_of(name, bytes_of(dtype, shape)), type_of(dtype), shape);
    }
    if (sizes.count("patches") != 0) sizes["pieces"] = sizes.at("patches") / graph_.patches_of_piece;
    std::vector<std::pair<void*, std::vector<char>>> caches;  // an engine reads the past before it writes the present
    for (const json& output : graph_.io.at("outputs")) {
      const std::string name = output.at("name"), dtype = output.at("dtype");
      Shape shape;
      for (const json& axis : output.at("shape")) shape.push_back(axis.is_string() ? sizes.at(axis) : axis.get<int>());
      void* memory = memory_of(name, bytes_of(dtype, shape));
      if (output.contains("alias") && output.at("alias").is_string()) {
        if (memory != addresses_.at(output.at("alias"))) throw std::runtime_error("two memories of a cache");
        caches.emplace_back(memory, std::vector<char>(bytes_of(dtype, shape)));
        memory = caches.back().second.data();
      }
      binding.bind_output(name, memory, type_of(dtype), shape);
    }
    binding.run(graph_.session->run_options({}).get());
    for (const auto& [memory, present] : caches) std::memcpy(memory, present.data(), present.size());
  }

 private:
  void require_tensor(const std::string& tensor, const std::vector<const char*>& sides) const {
    for (const char* const side : sides) {
      for (const json& each : graph_.io.at(side)) {
        if (each.at("name") == tensor) return;
      }
    }
    throw std::runtime_error("the engine has no such tensor: " + tensor);
  }

  // The shape of an input, which the profile must allow.
  const Shape& shape_of(const json& input, std::map<std::string, int64_t>* sizes) const {
    const std::string name = input.at("name");
    if (shapes_.count(name) == 0) throw std::runtime_error("no shape of " + name);
    const Shape& shape = shapes_.at(name);
    const json& expected = input.at("shape");
    if (shape.size() != expected.size()) throw std::runtime_error("axes of " + name);
    for (size_t i = 0; i < shape.size(); ++i) {
      int64_t least = 1, most = 1;
      if (!expected[i].is_string()) {
        least = most = expected[i];
      } else if (axes_.contains(expected[i])) {
        least = axes_.at(expected[i]).at("shortest"), most = axes_.at(expected[i]).at("longest");
      }
      if (shape[i] < least || shape[i] > most) throw std::runtime_error("outside the profile: " + name);
      if (!expected[i].is_string()) continue;
      if (sizes->emplace(expected[i], shape[i]).first->second != shape[i])
        throw std::runtime_error("two sizes: " + name);
    }
    return shape;
  }

  void* memory_of(const std::string& tensor, size_t bytes) const {
    if (addresses_.count(tensor) == 0) throw std::runtime_error("no address of " + tensor);
    graph_.blocks.require(addresses_.at(tensor), bytes, tensor);
    return addresses_.at(tensor);
  }

  const StandInGraph& graph_;
  const json& axes_;
  std::map<std::string, Shape> shapes_;
  std::map<std::string, void*> addresses_;
};

class StandInEngine : public awq2trt::trt::Engine {
 public:
  explicit StandInEngine(StandInGraph graph) : graph_(std::move(graph)) {}
  const std::string& title() const override { return title_; }
  std::unique_ptr<awq2trt::trt::Context> new_context(int32_t profile, void*) override {
    graph_.blocks.require_thread();
    return std::make_unique<StandInContext>(graph_, graph_.profiles.at(static_cast<size_t>(profile)).at("axes"));
  }

 private:
  StandInGraph graph_;
  std::string title_ = "a stand-in";
};

inline awq2trt::trt::Engines open_stand_ins(const std::string& directory, const std::string& onnxruntime,
                                            const Blocks& blocks) {
  const auto library = awq2trt::ort::Library::open(onnxruntime, {1, 27});
  std::ifstream in(directory + "/" + awq2trt::kManifestFile);
  const json contents = json::parse(in).at("contents");
  const auto open = [&](const char* name) -> std::unique_ptr<awq2trt::trt::Engine> {
    if (!contents.at("graphs").contains(name)) return nullptr;
    const json& graph = contents.at("graphs").at(name);
    awq2trt::ort::Execution execution;
    execution.threads = 1;
    const std::string file = graph.at("model");
    int64_t merge = 1;
    if (!contents.at("model").at("vision").is_null()) {
      merge = contents.at("model").at("vision").at("settings").value("spatial_merge_size", merge);
    }
    return std::make_unique<StandInEngine>(
        StandInGraph{awq2trt::ort::Session::open(library, directory + "/" + file, execution), graph.at("io"),
                     contents.at("engine").at("profiles").at(name), merge * merge, blocks});
  };
  return {open("decoder"), open("embedding"), open("vision")};
}

// The backend of engines over stand-ins.
inline std::unique_ptr<awq2trt::Backend> open_engine_backend(const std::string& directory,
                                                             const awq2trt::Manifest& manifest,
                                                             const std::string& onnxruntime, Blocks* blocks) {
  awq2trt::trt::EnginePlan plan{awq2trt::read_contract(manifest.decoder, directory), *manifest.engine, {}};
  if (manifest.vision) plan.vision = awq2trt::read_vision_contract(*manifest.vision, plan.contract, directory);
  return awq2trt::trt::make_engine_backend(plan, std::make_unique<TrackedMemory>(blocks),
                                           [&] { return open_stand_ins(directory, onnxruntime, *blocks); });
}

}  // namespace on_host
