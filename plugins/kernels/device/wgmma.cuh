// Hopper's products of a warpgroup: wgmma of 64 weight rows by 128 or 256 tokens, which four warps start together and
// wait for later. In: a lane's registers of A, and where B is in shared memory. Out: fp32 sums in registers.
//
// Warp w of the four has rows 16w to 16w + 15. Its lanes hold A as for mma m16n8k16 (tensor_core.cuh), and the sums,
// too: sums 4j to 4j + 3 are of tokens 8j to 8j + 7. B is 64 k of every token, as bulk_copy.cuh brings it.
//
// For compute capability 9.0 alone ("sm_90a"). PTX ISA, "Asynchronous warpgroup level matrix instructions".
#pragma once

#include <cstdint>
#include <type_traits>

#include <cuda_fp16.h>

namespace awq2trt {

constexpr int kWarpgroupSize = 128;
constexpr int kProductRows = 64;  // weight rows of a product
constexpr int kProductK = 16;     // k of a product

// Describes B at an address in shared memory: a row of 128 bytes for each token, its 16-byte pieces swizzled within 8
// rows (PTX ISA, "Matrix descriptor"). 16 k further, the number is 2 higher.
__device__ __forceinline__ uint64_t tokens_operand(uint32_t address) {
  constexpr uint64_t kSwizzled128 = uint64_t{1} << 62, kBytesOf8Rows = 1024;
  constexpr uint64_t kUnused = 1;  // the distance of pieces, which swizzled rows do not need
  return uint64_t{(address & 0x3ffff) >> 4} | kUnused << 16 | kBytesOf8Rows >> 4 << 32 | kSwizzled128;
}

// Describes B that lies by rows of k: 64 columns of a row are 128 bytes, swizzled within 8 rows, and the next 64
// columns of all rows are `next` bytes further. 16 k further, the number is 128 higher.
__device__ __forceinline__ uint64_t columns_operand(uint32_t address, int next) {
  constexpr uint64_t kSwizzled128 = uint64_t{1} << 62, kBytesOf8Rows = 1024;
  return uint64_t{(address & 0x3ffff) >> 4} | static_cast<uint64_t>(next >> 4) << 16 | kBytesOf8Rows >> 4 << 32 |
         kSwizzled128;
}

// Orders what was written to registers before the products that follow.
__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Ends a group of products.
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most `kPending` of the youngest groups are still under way.
template <int kPending>
__device__ __forceinline__ void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps what is computed from sums behind the wait for them, and what is computed for them before the products.
template <int kSums>
__device__ __forceinline__ void settle(float (&sums)[kSums]) {
#pragma unroll
  for (int i = 0; i < kSums; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}

// The instruction names every register of the sums. clang-format would spread these lists over many lines.
// clang-format off
#define AWQ2TRT_32_PLACES \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define AWQ2TRT_64_PLACES AWQ2TRT_32_PLACES "," \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
  "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define AWQ2TRT_128_PLACES AWQ2TRT_64_PLACES "," \
  "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79," \
  "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95," \
  "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111," \
  "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define AWQ2TRT_8_SUMS(i) \
  "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3]), \
  "+f"(sums[i + 4]), "+f"(sums[i + 5]), "+f"(sums[i + 6]), "+f"(sums[i + 7])
#define AWQ2TRT_32_SUMS(i) \
  AWQ2TRT_8_SUMS(i), AWQ2TRT_8_SUMS(i + 8), AWQ2TRT_8_SUMS(i + 16), AWQ2TRT_8_SUMS(i + 24)
#define AWQ2TRT_64_SUMS(i) AWQ2TRT_32_SUMS(i), AWQ2TRT_32_SUMS(i + 32)
#define AWQ2TRT_128_SUMS(i) AWQ2TRT_64_SUMS(i), AWQ2TRT_64_SUMS(i + 64)
// `condition` is the place of `adds`; `operands` names the places of A and B, and how they lie.
#define AWQ2TRT_PRODUCT(columns, type, places, operands, condition) \
  "{ .reg .pred adds; setp.ne.b32 adds, " condition ", 0; wgmma.mma_async.sync.aligned.m64n" columns "k16.f32." type "." type \
  " {" places "}, " operands "; }"
#define AWQ2TRT_FROM_REGISTERS(columns, type, places, sums, operands, condition) \
  asm volatile(AWQ2TRT_PRODUCT(columns, type, places, operands, condition) \
               : sums : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(adds))
#define AWQ2TRT_128_TOKENS(type) \
  AWQ2TRT_FROM_REGISTERS("128", type, AWQ2TRT_64_PLACES, AWQ2TRT_64_SUMS(0), "{%64,%65,%66,%67}, %68, adds, 1, 1, 0", "%69")
#define AWQ2TRT_256_TOKENS(type) \
  AWQ2TRT_FROM_REGISTERS("256", type, AWQ2TRT_128_PLACES, AWQ2TRT_128_SUMS(0), "{%128,%129,%130,%131}, %132, adds, 1, 1, 0", "%133")
#define AWQ2TRT_64_CHANNELS(type) \
  AWQ2TRT_FROM_REGISTERS("64", type, AWQ2TRT_32_PLACES, AWQ2TRT_32_SUMS(0), "{%32,%33,%34,%35}, %36, adds, 1, 1, 1", "%37")
#define AWQ2TRT_128_CHANNELS(type) \
  AWQ2TRT_FROM_REGISTERS("128", type, AWQ2TRT_64_PLACES, AWQ2TRT_64_SUMS(0), "{%64,%65,%66,%67}, %68, adds, 1, 1, 1", "%69")
#define AWQ2TRT_128_SLOTS(type) \
  asm volatile(AWQ2TRT_PRODUCT("128", type, AWQ2TRT_64_PLACES, "%64, %65, adds, 1, 1, 0, 0", "%66") \
               : AWQ2TRT_64_SUMS(0) : "l"(a), "l"(b), "r"(adds))
// clang-format on

// Starts sums = a * b, or sums += a * b if `adds` is not 0, for 64 rows, 16 k and 2 tokens for each of the sums.
// Neither `a` nor the sums may be touched until the product has been waited for.
template <typename T, int kSums>
__device__ __forceinline__ void start_product(float (&sums)[kSums], const uint32_t (&a)[4], uint64_t b, int adds) {
  static_assert(kSums == 64 || kSums == 128, "128 or 256 tokens");
  constexpr bool kIsHalf = std::is_same<T, __half>::value;
  if constexpr (kSums == 64 && kIsHalf) AWQ2TRT_128_TOKENS("f16");
  if constexpr (kSums == 64 && !kIsHalf) AWQ2TRT_128_TOKENS("bf16");
  if constexpr (kSums == 128 && kIsHalf) AWQ2TRT_256_TOKENS("f16");
  if constexpr (kSums == 128 && !kIsHalf) AWQ2TRT_256_TOKENS("bf16");
}

// The same for 128 columns with A in shared memory, too, where it lies as B does.
template <typename T>
__device__ __forceinline__ void start_product(float (&sums)[64], uint64_t a, uint64_t b, int adds) {
  if constexpr (std::is_same<T, __half>::value) {
    AWQ2TRT_128_SLOTS("f16");
  } else {
    AWQ2TRT_128_SLOTS("bf16");
  }
}

// Starts sums += a * b for 64 rows, 16 k and 64 or 128 columns, where B lies by rows of k: columns_operand().
template <typename T, int kSums>
__device__ __forceinline__ void start_product_by_rows(float (&sums)[kSums], const uint32_t (&a)[4], uint64_t b) {
  static_assert(kSums == 32 || kSums == 64, "64 or 128 columns");
  constexpr bool kIsHalf = std::is_same<T, __half>::value;
  constexpr int adds = 1;
  if constexpr (kSums == 32 && kIsHalf) AWQ2TRT_64_CHANNELS("f16");
  if constexpr (kSums == 32 && !kIsHalf) AWQ2TRT_64_CHANNELS("bf16");
  if constexpr (kSums == 64 && kIsHalf) AWQ2TRT_128_CHANNELS("f16");
  if constexpr (kSums == 64 && !kIsHalf) AWQ2TRT_128_CHANNELS("bf16");
}

#undef AWQ2TRT_32_PLACES
#undef AWQ2TRT_64_PLACES
#undef AWQ2TRT_128_PLACES
#undef AWQ2TRT_8_SUMS
#undef AWQ2TRT_32_SUMS
#undef AWQ2TRT_64_SUMS
#undef AWQ2TRT_128_SUMS
#undef AWQ2TRT_PRODUCT
#undef AWQ2TRT_FROM_REGISTERS
#undef AWQ2TRT_128_TOKENS
#undef AWQ2TRT_256_TOKENS
#undef AWQ2TRT_64_CHANNELS
#undef AWQ2TRT_128_CHANNELS
#undef AWQ2TRT_128_SLOTS

}  // namespace awq2trt
