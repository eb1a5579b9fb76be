// The attention kernels on a GPU against their definition in fp64: every head size, every kernel, awkward sizes, with a
// cache of the type of the call and with one of codes.
//
// Every run draws new inputs (AWQ2TRT_TEST_SEED repeats a run). Outputs are poisoned with NaN, so a missing write
// shows; slots of the cache that a call must not read or write hold values that would show: behind the new tokens,
// infinities, since a cache that was never written may hold them.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cached_attention/cached_attention.h"
#include "kernels/cached_attention/reference.h"
#include "kernels/gpu_test.h"

namespace awq2trt {
namespace {

// Relative error in the 2-norm: rounding y, queries and weights to T costs about 2^-11 / sqrt(3) each, 2.8e-4 in fp16
// and 2.3e-3 in bf16; with scores of a few units, the rounding of queries counts more.
constexpr double kHalfTolerance = 2e-3, kBFloat16Tolerance = 1.6e-2;

template <typename T>
double rounded(double value) {
  return static_cast<double>(static_cast<float>(static_cast<T>(static_cast<float>(value))));
}

template <typename T>
std::vector<double> widened(const std::vector<T>& values) {
  std::vector<double> wide;
  for (const T& value : values) wide.push_back(static_cast<double>(static_cast<float>(value)));
  return wide;
}

// Infinities that are the same do not count.
double relative_error(const std::vector<double>& got, const std::vector<double>& want) {
  double difference = 0.0, norm = 0.0;
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::isinf(want[i]) && got[i] == want[i]) continue;
    difference += (got[i] - want[i]) * (got[i] - want[i]);
    norm += want[i] * want[i];
  }
  return std::sqrt(difference / norm);
}

std::string name_of(const AttentionProblem& p, const std::vector<int64_t>& position) {
  return std::string(p.dtype == DataType::kHalf ? "half" : "bfloat16") + " batch " + std::to_string(p.batch) +
         " tokens " + std::to_string(p.tokens) + " heads " + std::to_string(p.heads) + "/" +
         std::to_string(p.kv_heads) + " of " + std::to_string(p.head_dim) + " at " + std::to_string(position[0]) +
         " rotary " + std::to_string(p.rotary_dim) + " window " + std::to_string(p.window);
}

// A cache on the host, of T or of codes and their scales [slots].
template <typename T>
struct HostCache {
  std::vector<T> numbers;
  std::vector<int8_t> codes;
  std::vector<T> scales;

  static HostCache random(const AttentionProblem& p, size_t slots, std::mt19937& generator) {
    HostCache cache;
    if (p.cache_type == CacheType::kAsActivations) {
      cache.numbers = random_normal<T>(slots * p.head_dim, 0.f, 1.f, generator);
      return cache;
    }
    std::uniform_int_distribution<int> code(-127, 127);
    std::uniform_real_distribution<float> scale(0.002f, 0.02f);
    for (size_t i = 0; i < slots * p.head_dim; ++i) cache.codes.push_back(static_cast<int8_t>(code(generator)));
    for (size_t i = 0; i < slots; ++i) cache.scales.push_back(static_cast<T>(scale(generator)));
    return cache;
  }

  // Fills the slots behind the new tokens with infinities; codes have none.
  void spoil(const AttentionProblem& p, const std::vector<int64_t>& position) {
    for (size_t i = 0; i < numbers.size(); ++i) {
      const size_t slot = i / p.head_dim, sequence = slot / p.capacity / p.kv_heads;
      if (static_cast<int64_t>(slot % p.capacity) >= position[sequence] + p.tokens)
        numbers[i] = static_cast<T>(INFINITY);
    }
  }

  std::vector<double> wide() const {
    if (codes.empty()) return widened(numbers);
    std::vector<double> values;
    const size_t length = codes.size() / scales.size();
    for (size_t i = 0; i < codes.size(); ++i) {
      values.push_back(codes[i] * static_cast<double>(static_cast<float>(scales[i / length])));
    }
    return values;
  }
};

template <typename T>
struct DeviceCache {
  explicit DeviceCache(const HostCache<T>& host) : numbers(host.numbers), codes(host.codes), scales(host.scales) {}

  void* data(const AttentionProblem& p) const {
    return p.cache_type == CacheType::kInt8 ? static_cast<void*>(codes.get()) : numbers.get();
  }
  void* scales_of(const AttentionProblem& p) const { return p.cache_type == CacheType::kInt8 ? scales.get() : nullptr; }
  HostCache<T> host() const { return {numbers.host(), codes.host(), scales.host()}; }

  DeviceArray<T> numbers;
  DeviceArray<int8_t> codes;
  DeviceArray<T> scales;
};

// Codes and scales after a call: those of other slots must be unchanged, those of new slots within a rounding of the
// reference, which may move a code by one.
template <typename T>
void expect_codes(const AttentionProblem& p, const std::vector<int64_t>& position, const HostCache<T>& past,
                  const HostCache<T>& got, const std::vector<double>& want, const std::vector<double>& want_scales) {
  const double rounding = p.dtype == DataType::kHalf ? 0x1p-10 : 0x1p-7;
  const std::vector<double> numbers = got.wide();
  for (size_t slot = 0; slot < got.scales.size(); ++slot) {
    const int64_t first = position[slot / p.capacity / p.kv_heads], at = static_cast<int64_t>(slot % p.capacity);
    const double scale = static_cast<float>(got.scales[slot]), old = static_cast<float>(past.scales[slot]);
    const bool is_new = at >= first && at < first + p.tokens;
    if (is_new) {
      ASSERT_NEAR(scale, want_scales[slot], want_scales[slot] * rounding) << "slot " << slot;
    } else {
      ASSERT_EQ(scale, old) << "slot " << slot;
    }
    for (size_t i = slot * p.head_dim; i < (slot + 1) * p.head_dim; ++i) {
      if (is_new) {
        ASSERT_NEAR(numbers[i], want[i], 1.01 * scale + 2 * rounding * std::abs(want[i])) << "number " << i;
      } else {
        ASSERT_EQ(got.codes[i], past.codes[i]) << "code " << i;
      }
    }
  }
}

// A run of slots whose tokens see each other.
struct Block {
  int64_t first, last;
};

// The last slot that the token in each slot sees.
std::vector<int64_t> ends_of(const AttentionProblem& p, const std::vector<Block>& blocks) {
  std::vector<int64_t> ends(p.capacity);
  for (int64_t slot = 0; slot < p.capacity; ++slot) ends[slot] = slot;
  for (const Block& block : blocks) std::fill(ends.begin() + block.first, ends.begin() + block.last + 1, block.last);
  return ends;
}

// One call with random contents, in place or not.
template <typename T>
void expect_correct(const AttentionProblem& p, const std::vector<int64_t>& position, const AttentionConfig& config,
                    bool in_place, const std::vector<int64_t>& ends = {}) {
  SCOPED_TRACE(name_of(p, position) + " kernel " + std::to_string(static_cast<int>(config.kernel)) + " splits " +
               std::to_string(config.splits) + (in_place ? " in place" : " copied"));
  std::mt19937 random(test_seed());
  const size_t width = static_cast<size_t>(p.heads + 2 * p.kv_heads) * p.head_dim;
  const size_t outputs = static_cast<size_t>(p.batch) * p.tokens * p.heads * p.head_dim;
  const size_t slots = static_cast<size_t>(p.batch) * p.kv_heads * p.capacity;
  const size_t table = static_cast<size_t>(p.capacity) * (p.rotary_dim / 2);
  const std::vector<T> qkv = random_normal<T>(p.batch * p.tokens * width, 0.f, 1.f, random);
  const std::vector<T> cos = random_normal<T>(table, 0.f, 0.7f, random),
                       sin = random_normal<T>(table, 0.f, 0.7f, random);
  const std::vector<T> query_norm = random_normal<T>(p.has_norms ? p.head_dim : 0, 1.f, 0.2f, random);
  const std::vector<T> key_norm = random_normal<T>(p.has_norms ? p.head_dim : 0, 1.f, 0.2f, random);
  std::vector<float> alibi(p.has_alibi ? p.heads : 0);
  for (size_t i = 0; i < alibi.size(); ++i) alibi[i] = std::exp2(-8.f * static_cast<float>(i + 1) / alibi.size());
  HostCache<T> keys = HostCache<T>::random(p, slots, random), values = HostCache<T>::random(p, slots, random);
  keys.spoil(p, position);
  values.spoil(p, position);
  const AttentionReference want = attention_reference(
      p, widened(qkv), position, widened(cos), widened(sin), widened(query_norm), widened(key_norm),
      std::vector<double>(alibi.begin(), alibi.end()), keys.wide(), values.wide(), rounded<T>, ends);

  const DeviceArray<T> d_qkv(qkv), d_cos(cos), d_sin(sin), d_query_norm(query_norm), d_key_norm(key_norm), d_y(outputs);
  const DeviceArray<int64_t> d_position(position), d_ends(ends);
  const DeviceArray<float> d_alibi(alibi);
  const DeviceArray<uint8_t> workspace(config.workspace_bytes);
  std::vector<T> first;
  for (int call = 0; call < 2; ++call) {
    const DeviceCache<T> past_keys(keys), past_values(values), other_keys(values), other_values(keys);
    const DeviceCache<T>&present_keys = in_place ? past_keys : other_keys,
          &present_values = in_place ? past_values : other_values;
    const AttentionTensors tensors = {d_qkv.get(),
                                      d_position.get(),
                                      p.rotary_dim > 0 ? d_cos.get() : nullptr,
                                      p.rotary_dim > 0 ? d_sin.get() : nullptr,
                                      p.has_norms ? d_query_norm.get() : nullptr,
                                      p.has_norms ? d_key_norm.get() : nullptr,
                                      p.has_alibi ? d_alibi.get() : nullptr,
                                      past_keys.data(p),
                                      past_values.data(p),
                                      present_keys.data(p),
                                      present_values.data(p),
                                      d_y.get(),
                                      workspace.get(),
                                      past_keys.scales_of(p),
                                      past_values.scales_of(p),
                                      present_keys.scales_of(p),
                                      present_values.scales_of(p),
                                      p.has_visible_end ? d_ends.get() : nullptr};
    ASSERT_CUDA(cudaMemset(d_y.get(), 0xff, outputs * sizeof(T)));  // NaN in both types
    ASSERT_CUDA(cudaMemset(workspace.get(), 0xff, config.workspace_bytes));
    ASSERT_CUDA(launch_cached_attention(p, config, tensors, nullptr));
    ASSERT_CUDA(cudaDeviceSynchronize());
    const std::vector<T> y = d_y.host();
    const double tolerance = p.dtype == DataType::kHalf ? kHalfTolerance : kBFloat16Tolerance;
    EXPECT_LT(relative_error(widened(y), want.y), tolerance);
    if (p.cache_type == CacheType::kInt8) {
      expect_codes(p, position, keys, present_keys.host(), want.keys, want.key_scales);
      expect_codes(p, position, values, present_values.host(), want.values, want.value_scales);
    } else {
      EXPECT_LT(relative_error(present_keys.host().wide(), want.keys), tolerance / 2);
      EXPECT_LT(relative_error(present_values.host().wide(), want.values), 1e-9);
    }
    if (call == 0) first = y;
    EXPECT_EQ(std::memcmp(first.data(), y.data(), outputs * sizeof(T)), 0) << "two calls differ";
  }
}

class CachedAttentionGpu : public GpuTest, public testing::WithParamInterface<CacheType> {
 protected:
  void check(AttentionProblem p, const std::vector<int64_t>& position, bool in_place = true,
             const std::vector<int64_t>& ends = {}) {
    p.batch = static_cast<int>(position.size());
    p.has_visible_end = !ends.empty();
    ASSERT_EQ(check_validity(p), nullptr) << check_validity(p);
    const AttentionConfig config = choose_config(p, device_);
    EXPECT_LE(config.workspace_bytes, workspace_bound(p));
    if (p.dtype == DataType::kHalf) {
      expect_correct<__half>(p, position, config, in_place, ends);
    } else {
      expect_correct<__nv_bfloat16>(p, position, config, in_place, ends);
    }
  }

  AttentionProblem problem(int tokens, int heads, int kv_heads, int head_dim, int capacity) {
    AttentionProblem p = {};
    p.cache_type = GetParam();
    p.batch = 1, p.tokens = tokens, p.heads = heads, p.kv_heads = kv_heads, p.head_dim = head_dim;
    p.capacity = capacity, p.rotary_dim = head_dim, p.scale = 1.f / std::sqrt(static_cast<float>(head_dim));
    return p;
  }
};

TEST_P(CachedAttentionGpu, EveryHeadSizeAndTypeInEveryKernel) {
  for (const int head_dim : {64, 80, 96, 112, 128, 256}) {
    for (const DataType dtype : {DataType::kHalf, DataType::kBFloat16}) {
      for (const int tokens : {1, 2, 3, 15, 16, 65, 130}) {
        AttentionProblem p = problem(tokens, 8, 2, head_dim, 333);
        p.dtype = dtype;
        check(p, {100});
      }
    }
  }
}

TEST_P(CachedAttentionGpu, PositionsFromTheFirstSlotToTheLast) {
  for (const int64_t position : {0, 1, 15, 16, 63, 64, 65, 127, 500, 998, 999}) {
    check(problem(1, 8, 8, 128, 1000), {position});
    check(problem(1, 8, 2, 64, 1000), {position});
  }
  check(problem(1000, 4, 2, 64, 1000), {0});
  check(problem(200, 4, 2, 128, 1000), {800});
}

TEST_P(CachedAttentionGpu, LongPromptsEndAnywhereInATile) {
  for (const int head_dim : {64, 128}) {
    for (const DataType dtype : {DataType::kHalf, DataType::kBFloat16}) {
      for (const int tokens : {64, 127, 128, 129, 193, 400}) {
        for (const int window : {0, 1, 33, 128, 300}) {
          AttentionProblem p = problem(tokens, 4, 2, head_dim, 900);
          p.dtype = dtype, p.window = window;
          check(p, {0});
          check(p, {61, 900 - tokens, 300});
        }
      }
    }
  }
}

TEST_P(CachedAttentionGpu, PositionsOutsideOfTheCacheDoNotHang) {
  AttentionProblem p = problem(200, 4, 2, 128, 300);
  const DeviceArray<__half> memory(size_t{1} << 20);
  for (const int window : {0, 5}) {
    for (const int64_t position : {int64_t{250}, int64_t{300}, int64_t{1} << 40, int64_t{-7}}) {
      p.window = window;
      const AttentionConfig config = choose_config(p, device_);
      const DeviceArray<int64_t> at(std::vector<int64_t>{position});
      const DeviceArray<uint8_t> workspace(config.workspace_bytes);
      __half* const any = memory.get();
      const AttentionTensors tensors = {any, at.get(),        any, any, nullptr, nullptr, nullptr, any, any, any, any,
                                        any, workspace.get(), any, any, any,     any,     nullptr};
      ASSERT_CUDA(launch_cached_attention(p, config, tensors, nullptr));
      ASSERT_CUDA(cudaDeviceSynchronize());
    }
  }
}

TEST_P(CachedAttentionGpu, GroupsOfQueryHeads) {
  for (const int heads : {1, 3, 7, 8, 9, 16, 71}) {
    check(problem(1, heads, 1, 64, 200), {150});
    check(problem(5, heads, 1, 64, 200), {150});
  }
}

TEST_P(CachedAttentionGpu, SequencesWithPositionsOfTheirOwn) {
  check(problem(1, 8, 4, 128, 300), {0, 299, 17, 150});
  check(problem(20, 8, 4, 128, 300), {0, 280, 17});
}

TEST_P(CachedAttentionGpu, WindowsCapsClipsNormsAndAlibi) {
  for (const int tokens : {1, 4, 40}) {
    AttentionProblem p = problem(tokens, 8, 2, 128, 400);
    p.window = 33;
    check(p, {300});
    p.softcap = 5.f;
    p.has_norms = true, p.norm_eps = 1e-6f;
    check(p, {300});
    p.rotary_dim = 32, p.interleaved = true;
    check(p, {10});
    p.rotary_dim = 0, p.has_alibi = true, p.clip = 0.5f, p.has_norms = false, p.softcap = 0.f;
    check(p, {200});
  }
}

TEST_P(CachedAttentionGpu, TokensOfABlockSeeEachOtherInEveryKernel) {
  for (const int head_dim : {64, 80, 96, 112, 128, 256}) {
    for (const DataType dtype : {DataType::kHalf, DataType::kBFloat16}) {
      for (const int tokens : {2, 3, 7, 15, 16, 65, 130}) {
        AttentionProblem p = problem(tokens, 8, 2, head_dim, 333);
        p.dtype = dtype;
        const int64_t first = 100, last = first + tokens - 1;
        for (const int window : {0, 33}) {
          p.window = window;
          check(p, {first}, true, ends_of(p, {{first, last}}));
          check(p, {first}, true, ends_of(p, {{3, 50}, {first + tokens / 3, last - tokens / 3}}));
        }
      }
    }
  }
}

TEST_P(CachedAttentionGpu, ATextWithATableOfEndsIsCausal) {
  for (const int tokens : {1, 4, 40, 130}) {
    for (const int64_t position : {0, 64, 200}) {
      AttentionProblem p = problem(tokens, 8, 2, 256, 333);
      check(p, {position}, true, ends_of(p, {}));
      p.window = 20;
      check(p, {position}, true, ends_of(p, {{10, 40}}));  // a block that was written before
    }
  }
}

// As Gemma 3 has them: blocks of 256 tokens, which begin anywhere in a tile of queries, and a window.
TEST_P(CachedAttentionGpu, BlocksBeginAndEndAnywhereInATile) {
  for (const int head_dim : {128, 256}) {
    for (const int64_t first : {1, 15, 63, 64, 100, 127}) {
      AttentionProblem p = problem(600, 4, 2, head_dim, 700);
      for (const int window : {0, 200}) {
        p.window = window;
        check(p, {50}, true, ends_of(p, {{50 + first, 50 + first + 255}, {50 + first + 258, 649}}));
      }
    }
  }
}

TEST_P(CachedAttentionGpu, SequencesShareATableOfEnds) {
  check(problem(20, 8, 4, 128, 300), {0, 280, 17}, true, ends_of(problem(20, 8, 4, 128, 300), {{3, 16}, {18, 19}}));
  AttentionProblem p = problem(5, 8, 4, 256, 300);
  p.window = 3;
  check(p, {0, 295, 2}, true, ends_of(p, {{2, 4}}));
}

TEST_P(CachedAttentionGpu, EndsLeadNeitherBeforeATokenNorBehindTheLastNewOne) {
  for (const int tokens : {1, 3, 10, 40}) {
    AttentionProblem p = problem(tokens, 8, 2, 256, 100);
    std::vector<int64_t> ends = ends_of(p, {});
    for (size_t slot = 0; slot < ends.size(); ++slot) ends[slot] = slot < 55 ? -5 : int64_t{1} << 40;
    check(p, {50}, true, ends);
    check(p, {100 - tokens}, true, ends);
  }
}

TEST_P(CachedAttentionGpu, AnyNumberOfSplitsOfABlockGivesTheSame) {
  for (const int splits : {1, 2, 3, 7, 64}) {
    for (const int tokens : {2, 12}) {
      AttentionProblem p = problem(tokens, 8, 2, 128, 1000);
      p.has_visible_end = true;
      AttentionConfig config = choose_config(p, device_);
      config.splits = splits;
      config.workspace_bytes = size_t{1} << 23;
      for (const int64_t position : {0, 100, 988}) {
        expect_correct<__half>(p, {position}, config, true, ends_of(p, {{position, position + tokens - 1}}));
      }
    }
  }
}

TEST_P(CachedAttentionGpu, ThePastIsCopiedWhereItIsOtherMemory) {
  check(problem(1, 8, 2, 64, 200), {100}, false);
  check(problem(40, 8, 2, 64, 200), {100}, false);
}

TEST_P(CachedAttentionGpu, AnyNumberOfSplitsGivesTheSame) {
  for (const int splits : {1, 2, 3, 7, 64}) {
    AttentionProblem p = problem(1, 8, 2, 128, 1000);
    AttentionConfig config = choose_config(p, device_);
    config.splits = splits;
    config.workspace_bytes = size_t{1} << 22;
    for (const int64_t position : {0, 100, 999}) expect_correct<__half>(p, {position}, config, true);
  }
}

TEST_P(CachedAttentionGpu, RowsOfZerosHaveTheScaleZero) {
  AttentionProblem p = problem(1, 8, 2, 64, 200);
  p.clip = 1e-30f;  // which rounds to zero
  check(p, {100});
  p.tokens = 40;
  check(p, {100});
}

TEST_P(CachedAttentionGpu, RefusesWhatItCannotTake) {
  AttentionProblem p = problem(1, 8, 2, 64, 200);
  AttentionTensors tensors = {};
  EXPECT_EQ(launch_cached_attention(p, choose_config(p, device_), tensors, nullptr), cudaErrorInvalidValue);
  if (p.cache_type == CacheType::kInt8) {
    const DeviceArray<uint8_t> memory(size_t{1} << 20);
    void* const any = memory.get();
    tensors = {any, static_cast<const int64_t*>(any), any, any, nullptr, nullptr, nullptr, any, any, any, any, any,
               any};
    EXPECT_EQ(launch_cached_attention(p, choose_config(p, device_), tensors, nullptr), cudaErrorInvalidValue)
        << "scales are missing";
  }
  p.has_visible_end = true;
  EXPECT_EQ(check_validity(p), nullptr);
  p.has_alibi = true;
  EXPECT_NE(check_validity(p), nullptr);
  p.has_alibi = p.has_visible_end = false;
  p.head_dim = 72;
  EXPECT_NE(check_validity(p), nullptr);
  p.head_dim = 64, p.kv_heads = 3;
  EXPECT_NE(check_validity(p), nullptr);
}

INSTANTIATE_TEST_SUITE_P(Caches, CachedAttentionGpu, testing::Values(CacheType::kAsActivations, CacheType::kInt8),
                         [](const testing::TestParamInfo<CacheType>& info) {
                           return info.param == CacheType::kInt8 ? "Int8" : "AsActivations";
                         });

}  // namespace
}  // namespace awq2trt
