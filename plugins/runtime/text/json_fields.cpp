// See json_fields.h.
#include "text/json_fields.h"

#include <nlohmann/json.hpp>

#include "awq2trt/awq2trt.hpp"

namespace awq2trt {

void refuse_unknown(const std::string& what, const std::string& where) {
  throw Error(ErrorCode::kUnsupported, what + " is not known to this library", where,
              "use a later version of awq2trt, or a model whose tokenizer does without it.");
}

Fields::Fields(const nlohmann::json& object, const std::string& where) : object_(object), where_(where) {
  if (!object.is_object()) {
    throw Error(ErrorCode::kMalformed, std::string("an object is expected, not ") + object.type_name(), where, "");
  }
}

void Fields::wrong_type(const std::string& key, const char* expected) const {
  throw Error(ErrorCode::kMalformed, std::string(expected) + " is expected, not " + object_.at(key).type_name(),
              place(key), "");
}

const nlohmann::json& Fields::need(const std::string& key) {
  read_.insert(key);
  const auto found = object_.find(key);
  if (found == object_.end()) throw Error(ErrorCode::kMalformed, "the field " + key + " is missing", where_, "");
  return *found;
}

const nlohmann::json* Fields::find(const std::string& key) {
  read_.insert(key);
  const auto found = object_.find(key);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

std::string Fields::text(const std::string& key) {
  if (!need(key).is_string()) wrong_type(key, "a string");
  return object_.at(key).get<std::string>();
}

std::string Fields::text_or(const std::string& key, const std::string& otherwise) {
  return find(key) == nullptr ? otherwise : text(key);
}

bool Fields::flag(const std::string& key) {
  if (!need(key).is_boolean()) wrong_type(key, "true or false");
  return object_.at(key).get<bool>();
}

bool Fields::flag_or(const std::string& key, bool otherwise) { return find(key) == nullptr ? otherwise : flag(key); }

int64_t Fields::number(const std::string& key) {
  const nlohmann::json& value = need(key);
  if (!value.is_number_integer() || (value.is_number_unsigned() && value.get<uint64_t>() > INT32_MAX)) {
    wrong_type(key, "a whole number below 2^31");
  }
  return value.get<int64_t>();
}

void Fields::finish() const {
  for (const auto& [key, value] : object_.items()) {
    if (read_.count(key) == 0) refuse_unknown("the field " + key + " (" + value.type_name() + ")", where_);
  }
}

}  // namespace awq2trt
