// Opens cuBLASLt, and keeps the algorithm that it chooses for each size; see cublas_lt.h.
#include "kernels/device/cublas_lt.h"

#include <array>
#include <map>
#include <mutex>
#include <string>

#include <dlfcn.h>

#include "kernels/device/cublas_lt_abi.h"

namespace awq2trt {
namespace {

namespace abi = cublas_lt_abi;

constexpr int kCudaMajor = CUDART_VERSION / 1000;
constexpr uint32_t kAlignment = 16;

// Fills in `function`; false if the library does not have it.
template <typename Function>
bool find(void* library, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(library, name));
  return *function != nullptr;
}

bool find_all(void* library, abi::Functions* f) {
  return find(library, "cublasLtCreate", &f->create) && find(library, "cublasLtMatmulDescCreate", &f->desc_create) &&
         find(library, "cublasLtMatmulDescSetAttribute", &f->desc_set) &&
         find(library, "cublasLtMatmulDescDestroy", &f->desc_destroy) &&
         find(library, "cublasLtMatrixLayoutCreate", &f->layout_create) &&
         find(library, "cublasLtMatrixLayoutDestroy", &f->layout_destroy) &&
         find(library, "cublasLtMatmulPreferenceCreate", &f->preference_create) &&
         find(library, "cublasLtMatmulPreferenceSetAttribute", &f->preference_set) &&
         find(library, "cublasLtMatmulPreferenceDestroy", &f->preference_destroy) &&
         find(library, "cublasLtMatmulAlgoGetHeuristic", &f->heuristic) && find(library, "cublasLtMatmul", &f->matmul);
}

// The library's functions, or nullptr. The library stays open for the life of the process, as its handles do: at exit
// the driver may be gone before them.
const abi::Functions* functions() {
  static const abi::Functions* const opened = []() -> const abi::Functions* {
    static abi::Functions found = {};
    for (const int major : {kCudaMajor, kCudaMajor + 1, kCudaMajor - 1}) {
      const std::string name = "libcublasLt.so." + std::to_string(major);
      void* const library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
      if (library != nullptr && find_all(library, &found)) return &found;
    }
    return nullptr;
  }();
  return opened;
}

// Descriptions of one product's matrices. cuBLAS stores matrices by columns, so it computes y^T = W * x^T: its A is W
// (transposed), its B is x.
class Description {
 public:
  Description(const abi::Functions& f, const DenseProduct& p) : f_(f) {
    const cudaDataType type = p.dtype == DataType::kHalf ? CUDA_R_16F : CUDA_R_16BF;
    const auto m = static_cast<uint64_t>(p.m), n = static_cast<uint64_t>(p.n), k = static_cast<uint64_t>(p.k);
    valid_ = succeeded(f.desc_create(&desc, abi::kCompute32F, CUDA_R_32F)) &&
             succeeded(f.desc_set(desc, abi::kDescTransA, &abi::kTranspose, sizeof abi::kTranspose)) &&
             succeeded(f.layout_create(&weights, type, k, n, p.k)) && succeeded(f.layout_create(&x, type, k, m, p.k)) &&
             succeeded(f.layout_create(&y, type, n, m, p.y_stride));
    if (valid_ && p.bias != nullptr) {
      valid_ = succeeded(f.desc_set(desc, abi::kDescEpilogue, &abi::kEpilogueBias, sizeof abi::kEpilogueBias)) &&
               succeeded(f.desc_set(desc, abi::kDescBiasPointer, &p.bias, sizeof p.bias));
    }
  }
  ~Description() {
    if (desc != nullptr) f_.desc_destroy(desc);
    for (abi::MatrixLayout layout : {weights, x, y}) {
      if (layout != nullptr) f_.layout_destroy(layout);
    }
  }
  Description(const Description&) = delete;
  Description& operator=(const Description&) = delete;

  bool valid() const { return valid_; }

  abi::MatmulDesc desc = nullptr;
  abi::MatrixLayout weights = nullptr, x = nullptr, y = nullptr;

 private:
  static bool succeeded(abi::Status status) { return status == abi::kSuccess; }

  const abi::Functions& f_;
  bool valid_ = false;
};

// The library's first choice among the algorithms that add up in fp32 and in one order; false if there is none.
bool choose_algorithm(const abi::Functions& f, abi::Handle handle, const Description& description,
                      abi::Algorithm* algorithm) {
  abi::Preference preference = nullptr;
  if (f.preference_create(&preference) != abi::kSuccess) return false;
  const uint64_t workspace = kCublasLtWorkspaceBytes;
  bool set = f.preference_set(preference, abi::kMaxWorkspaceBytes, &workspace, sizeof workspace) == abi::kSuccess;
  set = set && f.preference_set(preference, abi::kReductionSchemeMask, &abi::kReduceInComputeType,
                                sizeof abi::kReduceInComputeType) == abi::kSuccess;
  for (const int attribute :
       {abi::kMinAlignmentABytes, abi::kMinAlignmentBBytes, abi::kMinAlignmentCBytes, abi::kMinAlignmentDBytes}) {
    set = set && f.preference_set(preference, attribute, &kAlignment, sizeof kAlignment) == abi::kSuccess;
  }
  abi::HeuristicResult result = {};
  int found = 0;
  const bool asked = set && f.heuristic(handle, description.desc, description.weights, description.x, description.y,
                                        description.y, preference, 1, &result, &found) == abi::kSuccess;
  f.preference_destroy(preference);
  if (!asked || found == 0 || result.state != abi::kSuccess) return false;
  *algorithm = result.algorithm;
  return true;
}

// Handles by device, algorithms by device and sizes.
class Library {
 public:
  explicit Library(const abi::Functions& f) : f_(f) {}

  cudaError_t multiply(const DenseProduct& p, void* workspace, cudaStream_t stream) {
    int device = 0;
    const cudaError_t status = cudaGetDevice(&device);
    if (status != cudaSuccess) return status;
    const Description description(f_, p);
    abi::Handle handle = nullptr;
    abi::Algorithm algorithm = {};
    if (!description.valid() || !prepare(device, p, description, &handle, &algorithm)) return cudaErrorNotSupported;
    const float one = 1.f, zero = 0.f;
    const abi::Status done =
        f_.matmul(handle, description.desc, &one, p.weights, description.weights, p.x, description.x, &zero, p.y,
                  description.y, p.y, description.y, &algorithm, workspace, kCublasLtWorkspaceBytes, stream);
    return done == abi::kSuccess ? cudaSuccess : cudaErrorLaunchFailure;
  }

 private:
  using Key = std::array<int, 7>;

  bool prepare(int device, const DenseProduct& p, const Description& description, abi::Handle* handle,
               abi::Algorithm* algorithm) {
    const std::lock_guard<std::mutex> lock(mutex_);
    abi::Handle& known_handle = handles_[device];
    if (known_handle == nullptr && f_.create(&known_handle) != abi::kSuccess) return false;
    *handle = known_handle;
    const Key key = {device, p.m, p.n, p.k, p.y_stride, static_cast<int>(p.dtype), p.bias != nullptr};
    const auto known = algorithms_.find(key);
    if (known != algorithms_.end()) {
      *algorithm = known->second;
      return true;
    }
    if (!choose_algorithm(f_, *handle, description, algorithm)) return false;
    algorithms_.emplace(key, *algorithm);
    return true;
  }

  const abi::Functions& f_;
  std::mutex mutex_;
  std::map<int, abi::Handle> handles_;
  std::map<Key, abi::Algorithm> algorithms_;
};

}  // namespace

bool has_cublas_lt() { return functions() != nullptr; }

cudaError_t multiply_by_cublas_lt(const DenseProduct& product, void* workspace, cudaStream_t stream) {
  if (!has_cublas_lt()) return cudaErrorNotSupported;
  static Library* const library = new Library(*functions());  // never destroyed, see functions()
  return library->multiply(product, workspace, stream);
}

}  // namespace awq2trt
