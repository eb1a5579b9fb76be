// W4A16Linear and W8A16Linear on a CPU; see w4a16_linear_cpu.h.
#include "ort/w4a16_linear_cpu.h"

#include <algorithm>
#include <type_traits>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace awq2trt {
namespace ort {
namespace {

constexpr int kVector = 8;         // floats that the innermost loop takes at once: a register of AVX, two of NEON
constexpr int kRows = 4;           // weight rows that share a load of activations, so 4 to 8 registers of sums
constexpr int kPieceBytes = 512;   // of a weight row: kRows of them, dequantized, are 16 KiB and stay in a 32 KiB L1
constexpr int kTokens = 16;        // that share a dequantized piece, so that dequantizing costs less than multiplying
constexpr int kTaskCodes = 65536;  // of a task, some 20 us: enough to be worth a thread

// Two clones of the hot loops, of which the dynamic linker picks one: x86-64's baseline has no AVX2 and no FMA.
#if defined(__x86_64__)
#define AWQ2TRT_CPU_CLONES __attribute__((target_clones("arch=haswell", "default")))
#else
#define AWQ2TRT_CPU_CLONES
#endif

float to_float(__half value) { return __half2float(value); }
float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
float to_float(float value) { return value; }

void assign(float value, __half* to) { *to = __float2half_rn(value); }
void assign(float value, __nv_bfloat16* to) { *to = __float2bfloat16_rn(value); }
void assign(float value, float* to) { *to = value; }

// Calls body(pointer of T*) for the T that `type` names.
template <typename Body>
void with_typed(const void* pointer, ElementType type, Body&& body) {
  switch (type) {
    case ElementType::kFloat16:
      return body(static_cast<const __half*>(pointer));
    case ElementType::kBFloat16:
      return body(static_cast<const __nv_bfloat16*>(pointer));
    default:
      return body(static_cast<const float*>(pointer));
  }
}

float load(const void* tensor, ElementType type, int64_t index) {
  float value = 0.0F;
  with_typed(tensor, type, [&](const auto* typed) { value = to_float(typed[index]); });
  return value;
}

int code_of_low_nibble(uint8_t byte) { return ((byte & 0xf) ^ 8) - 8; }
int code_of_high_nibble(uint8_t byte) { return ((byte >> 4) ^ 8) - 8; }

int int4_at(const uint8_t* packed, int64_t index) {
  return index % 2 == 0 ? code_of_low_nibble(packed[index / 2]) : code_of_high_nibble(packed[index / 2]);
}

// w = scale * (code - zero) for `bytes` bytes that share scale and zero.
AWQ2TRT_CPU_CLONES
void dequantize_group(const uint8_t* __restrict codes, int bytes, float scale, int zero, float* __restrict even,
                      float* __restrict odd) {
  for (int i = 0; i < bytes; ++i) {
    even[i] = scale * static_cast<float>(code_of_low_nibble(codes[i]) - zero);
    odd[i] = scale * static_cast<float>(code_of_high_nibble(codes[i]) - zero);
  }
}

// The same for 8-bit codes.
AWQ2TRT_CPU_CLONES
void dequantize_group(const int8_t* __restrict codes, int bytes, float scale, int zero, float* __restrict weights) {
  for (int i = 0; i < bytes; ++i) weights[i] = scale * static_cast<float>(codes[i] - zero);
}

// Adds to sums [kRows] the products of kRows pieces of weights with one of activations, `length` floats each, a
// multiple of kVector.
AWQ2TRT_CPU_CLONES
void multiply(const float* __restrict weights, int weight_stride, const float* __restrict x, int length,
              float* __restrict sums) {
  float lanes[kRows][kVector] = {};
  for (int i = 0; i < length; i += kVector) {
    for (int row = 0; row < kRows; ++row) {
      for (int lane = 0; lane < kVector; ++lane) {
        lanes[row][lane] += weights[row * weight_stride + i + lane] * x[i + lane];
      }
    }
  }
  for (int row = 0; row < kRows; ++row) {
    for (int lane = 0; lane < kVector; ++lane) sums[row] += lanes[row][lane];
  }
}

int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

}  // namespace

CpuProblem::CpuProblem(const GemmProblem& problem, const LinearTensors& tensors, ElementType type, int code_bits)
    : problem_(problem),
      tensors_(tensors),
      type_(type),
      planes_(8 / code_bits),
      plane_stride_(round_up(problem.k / planes_, kVector)) {}

size_t CpuProblem::activations_bytes() const {
  return sizeof(float) * planes_ * static_cast<size_t>(problem_.m) * static_cast<size_t>(plane_stride_);
}

void CpuProblem::spread_activations(size_t token, float* spread) const noexcept {
  with_typed(tensors_.x, type_, [&](const auto* x) {
    const auto* const row = x + token * problem_.k;
    for (int plane = 0; plane < planes_; ++plane) {
      float* const channels = spread + (token * planes_ + plane) * plane_stride_;
      for (int i = 0; i < row_bytes(); ++i) channels[i] = to_float(row[planes_ * i + plane]);
      std::fill(channels + row_bytes(), channels + plane_stride_, 0.0F);
    }
  });
}

int CpuProblem::rows_per_task() const { return std::max(kRows, kTaskCodes / problem_.k / kRows * kRows); }

size_t CpuProblem::row_tasks() const { return static_cast<size_t>((problem_.n - 1) / rows_per_task() + 1); }

void CpuProblem::compute_rows(size_t task, const float* spread) const noexcept {
  const int first_row = static_cast<int>(task) * rows_per_task();
  const int end_row = std::min(problem_.n, first_row + rows_per_task());
  float weights[kRows][2][kPieceBytes];  // even and odd channels
  for (int row = first_row; row < end_row; row += kRows) {
    const int rows = std::min(kRows, end_row - row);
    for (int first_token = 0; first_token < problem_.m; first_token += kTokens) {
      const int tokens = std::min(kTokens, problem_.m - first_token);
      float sums[kTokens][kRows] = {};
      for (int first_byte = 0; first_byte < row_bytes(); first_byte += kPieceBytes) {
        const int bytes = std::min(kPieceBytes, row_bytes() - first_byte);
        const int length = round_up(bytes, kVector);
        for (int i = 0; i < kRows; ++i) {
          dequantize(row + std::min(i, rows - 1), first_byte, bytes, weights[i][0], weights[i][1]);
          for (int plane = 0; plane < planes_; ++plane) {
            std::fill(weights[i][plane] + bytes, weights[i][plane] + length, 0.0F);
          }
        }
        for (int token = 0; token < tokens; ++token) {
          for (int plane = 0; plane < planes_; ++plane) {
            const size_t row_of_plane = static_cast<size_t>(first_token + token) * planes_ + plane;
            multiply(weights[0][plane], 2 * kPieceBytes, spread + row_of_plane * plane_stride_ + first_byte, length,
                     sums[token]);
          }
        }
      }
      for (int token = 0; token < tokens; ++token) {
        for (int i = 0; i < rows; ++i) store(first_token + token, row + i, sums[token][i]);
      }
    }
  }
}

int CpuProblem::zero_of(int64_t group) const noexcept {
  if (tensors_.zeros == nullptr) return 0;
  return planes_ == 1 ? static_cast<const int8_t*>(tensors_.zeros)[group]
                      : int4_at(static_cast<const uint8_t*>(tensors_.zeros), group);
}

void CpuProblem::dequantize(int row, int first_byte, int bytes, float* even, float* odd) const noexcept {
  const int group_size = std::min(problem_.group_size, problem_.k);
  const int64_t row_group = int64_t{row} * problem_.groups();
  const auto* const codes = static_cast<const uint8_t*>(tensors_.codes) + (int64_t{row} * row_bytes());
  const auto scale_of = [&](int group) { return load(tensors_.scales, type_, row_group + group); };
  const auto zero_of = [&](int group) { return this->zero_of(row_group + group); };
  const int end = first_byte + bytes;
  if (group_size % planes_ == 0) {
    for (int byte = first_byte; byte < end;) {
      const int group = planes_ * byte / group_size;
      const int group_end = static_cast<int>(std::min(int64_t{end}, (int64_t{group} + 1) * group_size / planes_));
      const int length = group_end - byte, place = byte - first_byte;
      if (planes_ == 1) {
        dequantize_group(reinterpret_cast<const int8_t*>(codes) + byte, length, scale_of(group), zero_of(group),
                         even + place);
      } else {
        dequantize_group(codes + byte, length, scale_of(group), zero_of(group), even + place, odd + place);
      }
      byte = group_end;
    }
    return;
  }
  for (int byte = first_byte; byte < end; ++byte) {  // the two codes of a byte may be of two groups
    const int low = 2 * byte / group_size, high = (2 * byte + 1) / group_size;
    even[byte - first_byte] = scale_of(low) * static_cast<float>(code_of_low_nibble(codes[byte]) - zero_of(low));
    odd[byte - first_byte] = scale_of(high) * static_cast<float>(code_of_high_nibble(codes[byte]) - zero_of(high));
  }
}

void CpuProblem::store(int token, int row, float sum) const noexcept {
  const float value = problem_.has_bias ? sum + load(tensors_.bias, type_, row) : sum;
  const int64_t index = int64_t{token} * problem_.n + row;
  with_typed(tensors_.y, type_, [&](const auto* y) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(y)>>;
    assign(value, static_cast<T*>(tensors_.y) + index);
  });
}

}  // namespace ort
}  // namespace awq2trt
