// See post_processor.h.
#include "text/post_processor.h"

#include <nlohmann/json.hpp>

#include "awq2trt/awq2trt.hpp"
#include "text/json_fields.h"

namespace awq2trt {
namespace {

using nlohmann::json;

int32_t id_of(const json& value, const std::string& where) {
  if (!value.is_number_unsigned() || value.get<uint64_t>() > INT32_MAX) {
    throw Error(ErrorCode::kMalformed, "an id is expected", where, "");
  }
  return value.get<int32_t>();
}

// Ids of the special tokens of a template, by the names that it gives them.
std::vector<int32_t> ids_of(const json& tokens, const std::string& name, const std::string& where) {
  const auto found = tokens.find(name);
  if (found == tokens.end()) throw Error(ErrorCode::kMalformed, "the token " + name + " is not declared", where, "");
  Fields fields(*found, where + "." + name);
  fields.ignore("id");
  fields.ignore("tokens");
  const json& list = fields.need("ids");
  if (!list.is_array()) throw Error(ErrorCode::kMalformed, "a list is expected", fields.place("ids"), "");
  std::vector<int32_t> ids;
  for (const json& id : list) ids.push_back(id_of(id, fields.place("ids")));
  fields.finish();
  return ids;
}

SpecialFrame read_template(Fields* fields) {
  fields->ignore("pair");
  const json& tokens = fields->need("special_tokens");
  const json& pieces = fields->need("single");
  if (!pieces.is_array() || !tokens.is_object()) {
    throw Error(ErrorCode::kMalformed, "a list and an object are expected", fields->where(), "");
  }
  SpecialFrame frame;
  bool seen_text = false;
  for (const json& piece : pieces) {
    Fields one(piece, fields->place("single"));
    if (const json* special = one.find("SpecialToken")) {
      Fields named(*special, one.where());
      named.ignore("type_id");
      const std::vector<int32_t> ids = ids_of(tokens, named.text("id"), fields->place("special_tokens"));
      named.finish();
      std::vector<int32_t>& side = seen_text ? frame.behind : frame.before;
      side.insert(side.end(), ids.begin(), ids.end());
    } else {
      Fields sequence(one.need("Sequence"), one.where());
      sequence.ignore("type_id");
      if (sequence.text("id") != "A" || seen_text) refuse_unknown("a template of several texts", one.where());
      sequence.finish();
      seen_text = true;
    }
    one.finish();
  }
  if (!seen_text) throw Error(ErrorCode::kMalformed, "the template has no place for the text", fields->where(), "");
  return frame;
}

int32_t pair_id(Fields* fields, const std::string& key) {
  const json& pair = fields->need(key);
  if (!pair.is_array() || pair.size() != 2) {
    throw Error(ErrorCode::kMalformed, "a pair of a token and its id is expected", fields->place(key), "");
  }
  return id_of(pair[1], fields->place(key));
}

}  // namespace

SpecialFrame read_post_processor(const json& definition, const std::string& where) {
  SpecialFrame frame;
  if (definition.is_null()) return frame;
  Fields fields(definition, where);
  const std::string type = fields.text("type");
  if (type == "Sequence") {
    const json& list = fields.need("processors");
    if (!list.is_array()) throw Error(ErrorCode::kMalformed, "a list is expected", fields.place("processors"), "");
    for (size_t i = 0; i < list.size(); ++i) {
      const SpecialFrame outer = read_post_processor(list[i], where + ".processors[" + std::to_string(i) + "]");
      frame.before.insert(frame.before.begin(), outer.before.begin(), outer.before.end());
      frame.behind.insert(frame.behind.end(), outer.behind.begin(), outer.behind.end());
    }
  } else if (type == "TemplateProcessing") {
    frame = read_template(&fields);
  } else if (type == "ByteLevel") {  // moves offsets, which are not used here
    for (const char* key : {"add_prefix_space", "trim_offsets", "use_regex"}) fields.ignore(key);
  } else if (type == "RobertaProcessing" || type == "BertProcessing") {
    for (const char* key : {"add_prefix_space", "trim_offsets"}) fields.ignore(key);
    frame.before.push_back(pair_id(&fields, "cls"));
    frame.behind.push_back(pair_id(&fields, "sep"));
  } else {
    refuse_unknown("the post-processor " + type, where);
  }
  fields.finish();
  return frame;
}

}  // namespace awq2trt
