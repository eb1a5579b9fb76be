// The backend of engines (plugins/runtime/trt/backend.cpp) over a stand-in for an engine, which ONNX Runtime computes
// on the host: profiles, shapes, addresses and caches, without TensorRT and without a GPU.
//
//   engine_on_host DIR ONNXRUNTIME < commands
//
// In: a model that was built for the target `cpu`, and commands (on_host.h). Out: answers, and last how much memory was
// left.
#include <iostream>
#include <map>

#include "artifact/manifest.h"
#include "on_host.h"
#include "ort/session.h"
#include "trt/backend.h"

namespace {

class StandInContext : public awq2trt::trt::Context {
 public:
  StandInContext(std::shared_ptr<const awq2trt::ort::Session> session, const awq2trt::Contract& contract,
                 awq2trt::ProfileRecord profile)
      : session_(std::move(session)), contract_(contract), profile_(profile) {}

  void set_shape(const std::string& input, const std::vector<int64_t>& shape) override { shapes_[input] = shape; }
  void set_address(const std::string& tensor, void* address) override { addresses_[tensor] = address; }
  void enqueue(void*) override {
    const int64_t count = shapes_.at(awq2trt::kInputIds).at(1);
    if (count < profile_.shortest || count > profile_.longest) throw std::runtime_error("outside the profile");
    const auto integer = awq2trt::ort::abi::ElementType::kInt64;
    const auto number = awq2trt::ort::element_type(contract_.number);
    awq2trt::ort::Binding binding(session_, awq2trt::ort::kHostPlace);
    for (const char* const name : {awq2trt::kInputIds, awq2trt::kCachePosition}) {
      binding.bind_input(name, addresses_.at(name), integer, shapes_.at(name));
    }
    for (const awq2trt::CachePair& pair : contract_.caches) {
      if (addresses_.at(pair.past) != addresses_.at(pair.present)) throw std::runtime_error("two memories of a cache");
      binding.bind_cache(pair, addresses_.at(pair.past), awq2trt::ort::element_type(pair.number),
                         shapes_.at(pair.past));
    }
    binding.bind_output(awq2trt::kLogits, addresses_.at(awq2trt::kLogits), number, {1, 1, contract_.vocab_size});
    binding.run(session_->run_options({}).get());
  }

 private:
  std::shared_ptr<const awq2trt::ort::Session> session_;
  const awq2trt::Contract& contract_;
  awq2trt::ProfileRecord profile_;
  std::map<std::string, std::vector<int64_t>> shapes_;
  std::map<std::string, void*> addresses_;
};

class StandInEngine : public awq2trt::trt::Engine {
 public:
  StandInEngine(std::shared_ptr<const awq2trt::ort::Session> session, const awq2trt::Contract& contract,
                const std::vector<awq2trt::ProfileRecord>& profiles)
      : session_(std::move(session)), contract_(contract), profiles_(profiles) {}
  const std::string& title() const override { return title_; }
  std::unique_ptr<awq2trt::trt::Context> new_context(int32_t profile, void*) override {
    return std::make_unique<StandInContext>(session_, contract_, profiles_.at(static_cast<size_t>(profile)));
  }

 private:
  std::shared_ptr<const awq2trt::ort::Session> session_;
  const awq2trt::Contract& contract_;
  const std::vector<awq2trt::ProfileRecord>& profiles_;
  std::string title_ = "a stand-in";
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const std::string directory = argv[1];
  size_t live = 0;
  try {
    const awq2trt::Manifest manifest = awq2trt::read_manifest(directory);
    const awq2trt::Contract contract = awq2trt::read_contract(manifest.decoder, directory);
    const std::vector<awq2trt::ProfileRecord> profiles = {{1, 8}, {1, 1}};
    const auto library = awq2trt::ort::Library::open(argv[2], {1, 27});
    awq2trt::ort::Execution execution;
    execution.threads = 1;
    const auto session = awq2trt::ort::Session::open(library, directory + "/" + manifest.decoder.model, execution);
    on_host::serve(*awq2trt::trt::make_engine_backend(
        contract, profiles, std::make_unique<on_host::HostMemory>(&live),
        [&] { return std::make_unique<StandInEngine>(session, contract, profiles); }));
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
  std::cout << "left " << live << '\n';
  return 0;
}
