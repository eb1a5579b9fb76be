// Tokens with images among them: what is kept, what is appended, and what counts as the same.
#include "session/prompt.h"

#include <gtest/gtest.h>

namespace awq2trt {
namespace detail {
namespace {

constexpr int32_t kImage = 9;
constexpr size_t kPieces = 3, kHidden = 2;

Pieces pieces(float first) {
  std::vector<float> rows(kPieces * kHidden);
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = first + static_cast<float>(i);
  return std::make_shared<const SeenImage>(SeenImage{rows, kPieces, {}, {}});
}

// 1, an image, 2, an image, 3.
Prompt two_images(const Pieces& one, const Pieces& other) {
  return {{1, kImage, kImage, kImage, 2, kImage, kImage, kImage, 3}, {{1, kPieces, one}, {5, kPieces, other}}};
}

TEST(Prompt, KnowsTheRowOfEachToken) {
  const Prompt prompt = two_images(pieces(10), pieces(20));
  EXPECT_EQ(prompt.image_tokens(), 2 * kPieces);
  for (const size_t text : {0, 4, 8}) EXPECT_EQ(prompt.row_of(text, kHidden), nullptr);
  EXPECT_EQ(*prompt.row_of(1, kHidden), 10.0f);
  EXPECT_EQ(*prompt.row_of(3, kHidden), 14.0f);
  EXPECT_EQ(*prompt.row_of(7, kHidden), 24.0f);
  EXPECT_EQ(Prompt().row_of(0, kHidden), nullptr);
}

TEST(Prompt, KnowsWhereImageTokensStandSideBySide) {
  Prompt prompt = two_images(pieces(10), pieces(20));
  EXPECT_EQ(prompt.longest_row(), kPieces);
  prompt.append({{kImage, kImage, kImage}, {{0, kPieces, pieces(30)}}});  // behind a text
  EXPECT_EQ(prompt.longest_row(), kPieces);
  prompt.append({{kImage, kImage, kImage, 4}, {{0, kPieces, pieces(40)}}});  // behind the third image
  EXPECT_EQ(prompt.longest_row(), 2 * kPieces);
  const std::vector<size_t> expected = {0, 1, 1, 1, 4, 5, 5, 5, 8, 9, 9, 9, 9, 9, 9, 15, 16};
  for (size_t place = 0; place < expected.size(); ++place) EXPECT_EQ(prompt.uncut(place), expected[place]) << place;
  EXPECT_EQ(Prompt().uncut(0), 0u);
  EXPECT_EQ(Prompt().longest_row(), 0u);
}

TEST(Prompt, KeepsAPartOfAnImage) {
  Prompt prompt = two_images(pieces(10), pieces(20));
  prompt.keep(6);
  EXPECT_EQ(prompt.image_tokens(), kPieces + 1);
  EXPECT_EQ(*prompt.row_of(5, kHidden), 20.0f);
  prompt.tokens.push_back(kImage);  // of no image
  EXPECT_EQ(prompt.row_of(6, kHidden), nullptr);
  prompt.keep(5);
  EXPECT_EQ(prompt.images.size(), 1u);
  prompt.keep(0);
  EXPECT_EQ(prompt.image_tokens(), 0u);
}

TEST(Prompt, TellsImagesApart) {
  const Pieces one = pieces(10), other = pieces(10);  // equal numbers are no proof
  const Prompt prompt = two_images(one, other);
  EXPECT_EQ(prompt.same_tokens(0, two_images(one, other)), 9u);
  EXPECT_EQ(prompt.same_tokens(0, two_images(one, one)), 5u);
  EXPECT_EQ(prompt.same_tokens(0, two_images(other, one)), 1u);
  EXPECT_EQ(prompt.same_tokens(4, {{2, kImage, kImage, kImage, 7}, {{1, kPieces, other}}}), 4u);
  EXPECT_EQ(prompt.same_tokens(9, prompt), 0u);
}

TEST(Prompt, AppendsWhatFollows) {
  const Pieces one = pieces(10), other = pieces(20);
  const Prompt whole = two_images(one, other);
  for (size_t kept = 0; kept <= whole.size(); ++kept) {
    Prompt prompt = {{7, 7}, {}};
    prompt.append(whole);
    prompt.keep(2 + kept);
    EXPECT_EQ(prompt.same_tokens(2, whole), kept);
    prompt.append(whole, kept);
    EXPECT_EQ(prompt.size(), 2 + whole.size());
    EXPECT_EQ(prompt.same_tokens(2, whole), whole.size()) << kept;
    EXPECT_EQ(prompt.images.size(), 2u);
    EXPECT_EQ(prompt.image_tokens(), 2 * kPieces);
  }
}

}  // namespace
}  // namespace detail
}  // namespace awq2trt
