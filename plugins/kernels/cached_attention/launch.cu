// The only entry: checks the conditions that the kernels rely on, copies the past unless it is the present, selects the
// types, and starts the kernels that `config` names.
#include <type_traits>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cached_attention/launchers.cuh"

namespace awq2trt {
namespace {

bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

bool has_pointers(const AttentionProblem& problem, const AttentionConfig& config, const AttentionTensors& tensors) {
  const void* const always[] = {tensors.qkv,         tensors.position,      tensors.past_key, tensors.past_value,
                                tensors.present_key, tensors.present_value, tensors.y};
  for (const void* pointer : always) {
    if (pointer == nullptr) return false;
  }
  return (problem.rotary_dim == 0 || (tensors.cos != nullptr && tensors.sin != nullptr)) &&
         (!problem.has_norms || (tensors.query_norm != nullptr && tensors.key_norm != nullptr)) &&
         (!problem.has_alibi || tensors.alibi != nullptr) &&
         (!problem.has_visible_end || tensors.visible_end != nullptr) &&
         (problem.cache_type == CacheType::kAsActivations ||
          (tensors.past_key_scale != nullptr && tensors.past_value_scale != nullptr &&
           tensors.present_key_scale != nullptr && tensors.present_value_scale != nullptr)) &&
         (config.workspace_bytes == 0 || tensors.workspace != nullptr);
}

bool has_aligned_pointers(const AttentionTensors& tensors) {
  return is_aligned(tensors.qkv) && is_aligned(tensors.present_key) && is_aligned(tensors.present_value) &&
         is_aligned(tensors.y) && is_aligned(tensors.workspace);
}

// Copies the past into the present; does nothing where they are the same memory.
cudaError_t copy_past(const AttentionProblem& problem, const AttentionTensors& tensors, cudaStream_t stream) {
  constexpr size_t kScaleBytes = 2;
  const size_t slots = static_cast<size_t>(problem.batch) * problem.kv_heads * problem.capacity;
  const size_t bytes = slots * problem.head_dim * (problem.cache_type == CacheType::kInt8 ? 1 : 2);
  cudaError_t status = cudaSuccess;
  const auto copy = [&](void* present, const void* past, size_t size) {
    if (status != cudaSuccess || present == past) return;
    status = cudaMemcpyAsync(present, past, size, cudaMemcpyDeviceToDevice, stream);
  };
  copy(tensors.present_key, tensors.past_key, bytes);
  copy(tensors.present_value, tensors.past_value, bytes);
  if (problem.cache_type == CacheType::kInt8) {
    copy(tensors.present_key_scale, tensors.past_key_scale, slots * kScaleBytes);
    copy(tensors.present_value_scale, tensors.past_value_scale, slots * kScaleBytes);
  }
  return status;
}

template <typename T, typename C>
AttentionParams<T, C> params_of(const AttentionProblem& problem, const AttentionConfig& config,
                                const AttentionTensors& tensors) {
  const WorkspaceLayout layout(problem, config.kernel, config.splits);
  char* const workspace = static_cast<char*>(tensors.workspace);
  AttentionParams<T, C> params = {};
  params.qkv = static_cast<const T*>(tensors.qkv);
  params.position = tensors.position;
  params.cos = static_cast<const T*>(tensors.cos);
  params.sin = static_cast<const T*>(tensors.sin);
  params.query_norm = problem.has_norms ? static_cast<const T*>(tensors.query_norm) : nullptr;
  params.key_norm = problem.has_norms ? static_cast<const T*>(tensors.key_norm) : nullptr;
  params.alibi = problem.has_alibi ? tensors.alibi : nullptr;
  params.visible_end = problem.has_visible_end ? tensors.visible_end : nullptr;
  params.keys = static_cast<C*>(tensors.present_key);
  params.values = static_cast<C*>(tensors.present_value);
  params.key_scales = static_cast<T*>(tensors.present_key_scale);
  params.value_scales = static_cast<T*>(tensors.present_value_scale);
  params.y = static_cast<T*>(tensors.y);
  params.queries = reinterpret_cast<T*>(workspace);
  params.partials = reinterpret_cast<float*>(workspace + layout.partials);
  params.maxima = reinterpret_cast<float2*>(workspace + layout.maxima);
  params.tokens = problem.tokens;
  params.heads = problem.heads;
  params.kv_heads = problem.kv_heads;
  params.heads_per_kv = problem.heads_per_kv();
  params.capacity = problem.capacity;
  params.rotary_dim = problem.rotary_dim;
  params.window = problem.window;
  params.splits = config.splits;
  params.scale = problem.scale;
  params.softcap = problem.softcap;
  params.clip = problem.clip;
  params.norm_eps = problem.norm_eps;
  params.interleaved = problem.interleaved;
  return params;
}

// cudaErrorNotSupported where the build or the call has no such kernel, for which choose_config() never asks then.
template <int kHeadDim, typename T, typename C>
cudaError_t launch_on_hopper(const AttentionParams<T, C>& params, int batch, cudaStream_t stream) {
#ifdef AWQ2TRT_HOPPER
  if constexpr ((kHeadDim == 64 || kHeadDim == 128) && std::is_same<C, T>::value)
    return launch_warpgroup_attention<kHeadDim>(params, batch, stream);
#endif
  static_cast<void>(params), static_cast<void>(batch), static_cast<void>(stream);
  return cudaErrorNotSupported;
}

template <int kHeadDim, typename T, typename C>
cudaError_t launch_of_size(const AttentionParams<T, C>& params, const AttentionConfig& config, int batch,
                           cudaStream_t stream) {
  if (config.kernel == AttentionKernel::kDecode)
    return launch_decode_attention<kHeadDim>(params, config, batch, stream);
  const cudaError_t status = launch_prepare<kHeadDim>(params, batch, config.overlap, stream);
  if (status != cudaSuccess) return status;
  if (config.kernel == AttentionKernel::kPrefillHopper) return launch_on_hopper<kHeadDim>(params, batch, stream);
  return config.kernel == AttentionKernel::kPrefill ? launch_prefill_attention<kHeadDim>(params, batch, stream)
                                                    : launch_decode_attention<kHeadDim>(params, config, batch, stream);
}

template <typename T, typename C>
cudaError_t launch_typed(const AttentionProblem& problem, const AttentionConfig& config,
                         const AttentionTensors& tensors, cudaStream_t stream) {
  const AttentionParams<T, C> params = params_of<T, C>(problem, config, tensors);
  switch (problem.head_dim) {
#define AWQ2TRT_CASE(head_dim, ...) \
  case head_dim:                    \
    return launch_of_size<head_dim>(params, config, problem.batch, stream);
    AWQ2TRT_FOR_EACH_HEAD_DIM(AWQ2TRT_CASE, )
#undef AWQ2TRT_CASE
    default:
      return cudaErrorInvalidValue;
  }
}

template <typename T>
cudaError_t launch_of_type(const AttentionProblem& problem, const AttentionConfig& config,
                           const AttentionTensors& tensors, cudaStream_t stream) {
  return problem.cache_type == CacheType::kInt8 ? launch_typed<T, int8_t>(problem, config, tensors, stream)
                                                : launch_typed<T, T>(problem, config, tensors, stream);
}

}  // namespace

cudaError_t launch_cached_attention(const AttentionProblem& problem, const AttentionConfig& config,
                                    const AttentionTensors& tensors, cudaStream_t stream) {
  if (check_validity(problem) != nullptr || !has_pointers(problem, config, tensors)) return cudaErrorInvalidValue;
  if (!has_aligned_pointers(tensors)) return cudaErrorMisalignedAddress;
  const cudaError_t status = copy_past(problem, tensors, stream);
  if (status != cudaSuccess || problem.batch == 0 || problem.tokens == 0) return status;
  return problem.dtype == DataType::kHalf ? launch_of_type<__half>(problem, config, tensors, stream)
                                          : launch_of_type<__nv_bfloat16>(problem, config, tensors, stream);
}

}  // namespace awq2trt
