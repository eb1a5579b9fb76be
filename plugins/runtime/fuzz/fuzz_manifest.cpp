// In: bytes, a manifest.json. For any bytes, the result is a manifest whose graph this library can run, or an Error.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "artifact/manifest.h"
#include "awq2trt/awq2trt.hpp"
#include "backend/contract.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const awq2trt::Manifest manifest =
        awq2trt::parse_manifest(std::string_view(reinterpret_cast<const char*>(data), size), "directory");
    for (const auto& [name, record] : manifest.files) {
      if (name.find("..") == 0 || name[0] == '/' || record.sha256.size() != 64) std::abort();
    }
    const awq2trt::Contract contract = awq2trt::read_contract(manifest.decoder, "directory");
    if (contract.caches.empty()) std::abort();
    for (const awq2trt::CachePair& pair : contract.caches) {
      if (contract.cache_bytes(pair, contract.capacity) == 0) std::abort();
    }
    if (manifest.vision) {
      const awq2trt::VisionContract seen = awq2trt::read_vision_contract(*manifest.vision, contract, "directory");
      if (seen.width == 0 || (seen.side == 0) == (seen.numbers == 0)) std::abort();
    }
  } catch (const awq2trt::Error&) {
  }
  return 0;
}
