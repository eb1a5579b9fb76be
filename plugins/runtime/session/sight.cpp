// See sight.h.
#include "session/sight.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <tuple>
#include <utility>

namespace awq2trt {
namespace detail {
namespace {

using nlohmann::ordered_json;

constexpr char kUser[] = "user";
constexpr char kQuestion[] = "question";
constexpr size_t kMarkerBytes = sizeof(kMarker) - 1;

std::string without_newlines(const std::string& text) {
  const size_t first = text.find_first_not_of('\n');
  return first == std::string::npos ? "" : text.substr(first, text.find_last_not_of('\n') + 1 - first);
}

// A message as a list of images and texts.
ordered_json in_parts(const Message& message) {
  ordered_json parts = ordered_json::array();
  const bool marked = count_markers(message.content) > 0;
  for (size_t begin = 0;;) {
    const size_t end = message.content.find(kMarker, begin);
    const std::string text = message.content.substr(begin, end == std::string::npos ? end : end - begin);
    const std::string spoken = marked ? without_newlines(text) : text;
    if (!spoken.empty()) parts.push_back({{"type", "text"}, {"text", spoken}});
    if (end == std::string::npos) break;
    parts.push_back({{"type", "image"}});
    begin = end + kMarkerBytes;
  }
  return {{"role", message.role}, {"content", parts}};
}

ordered_json as_text(const Message& message) { return {{"role", message.role}, {"content", message.content}}; }

// What a template makes of a message; nothing if it refuses it.
std::string rendered(const ChatTemplate& chat_template, const ordered_json& message) {
  std::string text;
  try {
    for (const RenderedPart& part : chat_template.render(ordered_json::array({message}), nullptr, {})) {
      text += part.text;
    }
  } catch (const Error&) {
    return "";
  }
  return text;
}

// Whether a template takes a message as a list of images and texts, as well or only. `place`: the text of the model's
// own image token, which it may write instead of a marker; empty if there is none.
bool takes_parts(const ChatTemplate* chat_template, const std::string& place) {
  if (chat_template == nullptr) return false;
  const std::string seen = rendered(*chat_template, in_parts({kUser, std::string(kMarker) + kQuestion}));
  const bool has_place = count_markers(seen) > 0 || seen.find(kBeforeImage) != std::string::npos ||
                         (!place.empty() && seen.find(place) != std::string::npos);
  if (has_place && seen.find(kQuestion) != std::string::npos) return true;
  return rendered(*chat_template, as_text({kUser, kQuestion})).find(kQuestion) == std::string::npos;
}

[[noreturn]] void refuse_count(size_t places, size_t images) {
  throw Error(ErrorCode::kBadArgument,
              "places for images: " + std::to_string(places) + "; images that wait for one: " + std::to_string(images),
              "Session",
              std::string("append_image() one image for every ") + kMarker +
                  " of a text, before the text; without any in messages, they come before the user's last.");
}

// Parts of a text between two of its bytes. The views are into `joined`, the text of all parts.
std::vector<TextPart> cut(const std::vector<TextPart>& parts, std::string_view joined, size_t begin, size_t end) {
  std::vector<TextPart> within;
  size_t at = 0;
  for (const TextPart& part : parts) {
    const size_t from = std::max(at, begin), to = std::min(at + part.text.size(), end);
    if (from < to) within.push_back({joined.substr(from, to - from), part.trusted});
    at += part.text.size();
  }
  return within;
}

using Between = std::vector<std::vector<TextPart>>;  // what is between images

// The first place of an image from `begin` on: where it is, and the text that is there; npos if there is none.
std::pair<size_t, std::string_view> find_place(std::string_view text, size_t begin,
                                               const std::vector<std::string_view>& places) {
  std::pair<size_t, std::string_view> first{std::string_view::npos, {}};
  for (const std::string_view place : places) first = std::min(first, {text.find(place, begin), place});
  return first;
}

Between between_places(const std::vector<TextPart>& text, std::string_view joined,
                       const std::vector<std::string_view>& places) {
  Between between;
  size_t begin = 0;
  for (auto [at, place] = find_place(joined, 0, places); at != std::string_view::npos;
       std::tie(at, place) = find_place(joined, begin, places)) {
    between.push_back(cut(text, joined, begin, at));
    begin = at + place.size();
  }
  between.push_back(cut(text, joined, begin, joined.size()));
  return between;
}

// The same with what is written for images, where a marker then stands for a piece; a model has such texts for all
// images or for none.
Between spelled(Between between, const std::vector<Pieces>& images) {
  if (images.empty() || images.front()->texts.empty()) return between;
  if (between.size() - 1 != images.size()) refuse_count(between.size() - 1, images.size());
  Between all = {between.front()};
  for (size_t i = 0; i < images.size(); ++i) {
    for (const std::string& text : images[i]->texts) {
      // Pieces of a tile are behind each text except for the last.
      all.back().push_back({text, true});
      if (&text != &images[i]->texts.back()) all.resize(all.size() + images[i]->run());
    }
    all.back().insert(all.back().end(), between[i + 1].begin(), between[i + 1].end());
  }
  return all;
}

}  // namespace

size_t count_markers(std::string_view text) {
  size_t count = 0;
  for (size_t at = text.find(kMarker); at != std::string_view::npos; at = text.find(kMarker, at + kMarkerBytes))
    ++count;
  return count;
}

std::vector<std::string_view> Sight::places() const {
  if (record_.kind == ImageKind::kBlocks) return {kMarker, kBeforeImage};
  return {kMarker};
}

std::string Sight::without_markers(std::string text) const {
  for (auto [at, place] = find_place(text, 0, places()); at != std::string::npos;
       std::tie(at, place) = find_place(text, 0, places())) {
    text.erase(at, place.size());
  }
  return text;
}

Sight::Sight(const VisionRecord& record, const VisionContract& contract, const ImageProcessor& processor,
             const Tokenizer& tokenizer, const ChatTemplate* chat_template)
    : record_(record),
      contract_(contract),
      processor_(processor),
      takes_parts_(takes_parts(chat_template, tokenizer.vocabulary().contains(record.image_token)
                                                  ? tokenizer.vocabulary().text(record.image_token)
                                                  : "")) {}

int64_t Sight::image_tokens(const Size& image) const {
  const Grid grid = processor_.grid(image);
  if (record_.patches) return grid.cells();
  if (!record_.tiles) return record_.tokens_per_image;
  if (record_.tiles->side_by_side) {
    return static_cast<int64_t>(mosaic_order(record_.tiles->side(), grid, image).size());
  }
  return static_cast<int64_t>(texts_around(grid).size() - 1) * contract_.pieces;
}

std::vector<std::string> Sight::texts(const Grid& grid) const {
  if (record_.kind == ImageKind::kBlocks) return {std::string("\n\n") + kBeforeImage, "<end_of_image>\n\n"};
  return record_.tiles && !record_.tiles->side_by_side ? texts_around(grid) : std::vector<std::string>();
}

size_t Sight::tokens_around(const Size& image, const Tokenizer& tokenizer) const {
  size_t count = 0;
  for (const std::string& text : texts(processor_.grid(image))) count += tokenizer.encode({{text, true}}, false).size();
  return count;
}

PreparedImage Sight::prepare(const ImageView& image) const {
  Pixels pixels = processor_.prepare(image);
  PreparedImage prepared{std::move(pixels.values), std::move(pixels.shape),
                         attended() ? contract_.pieces : image_tokens(image.size())};
  prepared.texts = texts(pixels.grid);
  if (const auto& patches = record_.patches) {
    prepared.grid = pixels.grid;
    add_places(patches->merge, &prepared);
    if (patches->window_size != 0) add_windows(patches->merge, patches->window_side(), &prepared);
  } else if (record_.tiles && record_.tiles->side_by_side) {
    prepared.order = mosaic_order(record_.tiles->side(), pixels.grid, image.size());
  }
  return prepared;
}

std::vector<Message> Sight::with_markers(std::vector<Message> messages, size_t images) const {
  size_t places = 0;
  for (const Message& message : messages) places += count_markers(message.content);
  const auto asked =
      std::find_if(messages.rbegin(), messages.rend(), [](const Message& message) { return message.role == kUser; });
  if (places == 0 && asked != messages.rend()) {
    std::string markers;
    for (size_t i = 0; i < images; ++i) markers += std::string(kMarker) + "\n";
    asked->content.insert(0, markers);
  } else if (places != images) {
    refuse_count(places, images);
  }
  return messages;
}

ordered_json Sight::in_template(const Message& message) const {
  return takes_parts_ ? in_parts(message) : as_text(message);
}

Prompt Sight::place(const std::vector<TextPart>& text, bool add_special_tokens, const Tokenizer& tokenizer,
                    const std::vector<Pieces>& images) const {
  const std::vector<int32_t> tokens = encode(text, add_special_tokens, tokenizer, images);
  size_t places = 0;  // of image tokens: of each image, or of each of its pieces
  for (const Pieces& image : images) places += image->texts.empty() ? 1 : image->count;
  const auto found = static_cast<size_t>(std::count(tokens.begin(), tokens.end(), record_.image_token));
  if (found != places) refuse_count(found, images.size());
  Prompt prompt;
  auto image = images.begin();
  size_t begin = 0;  // the next piece of the image
  for (auto at = tokens.begin(); at != tokens.end();) {
    if (*at != record_.image_token) {
      prompt.tokens.push_back(*at++);
      continue;
    }
    const size_t count = (*image)->run();
    prompt.images.push_back({prompt.tokens.size(), count, *image, begin});
    prompt.tokens.insert(prompt.tokens.end(), count, record_.image_token);
    at += (*image)->texts.empty() ? 1 : static_cast<std::ptrdiff_t>(count);
    begin += count;
    if (begin == (*image)->count) {
      ++image;
      begin = 0;
    }
  }
  return prompt;
}

Prompt Sight::place(const std::vector<int32_t>& tokens, const std::vector<Pieces>& images) const {
  Prompt prompt{tokens, {}};
  const auto is_image = [this](int32_t token) { return token == record_.image_token; };
  size_t found = 0, begin = 0;  // images, and pieces of the next one
  auto at = std::find_if(tokens.begin(), tokens.end(), is_image);
  while (at != tokens.end()) {
    // An image that is not there is told by the number of images.
    const auto row = std::find_if_not(at, tokens.end(), is_image) - at;
    const bool known = found < images.size();
    const auto pieces = known                             ? static_cast<std::ptrdiff_t>(images[found]->run())
                        : tokens_per_image() == kAnyCount ? row
                                                          : static_cast<std::ptrdiff_t>(tokens_per_image());
    if (row < pieces) {
      throw Error(ErrorCode::kBadArgument,
                  "expected " + std::to_string(pieces) + " image tokens in a row for " +
                      (known && !images[found]->texts.empty() ? "each tile of " : "") + "image " +
                      std::to_string(found + 1) + ", got " + std::to_string(row),
                  "Session::append_tokens", "repeat the token " + std::to_string(record_.image_token) + " so often.");
    }
    if (known) {
      prompt.images.push_back({static_cast<size_t>(at - tokens.begin()), images[found]->run(), images[found], begin});
      begin += images[found]->run();
    }
    if (!known || begin == images[found]->count) {
      ++found;
      begin = 0;
    }
    at = std::find_if(at + pieces, tokens.end(), is_image);
  }
  if (found != images.size()) refuse_count(found, images.size());
  return prompt;
}

// Tokens with one image token for each marker, and for each piece of an image around whose tiles something is written.
std::vector<int32_t> Sight::encode(const std::vector<TextPart>& text, bool add_special_tokens,
                                   const Tokenizer& tokenizer, const std::vector<Pieces>& images) const {
  std::string joined;
  for (const TextPart& part : text) joined += part.text;
  const Between between = spelled(between_places(text, joined, places()), images);
  // Markers may be tokens of the tokenizer, which then decides what happens to blanks around them.
  std::vector<TextPart> whole = between.front();
  for (size_t i = 1; i < between.size(); ++i) {
    whole.push_back({kMarker, true});
    whole.insert(whole.end(), between[i].begin(), between[i].end());
  }
  const std::vector<int32_t>&before = record_.before, &after = record_.after;
  std::vector<int32_t> tokens;
  // Where they are none, image tokens would be those that the text itself spells.
  if (before.empty() && after.empty() && tokenizer.find(kMarker) == record_.image_token) {
    tokens = tokenizer.encode(whole, add_special_tokens);
    const auto found = std::count(tokens.begin(), tokens.end(), record_.image_token);
    if (found == static_cast<std::ptrdiff_t>(between.size()) - 1) return tokens;
  }
  tokens = tokenizer.encode(between.front(), add_special_tokens);
  for (size_t i = 1; i < between.size(); ++i) {
    tokens.insert(tokens.end(), before.begin(), before.end());
    tokens.push_back(record_.image_token);
    tokens.insert(tokens.end(), after.begin(), after.end());
    if (between[i].empty()) continue;
    const std::vector<int32_t> more = tokenizer.encode(between[i], false);
    tokens.insert(tokens.end(), more.begin(), more.end());
  }
  return tokens;
}

}  // namespace detail
}  // namespace awq2trt
