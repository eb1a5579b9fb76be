// A stand-in for TensorRT's library, whose engines compute nothing: what was called goes to the file that STUB_CALLS
// names, a line for each call. STUB_VERSION is the version that getInferLibVersion returns, by which tables of virtual
// functions differ. An engine is the last word of its file; STUB_REFUSED is one that is refused.
//
// Calls must come with the GPU's context set on the thread (ort/driver_stub.cpp).
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <string>

#include "trt/abi.h"

namespace abi = awq2trt::trt::abi;

extern "C" int cuCtxGetCurrent(void** context);

namespace {

constexpr size_t kMostPlaces = 64;

int32_t version() {
  const char* const text = std::getenv("STUB_VERSION");
  return text == nullptr ? 101600 : std::atoi(text);
}

bool is_later() { return version() < 100000 || version() >= 110000; }
const abi::Places& places() { return is_later() ? abi::kPlaces11 : abi::kPlaces10; }

void note(const std::string& call) {
  void* context = nullptr;
  cuCtxGetCurrent(&context);
  std::ofstream out(std::getenv("STUB_CALLS"), std::ios::app);
  out << call << (context == nullptr ? " without a context" : "") << '\n';
}

struct Stub;

// A table of virtual functions: the same one for the object and for what does its work.
struct Table {
  const void* entries[kMostPlaces] = {};

  template <typename Function>
  void set(size_t place, Function function) {
    entries[place] = reinterpret_cast<const void*>(function);
  }
};

struct Stub : abi::Object {
  Stub(const Table& functions, const std::string& title) : abi::Object{functions.entries, this}, name(title) {
    note("+ " + name);
  }
  ~Stub() { note("- " + name); }

  std::string name;
  std::map<std::string, std::string> shapes;
  std::map<std::string, void*> addresses;
};

Stub* stub_of(const abi::Object* object) { return static_cast<Stub*>(const_cast<abi::Object*>(object)); }
void end(abi::Object* object) { delete stub_of(object); }

abi::Object* make_context(const abi::Object* engine, int32_t strategy);
abi::Object* load_engine(const abi::Object* runtime, const void* bytes, size_t count);
bool set_profile(const abi::Object* context, int32_t profile, void*) {
  stub_of(context)->name += " " + std::to_string(profile);
  note("profile of " + stub_of(context)->name);
  return true;
}
bool set_shape(const abi::Object* context, const char* name, const abi::Dims* dims) {
  std::string text;
  for (int32_t i = 0; i < dims->count; ++i) text += (i == 0 ? "" : "x") + std::to_string(dims->sizes[i]);
  stub_of(context)->shapes[name] = text;
  return true;
}
bool set_address(const abi::Object* context, const char* name, void* address) {
  stub_of(context)->addresses[name] = address;
  return address != nullptr;
}
bool enqueue(const abi::Object* context, void*) {
  std::string call = "run " + stub_of(context)->name;
  for (const auto& [name, address] : stub_of(context)->addresses) {
    if (name.find("past_") == 0 || name.find("present_") == 0) continue;
    call += " " + name + ":" + stub_of(context)->shapes[name];  // no shape of an output
  }
  note(call);
  return true;
}

const Table& runtime_table() {
  static Table table;
  table.set(abi::kDelete, end);
  table.set(places().deserialize_cuda_engine, load_engine);
  return table;
}
const Table& engine_table() {
  static Table table;
  table.set(abi::kDelete, end);
  table.set(places().create_execution_context, make_context);
  return table;
}
const Table& context_table() {
  static Table table;
  table.set(abi::kDelete, end);
  table.set(places().set_optimization_profile, set_profile);
  table.set(places().set_input_shape, set_shape);
  table.set(places().set_tensor_address, set_address);
  table.set(places().enqueue, enqueue);
  return table;
}

void* logger = nullptr;

void complain(const char* message) {
  if (is_later()) {
    static_cast<abi::Logger11*>(logger)->log(abi::Severity::kError, message);
  } else {
    static_cast<abi::Logger10*>(logger)->log(abi::Severity::kError, message);
  }
}

abi::Object* load_engine(const abi::Object*, const void* bytes, size_t count) {
  const std::string text(static_cast<const char*>(bytes), count);
  const std::string name = text.substr(text.rfind(' ') + 1);
  const char* const refused = std::getenv("STUB_REFUSED");
  if (refused != nullptr && name == refused) {
    complain("this engine\nis for another GPU");
    return nullptr;
  }
  return new Stub(engine_table(), name);
}
abi::Object* make_context(const abi::Object* engine, int32_t) {
  return new Stub(context_table(), "context of " + stub_of(engine)->name);
}

}  // namespace

#define STUB extern "C" __attribute__((visibility("default")))

STUB int32_t getInferLibVersion() { return version(); }
STUB void* createInferRuntime_INTERNAL(void* listener, int32_t) {
  logger = listener;
  return new Stub(runtime_table(), "runtime");
}
