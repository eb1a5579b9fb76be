// A kit's model.engine.state, as its script writes it.
#include "artifact/kit.h"

#include <gtest/gtest.h>

#include "awq2trt/awq2trt.hpp"

namespace awq2trt {
namespace {

const std::string kOne(64, '1'), kAll = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

TEST(EngineState, IsRead) {
  const EngineState state = parse_engine_state("kit=" + kAll + "\ntensorrt=101600\nsha256=" + kOne + "\n", "x");
  EXPECT_EQ(state.kit, kAll);
  EXPECT_EQ(state.sha256, kOne);
  EXPECT_EQ(state.tensorrt, (Version{10, 16, 0}));
}

TEST(EngineState, IsRefusedWhereItIsNone) {
  for (const std::string& text :
       {std::string(), std::string("\n\n="), "kit=" + kAll + "\nsha256=" + kOne, "kit=" + kAll + "\ntensorrt=101600\n",
        "kit=1\ntensorrt=101600\nsha256=" + kOne, "kit=" + kAll + "\ntensorrt=10.16\nsha256=" + kOne,
        "kit=" + kAll + "\ntensorrt=99999999999999999999\nsha256=" + kOne,
        "kit=" + kAll + "\ntensorrt=\nsha256=" + kOne, "kit=" + kAll + "\ntensorrt=101600\nsha256=G" + kOne}) {
    try {
      parse_engine_state(text, "model.engine.state");
      ADD_FAILURE() << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kMalformed);
      EXPECT_NE(std::string(error.what()).find("./finish.sh --rebuild"), std::string::npos);
    }
  }
}

}  // namespace
}  // namespace awq2trt
