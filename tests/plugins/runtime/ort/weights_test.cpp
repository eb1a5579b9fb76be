// Weights of an ONNX file (plugins/runtime/ort/stored_weights.cpp), written here byte by byte, and their way to the
// device (device_weights.cpp), the host in its place.
#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>
#include <numeric>

#include "awq2trt/awq2trt.hpp"
#include "on_host.h"
#include "ort/device_weights.h"
#include "ort/stored_weights.h"

namespace awq2trt {
namespace ort {
namespace {

std::string varint(uint64_t number) {
  std::string bytes;
  for (; number >= 0x80; number >>= 7) bytes += static_cast<char>(0x80 | (number & 0x7f));
  return bytes + static_cast<char>(number);
}
std::string number_field(uint64_t field, uint64_t number) { return varint(field << 3) + varint(number); }
std::string bytes_field(uint64_t field, const std::string& bytes) {
  return varint(field << 3 | 2) + varint(bytes.size()) + bytes;
}
std::string entry(const std::string& key, const std::string& value) {
  return bytes_field(13, bytes_field(1, key) + bytes_field(2, value));
}
std::string place(const std::string& file, const std::string& offset, const std::string& length) {
  return number_field(14, 1) + entry("location", file) + entry("offset", offset) + entry("length", length);
}
// fp16, [2, 3]
const std::string kShape = number_field(1, 2) + number_field(1, 3) + number_field(2, 10);
const std::string kName = bytes_field(8, "w");

std::string model_of(const std::string& tensor) {
  const std::string version = number_field(1, 10);
  const std::string node = bytes_field(1, bytes_field(4, "MatMul"));
  return version + bytes_field(7, node + bytes_field(5, tensor) + bytes_field(2, "graph")) + bytes_field(8, "opset");
}

TEST(StoredWeights, SayWhereTheyLie) {
  const std::vector<StoredWeight> found = find_stored_weights(model_of(kName + kShape + place("data", "64", "12")), 12);
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0].name, "w");
  EXPECT_EQ(found[0].type, abi::ElementType::kFloat16);
  EXPECT_EQ(found[0].shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(found[0].file, "data");
  EXPECT_EQ(found[0].offset, 64u);
  EXPECT_EQ(found[0].bytes, 12u);
}

TEST(StoredWeights, MayHaveTheirAxesInOneField) {
  const std::string packed = bytes_field(1, varint(2) + varint(300)) + number_field(2, 2);
  const std::vector<StoredWeight> found = find_stored_weights(model_of(kName + packed + place("data", "0", "600")), 1);
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0].shape, (std::vector<int64_t>{2, 300}));
}

TEST(StoredWeights, OfFourBitsHaveTwoInAByte) {
  const std::string shape = number_field(1, 3) + number_field(1, 5) + number_field(2, 22);
  EXPECT_EQ(find_stored_weights(model_of(kName + shape + place("data", "0", "8")), 1).size(), 1u);
  EXPECT_TRUE(find_stored_weights(model_of(kName + shape + place("data", "0", "15")), 1).empty());
}

TEST(StoredWeights, OfOtherKindsAreLeftToOnnxRuntime) {
  const std::string here = place("data", "0", "12");
  const std::string one_axis_of_none = number_field(1, 0) + number_field(2, 10);
  const std::string huge = number_field(1, uint64_t{1} << 31) + number_field(1, uint64_t{1} << 31) +
                           number_field(1, uint64_t{1} << 31) + number_field(2, 10);
  for (const std::string& tensor : {
           kName + kShape,                                // its numbers are in the file
           kName + kShape + entry("location", "data"),    // not marked as external
           kName + kShape + place("data", "0", "11"),     // not what its shape takes
           kName + kShape + place("../data", "0", "12"),  // elsewhere
           kName + kShape + place("", "0", "12"),         //
           kName + kShape + place("data", "-1", "12"),    //
           kName + kShape + place("data", "0x0", "12"),   //
           kName + kShape + place("data", "999999999999999999", "12"),
           kName + kShape + place("data", "0", ""),                  //
           kShape + here,                                            // no name
           kName + number_field(1, 12) + number_field(2, 9) + here,  // bool
           kName + one_axis_of_none + here,                          //
           kName + huge + here,                                      //
           kName + bytes_field(1, "\xff") + number_field(2, 10) + here,
       }) {
    EXPECT_TRUE(find_stored_weights(model_of(tensor), 1).empty());
  }
  EXPECT_TRUE(find_stored_weights(model_of(kName + kShape + here), 13).empty());
}

TEST(StoredWeights, OfADamagedFileAreNone) {
  const std::string model = model_of(kName + kShape + place("data", "64", "12"));
  ASSERT_EQ(find_stored_weights(model, 1).size(), 1u);
  for (size_t size = 0; size < model.size(); ++size) {
    EXPECT_LE(find_stored_weights(model.substr(0, size), 1).size(), size + 7 < model.size() ? 0u : 1u) << size;
  }
  for (size_t at = 0; at < model.size(); ++at) {
    std::string spoilt = model;
    spoilt[at] = '\xff';
    find_stored_weights(spoilt, 1);  // whatever it says, nothing is read beyond the end
  }
}

class DeviceWeightsTest : public ::testing::Test {
 protected:
  DeviceWeightsTest() : content_(kBytes, '\0') {
    for (size_t i = 0; i < kBytes; ++i) content_[i] = static_cast<char>(i * 2654435761u >> 13);
    std::ofstream(path(), std::ios::binary).write(content_.data(), static_cast<std::streamsize>(kBytes));
    memory_.use_on_this_thread();
  }
  ~DeviceWeightsTest() override { std::remove(path().c_str()); }

  static std::string path() { return ::testing::TempDir() + "/" + kFile; }
  static StoredWeight weight(uint64_t offset, uint64_t bytes) {
    return {
        "w" + std::to_string(offset), abi::ElementType::kUint8, {static_cast<int64_t>(bytes)}, kFile, offset, bytes};
  }

  static constexpr size_t kBytes = (size_t{70} << 20) + 5;  // more than one half of the host's memory
  static constexpr char kFile[] = "device_weights_test.data";
  std::string content_;
  size_t live_ = 0;
  on_host::HostMemory memory_{&live_};
};

TEST_F(DeviceWeightsTest, AreWhatIsInTheFile) {
  {
    const std::vector<StoredWeight> stored = {weight(kBytes - 7, 7), weight(3, kBytes - 3), weight(1, 300)};
    const DeviceWeights weights(&memory_, ::testing::TempDir(), stored);
    ASSERT_EQ(weights.all().size(), stored.size());
    for (size_t i = 0; i < stored.size(); ++i) {
      const DeviceWeight& placed = weights.all()[i];
      EXPECT_EQ(placed.name, stored[i].name);
      EXPECT_EQ(placed.shape, stored[i].shape);
      EXPECT_EQ(placed.bytes, stored[i].bytes);
      EXPECT_EQ(std::memcmp(placed.data, content_.data() + stored[i].offset, placed.bytes), 0);
      EXPECT_EQ((static_cast<char*>(placed.data) - static_cast<char*>(weights.all()[0].data)) % 256, 0);
    }
    EXPECT_EQ(live_, 1u);
  }
  EXPECT_EQ(live_, 0u);
}

TEST_F(DeviceWeightsTest, OfFilesThatEndTooSoonAreAnError) {
  for (const StoredWeight& stored : {weight(kBytes - 6, 7), weight(kBytes + 1, 1)}) {
    try {
      const DeviceWeights weights(&memory_, ::testing::TempDir(), {weight(0, kBytes), stored});
      FAIL() << "no error";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kChangedFile);
    }
  }
  EXPECT_THROW(DeviceWeights(&memory_, ::testing::TempDir() + "/nowhere", {weight(0, 1)}), Error);
  EXPECT_EQ(live_, 0u);
}

TEST_F(DeviceWeightsTest, MayBeNone) {
  EXPECT_TRUE(DeviceWeights(&memory_, "nowhere", {}).all().empty());
  EXPECT_EQ(live_, 0u);
}

}  // namespace
}  // namespace ort
}  // namespace awq2trt
