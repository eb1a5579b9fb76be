// How far scores are off, by hand; test_golden.py has the golden calls of a model.
#include "session/golden.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace awq2trt {
namespace {

TEST(RelativeError, IsTheNormOfTheDifferenceOverTheSpread) {
  EXPECT_EQ(relative_error({1, 2, 3}, {1, 2, 3}), 0.0);
  // Around the mean of 2, the norm is the square root of 2; the difference's norm is 5.
  EXPECT_DOUBLE_EQ(relative_error({4, 2, 7}, {1, 2, 3}), 5.0 / std::sqrt(2.0));
  EXPECT_TRUE(std::isnan(relative_error({1, std::nanf(""), 3}, {1, 2, 3})));
  EXPECT_GT(relative_error({1, 1}, {2, 2}), 1e100);  // nothing to compare with
}

}  // namespace
}  // namespace awq2trt
