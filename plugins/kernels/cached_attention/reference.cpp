// The definition of the operator, written out in loops; see reference.h.
#include "kernels/cached_attention/reference.h"

#include <algorithm>
#include <cmath>

namespace awq2trt {
namespace {

using Vector = std::vector<double>;

Vector clipped(const AttentionProblem& p, const double* head) {
  Vector x(head, head + p.head_dim);
  if (p.clip > 0.f) {
    for (double& value : x) value = std::min(std::max(value, -double{p.clip}), double{p.clip});
  }
  return x;
}

void norm(const AttentionProblem& p, const Vector& gain, Vector* x) {
  double squares = 0.0;
  for (double value : *x) squares += value * value;
  const double factor = 1.0 / std::sqrt(squares / p.head_dim + p.norm_eps);
  for (int i = 0; i < p.head_dim; ++i) (*x)[i] *= factor * gain[i];
}

void rotate(const AttentionProblem& p, const Vector& cos, const Vector& sin, int64_t position, Vector* x) {
  const int pairs = p.rotary_dim / 2;
  for (int i = 0; i < pairs; ++i) {
    double& a = (*x)[p.interleaved ? 2 * i : i];
    double& b = (*x)[p.interleaved ? 2 * i + 1 : i + pairs];
    const double c = cos[position * pairs + i], s = sin[position * pairs + i];
    const double rotated = a * c - b * s;
    b = b * c + a * s;
    a = rotated;
  }
}

constexpr double kLargestCode = 127.0;

// Replaces the numbers of a head by those that a cache of codes keeps, after rounding to T; returns their scale.
double quantize(double (*round)(double), Vector* x) {
  double largest = 0.0;
  for (double value : *x) largest = std::max(largest, std::abs(value));
  const double scale = round(largest / kLargestCode);
  for (double& value : *x) {
    const double code = scale == 0.0 ? 0.0 : std::nearbyint(value / scale);
    value = std::min(std::max(code, -kLargestCode), kLargestCode) * scale;
  }
  return scale;
}

}  // namespace

AttentionReference attention_reference(const AttentionProblem& p, const Vector& qkv,
                                       const std::vector<int64_t>& position, const Vector& cos, const Vector& sin,
                                       const Vector& query_norm, const Vector& key_norm, const Vector& alibi,
                                       Vector keys, Vector values, double (*round)(double),
                                       const std::vector<int64_t>& visible_end) {
  const int64_t d = p.head_dim, width = (p.heads + 2 * p.kv_heads) * d;
  const auto head_of = [&](int64_t b, int64_t s, int64_t head) { return &qkv[(b * p.tokens + s) * width + head * d]; };
  const auto slot_of = [&](int64_t b, int64_t kv_head, int64_t slot) {
    return ((b * p.kv_heads + kv_head) * p.capacity + slot) * d;
  };
  const bool has_codes = p.cache_type == CacheType::kInt8;
  const size_t scales = has_codes ? static_cast<size_t>(p.batch) * p.kv_heads * p.capacity : 0;
  Vector key_scales(scales), value_scales(scales);
  for (int b = 0; b < p.batch; ++b) {
    for (int s = 0; s < p.tokens; ++s) {
      for (int kv_head = 0; kv_head < p.kv_heads; ++kv_head) {
        Vector key = clipped(p, head_of(b, s, p.heads + kv_head));
        Vector value = clipped(p, head_of(b, s, p.heads + p.kv_heads + kv_head));
        if (p.has_norms) norm(p, key_norm, &key);
        rotate(p, cos, sin, position[b] + s, &key);
        const int64_t place = slot_of(b, kv_head, position[b] + s);
        for (int i = 0; i < d; ++i) key[i] = round(key[i]), value[i] = round(value[i]);
        if (has_codes) {
          key_scales[place / d] = quantize(round, &key);
          value_scales[place / d] = quantize(round, &value);
        }
        std::copy(key.begin(), key.end(), keys.begin() + place);
        std::copy(value.begin(), value.end(), values.begin() + place);
      }
    }
  }
  Vector y(static_cast<size_t>(p.batch) * p.tokens * p.heads * d);
  for (int b = 0; b < p.batch; ++b) {
    for (int s = 0; s < p.tokens; ++s) {
      for (int head = 0; head < p.heads; ++head) {
        Vector query = clipped(p, head_of(b, s, head));
        if (p.has_norms) norm(p, query_norm, &query);
        rotate(p, cos, sin, position[b] + s, &query);
        const int64_t now = position[b] + s, first = p.window > 0 ? std::max<int64_t>(0, now + 1 - p.window) : 0;
        const int64_t last = p.has_visible_end ? std::clamp(visible_end[now], now, position[b] + p.tokens - 1) : now;
        Vector scores;
        for (int64_t slot = first; slot <= last; ++slot) {
          double score = 0.0;
          const int64_t place = slot_of(b, head / p.heads_per_kv(), slot);
          for (int i = 0; i < d; ++i) score += query[i] * keys[place + i];
          score *= p.scale;
          if (p.softcap > 0.f) score = p.softcap * std::tanh(score / p.softcap);
          if (p.has_alibi) score += alibi[head] * static_cast<double>(slot - now);
          scores.push_back(score);
        }
        const double largest = *std::max_element(scores.begin(), scores.end());
        double weights = 0.0;
        double* const out = &y[((static_cast<int64_t>(b) * p.tokens + s) * p.heads + head) * d];
        for (int64_t slot = first; slot <= last; ++slot) {
          const double weight = std::exp(scores[slot - first] - largest);
          const int64_t place = slot_of(b, head / p.heads_per_kv(), slot);
          for (int i = 0; i < d; ++i) out[i] += weight * values[place + i];
          weights += weight;
        }
        for (int i = 0; i < d; ++i) out[i] /= weights;
      }
    }
  }
  return {y, keys, values, key_scales, value_scales};
}

}  // namespace awq2trt
