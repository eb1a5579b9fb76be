// See stored_weights.h. Numbers of fields are those of onnx.proto.
#include "ort/stored_weights.h"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <utility>

namespace awq2trt {
namespace ort {
namespace {

constexpr uint64_t kMostOffset = uint64_t{1} << 48;
constexpr uint64_t kExternal = 1;  // TensorProto.DataLocation

// Takes a number of seven bits a byte off the front; false if it does not end.
bool take_number(std::string_view* rest, uint64_t* to) {
  constexpr int kBits = 7, kMostBits = 63;
  *to = 0;
  for (int shift = 0; shift <= kMostBits && !rest->empty(); shift += kBits) {
    const auto byte = static_cast<uint8_t>(rest->front());
    rest->remove_prefix(1);
    *to |= uint64_t{byte & 0x7fu} << shift;
    if (byte < 0x80) return true;
  }
  return false;
}

// A message of protocol buffers, field by field.
class Message {
 public:
  explicit Message(std::string_view rest) : rest_(rest) {}

  uint64_t field = 0;
  uint64_t number = 0;     // of a field that is one
  std::string_view bytes;  // of a field that has them
  bool has_bytes = false;  // whether it is such a field

  // Goes to the next field; false at the end, and where the message is damaged.
  bool next() {
    if (rest_.empty()) return false;
    damaged_ = !take_field();
    return !damaged_;
  }
  bool damaged() const { return damaged_; }

 private:
  enum Kind : uint64_t { kVarint = 0, kI64 = 1, kLen = 2, kI32 = 5, kKinds = 8 };

  bool take_field() {
    uint64_t tag = 0;
    if (!take_number(&rest_, &tag)) return false;
    field = tag / kKinds;
    has_bytes = tag % kKinds == kLen;
    number = 0, bytes = {};
    switch (tag % kKinds) {
      case kVarint:
        return take_number(&rest_, &number);
      case kI64:
        return take_bytes(sizeof(uint64_t));
      case kLen:
        return take_number(&rest_, &number) && take_bytes(number);
      case kI32:
        return take_bytes(sizeof(uint32_t));
      default:
        return false;
    }
  }
  bool take_bytes(uint64_t count) {
    if (count > rest_.size()) return false;
    bytes = rest_.substr(0, count);
    rest_.remove_prefix(count);
    return true;
  }

  std::string_view rest_;
  bool damaged_ = false;
};

// What so many elements of a type take; 0 for a type that is not known here.
uint64_t bytes_of(uint64_t type, uint64_t elements) {
  switch (static_cast<abi::ElementType>(type)) {
    case abi::ElementType::kInt4:  // two in a byte
      return (elements + 1) / 2;
    case abi::ElementType::kUint8:
    case abi::ElementType::kInt8:
      return elements;
    case abi::ElementType::kFloat16:
    case abi::ElementType::kBFloat16:
      return 2 * elements;
    case abi::ElementType::kFloat:
      return 4 * elements;
    default:
      return 0;
  }
}

// Digits alone; the greatest number for anything else.
uint64_t parse_number(std::string_view text) {
  constexpr size_t kMostDigits = 18;
  const bool digits = std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
  if (text.empty() || text.size() > kMostDigits || !digits) return std::numeric_limits<uint64_t>::max();
  return std::strtoull(std::string(text).c_str(), nullptr, 10);
}

// A StringStringEntryProto.
std::pair<std::string_view, std::string_view> read_entry(std::string_view bytes) {
  std::pair<std::string_view, std::string_view> entry;
  for (Message message(bytes); message.next();) {
    if (message.field == 1) entry.first = message.bytes;
    if (message.field == 2) entry.second = message.bytes;
  }
  return entry;
}

// The axes of a tensor, and how many elements they make; 0 for what no tensor has.
struct Shape {
  std::vector<int64_t> axes;
  uint64_t elements = 1;

  void add(uint64_t size) {
    constexpr uint64_t kMost = uint64_t{1} << 31;
    elements = size > 0 && size <= kMost && elements <= kMost ? elements * size : 0;
    axes.push_back(static_cast<int64_t>(size));
  }
  // Several in one field.
  void add_packed(std::string_view bytes) {
    for (uint64_t size = 0; !bytes.empty(); add(size)) {
      if (!take_number(&bytes, &size)) size = 0;
    }
  }
};

// Whether a TensorProto is a weight that lies beside the model; `weight` is what it says.
bool read_tensor(std::string_view bytes, StoredWeight* weight) {
  enum Field : uint64_t { kDims = 1, kDataType = 2, kName = 8, kExternalData = 13, kDataLocation = 14 };
  uint64_t type = 0, location = 0;
  Shape shape;
  Message message(bytes);
  while (message.next()) {
    if (message.field == kDims) message.has_bytes ? shape.add_packed(message.bytes) : shape.add(message.number);
    if (message.field == kDataType) type = message.number;
    if (message.field == kName) weight->name = message.bytes;
    if (message.field == kDataLocation) location = message.number;
    if (message.field == kExternalData) {
      const auto [key, value] = read_entry(message.bytes);
      if (key == "location") weight->file = value;
      if (key == "offset") weight->offset = parse_number(value);
      if (key == "length") weight->bytes = parse_number(value);
    }
  }
  weight->type = static_cast<abi::ElementType>(type);
  weight->shape = std::move(shape.axes);
  const bool plain = !message.damaged() && location == kExternal && !weight->name.empty();
  const bool beside = !weight->file.empty() && weight->file.find('/') == std::string::npos;
  const bool sized = weight->bytes > 0 && weight->bytes == bytes_of(type, shape.elements);
  return plain && beside && sized && weight->offset <= kMostOffset;
}

}  // namespace

std::vector<StoredWeight> find_stored_weights(std::string_view model, uint64_t least_bytes) {
  constexpr uint64_t kGraph = 7, kInitializer = 5;  // of a ModelProto, and of its GraphProto
  std::vector<StoredWeight> weights;
  Message whole(model);
  while (whole.next()) {
    if (whole.field != kGraph) continue;
    Message graph(whole.bytes);
    while (graph.next()) {
      StoredWeight weight{};
      if (graph.field != kInitializer || !read_tensor(graph.bytes, &weight)) continue;
      if (weight.bytes >= least_bytes) weights.push_back(std::move(weight));
    }
    if (graph.damaged()) return {};
  }
  if (whole.damaged()) return {};
  return weights;
}

}  // namespace ort
}  // namespace awq2trt
