// See stream.h.
#include "text/stream.h"

#include "text/tokenizer.h"

namespace awq2trt {

class StreamDecoder::Sink : public DecodingStep {
 public:
  void take(std::string_view part, bool) override { text += part; }
  void finish() override {}

  std::string text;
};

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool skip_special)
    : tokenizer_(tokenizer), skip_special_(skip_special), sink_(std::make_unique<Sink>()) {
  restart();
}

StreamDecoder::~StreamDecoder() = default;

void StreamDecoder::restart() {
  steps_.clear();
  for (const auto& decoder : tokenizer_.decoders().chain) {
    steps_.push_back(decoder->begin());
    if (steps_.size() > 1) steps_[steps_.size() - 2]->set_next(steps_.back().get());
  }
  if (!steps_.empty()) steps_.back()->set_next(sink_.get());
}

std::string StreamDecoder::push(int32_t id) {
  const Vocabulary& vocabulary = tokenizer_.vocabulary();
  if (!vocabulary.contains(id) || (skip_special_ && tokenizer_.is_special(id))) return "";
  DecodingStep& first = steps_.empty() ? *sink_ : *steps_.front();
  if (tokenizer_.decoders().takes_bytes) {
    first.take(vocabulary.bytes(id), true);
  } else {
    first.take(vocabulary.text(id), true);
  }
  std::string text;
  text.swap(sink_->text);
  return text;
}

std::string StreamDecoder::finish() {
  if (!steps_.empty()) steps_.front()->finish();
  std::string text;
  text.swap(sink_->text);
  restart();
  return text;
}

}  // namespace awq2trt
