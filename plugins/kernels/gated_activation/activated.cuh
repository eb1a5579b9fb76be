// The activations of a gated MLP, for every kernel that applies one. In and out: a number in an fp32 register.
#pragma once

#include "kernels/gated_activation/gated_activation.h"

namespace awq2trt {

template <Activation kActivation>
__device__ __forceinline__ float activated(float x) {
  constexpr float kSqrtHalf = 0.70710678f, kTanhScale = 0.79788456f;  // sqrt(1 / 2), sqrt(2 / pi)
  switch (kActivation) {
    case Activation::kSilu:
      return x / (1.f + __expf(-x));
    case Activation::kGelu:
      return 0.5f * x * (1.f + erff(x * kSqrtHalf));
    case Activation::kGeluTanh:
      return 0.5f * x * (1.f + tanhf(kTanhScale * (x + 0.044715f * x * x * x)));
    case Activation::kRelu:
      return fmaxf(x, 0.f);
  }
  return x;
}

// The same, chosen in the kernel.
__device__ __forceinline__ float activated(Activation activation, float x) {
  switch (activation) {
    case Activation::kSilu:
      return activated<Activation::kSilu>(x);
    case Activation::kGelu:
      return activated<Activation::kGelu>(x);
    case Activation::kGeluTanh:
      return activated<Activation::kGeluTanh>(x);
    case Activation::kRelu:
      return activated<Activation::kRelu>(x);
  }
  return x;
}

}  // namespace awq2trt
