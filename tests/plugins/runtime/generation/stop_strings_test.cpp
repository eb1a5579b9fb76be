// No part of a stop string is given, no matter into which pieces the text is cut; an exhaustive search is the oracle.
#include "generation/stop_strings.h"

#include <gtest/gtest.h>

#include <random>

#include "awq2trt/awq2trt.hpp"

namespace awq2trt {
namespace {

struct Given {
  std::string text;
  bool found;
  bool operator==(const Given& other) const { return text == other.text && found == other.found; }
};

// Everything that is given for a text in pieces of these lengths; the last piece is the rest.
Given push_all(const std::vector<std::string>& stops, const std::string& text, const std::vector<size_t>& lengths) {
  StopStrings strings(stops);
  Given given{"", false};
  size_t at = 0;
  for (const size_t length : lengths) {
    given.text += strings.push(std::string_view(text).substr(std::min(at, text.size()), length));
    at += length;
  }
  if (at < text.size()) given.text += strings.push(std::string_view(text).substr(at));
  given.found = strings.found();
  if (!given.found) given.text += strings.finish();
  return given;
}

// As stop_strings.h defines it: the first end, and the longest of several strings that end there.
Given searched(const std::vector<std::string>& stops, const std::string& text) {
  for (size_t end = 1; end <= text.size(); ++end) {
    size_t longest = 0;
    for (const std::string& stop : stops) {
      if (stop.size() <= end && text.compare(end - stop.size(), stop.size(), stop) == 0) {
        longest = std::max(longest, stop.size());
      }
    }
    if (longest > 0) return {text.substr(0, end - longest), true};
  }
  return {text, false};
}

TEST(StopStrings, GivesNothingOfAStopString) {
  StopStrings strings({"\nUser:"});
  EXPECT_EQ(strings.push("yes\n"), "yes");
  EXPECT_EQ(strings.push("Us"), "");
  EXPECT_EQ(strings.push("e\nUse"), "\nUse");
  EXPECT_EQ(strings.push("r: no"), "");
  EXPECT_TRUE(strings.found());
  EXPECT_EQ(strings.push("more"), "");
}

TEST(StopStrings, GivesAtTheEndWhatWasHeldBack) {
  StopStrings strings({"END"});
  EXPECT_EQ(strings.push("the EN"), "the ");
  EXPECT_EQ(strings.finish(), "EN");
  EXPECT_EQ(strings.finish(), "");
}

TEST(StopStrings, OfSeveralThatEndTogetherTheLongestCounts) {
  EXPECT_EQ(push_all({"b", "ab", "xx"}, "caab", {}), (Given{"ca", true}));
  EXPECT_EQ(push_all({"abcd", "bc"}, "abcd", {4}), (Given{"a", true}));
  EXPECT_EQ(push_all({"abcd", "bc"}, "abcd", {1, 1, 1, 1}), (Given{"a", true}));
}

TEST(StopStrings, WithoutAnyEverythingIsCertain) {
  StopStrings strings({});
  EXPECT_EQ(strings.push("abc"), "abc");
  EXPECT_EQ(strings.finish(), "");
}

TEST(StopStrings, MayHaveCharactersOfSeveralBytes) {
  EXPECT_EQ(push_all({"\u00e9"}, "at \u00e8 at \u00e9!", {5, 1, 5}), (Given{"at \u00e8 at ", true}));
  EXPECT_EQ(push_all({"\u3042\u3044"}, "\u3042\u3042\u3044", {3, 3}), (Given{"\u3042", true}));
}

TEST(StopStrings, AreFoundInAnyPieces) {
  std::mt19937 random(7);
  const auto draw = [&](size_t most) { return random() % (most + 1); };
  const auto text = [&](size_t least, size_t most) {
    std::string drawn;
    for (size_t i = least + draw(most - least); i > 0; --i) drawn += static_cast<char>('a' + draw(1));
    return drawn;
  };
  for (int i = 0; i < 20000; ++i) {
    std::vector<std::string> stops;
    for (size_t count = draw(3); count > 0; --count) stops.push_back(text(1, 6));
    const std::string whole = text(0, 14);
    std::vector<size_t> lengths;
    for (int piece = 0; piece < 8; ++piece) lengths.push_back(draw(3));
    EXPECT_EQ(push_all(stops, whole, lengths), searched(stops, whole)) << whole;
  }
}

TEST(StopStrings, RefusesWhatCannotBe) {
  EXPECT_THROW(StopStrings({"a", ""}), Error);
  EXPECT_THROW(StopStrings({"\xc3"}), Error);
}

}  // namespace
}  // namespace awq2trt
