// See tables.h.
#include "session/tables.h"

#include "awq2trt/awq2trt.hpp"
#include "session/attended_images.h"
#include "session/rotary_tables.h"
#include "session/visible_ends.h"

namespace awq2trt {
namespace detail {

std::shared_ptr<const Tables> DecoderTables::of(const Prompt& prompt) const {
  if (prompt.images.empty()) return text_;
  auto tables = std::make_shared<Tables>(*text_);
  place(prompt, tables.get());
  return tables;
}

std::unique_ptr<DecoderTables> tables_of(const Manifest& manifest, const Contract& contract, const std::string& where) {
  if (contract.tables.empty()) return nullptr;
  if (manifest.vision) {
    const TableContract* const images = contract.table(kAttendedImages);
    if (images != nullptr) return std::make_unique<AttendedImages>(*images, contract.capacity);
    if (contract.table(kVisibleEnd) != nullptr) return std::make_unique<VisibleEnds>(contract.capacity);
    if (manifest.vision->rope) return std::make_unique<RotaryTables>(*manifest.vision->rope, contract.capacity);
  }
  throw Error(ErrorCode::kUnsupported, "its decoder reads tables, and the manifest does not say what is in them", where,
              "make it again with `awq2trt build`.");
}

}  // namespace detail
}  // namespace awq2trt
