// Reads an object of a JSON file field by field, and refuses fields that nobody asked for: an unknown field could
// change the meaning of the file.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <set>
#include <string>

namespace awq2trt {

class Fields {
 public:
  // `where` is the object's place in the file, for errors, e.g. "tokenizer.json: normalizer".
  Fields(const nlohmann::json& object, const std::string& where);

  const std::string& where() const { return where_; }
  std::string place(const std::string& key) const { return where_ + "." + key; }

  const nlohmann::json& need(const std::string& key);
  const nlohmann::json* find(const std::string& key);  // nullptr if it is not there, or null
  std::string text(const std::string& key);
  std::string text_or(const std::string& key, const std::string& otherwise);
  bool flag(const std::string& key);
  bool flag_or(const std::string& key, bool otherwise);
  int64_t number(const std::string& key);
  void ignore(const std::string& key) { read_.insert(key); }  // known, but has no effect here

  void finish() const;  // throws on a field that nobody read

 private:
  [[noreturn]] void wrong_type(const std::string& key, const char* expected) const;

  const nlohmann::json& object_;
  std::string where_;
  std::set<std::string> read_;
};

[[noreturn]] void refuse_unknown(const std::string& what, const std::string& where);

}  // namespace awq2trt
