// Prints the tokens that the sampler picks; tests/plugins/runtime/test_cross_build.py runs it under an emulator.
//
// In:  cases on stdin, each a line "VOCABULARY ROWS TEMPERATURE TOP_K TOP_P MIN_P PENALTY SEED [TOKEN BIAS]..." with
// floats as
//      hexadecimal, followed by the rows of scores as float32.
// Out: a line of tokens for each case.
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <sstream>
#include <string>

#include "generation/sampler.h"

int main() {
  const auto number = [](std::istringstream* line) {
    std::string word;
    *line >> word;
    return std::strtof(word.c_str(), nullptr);
  };
  for (std::string text; std::getline(std::cin, text);) {
    std::istringstream line(text);
    int64_t vocabulary = 0;
    int rows = 0;
    uint64_t seed = 0;
    awq2trt::GenerateOptions options;
    line >> vocabulary >> rows;
    options.temperature = number(&line);
    line >> options.top_k;
    options.top_p = number(&line);
    options.min_p = number(&line);
    options.repetition_penalty = number(&line);
    line >> seed;
    options.seed = seed;
    for (int32_t token = 0; line >> token;) options.logit_bias.emplace_back(token, number(&line));
    awq2trt::Sampler sampler(options, vocabulary);
    std::vector<float> scores(static_cast<size_t>(vocabulary));
    for (int row = 0; row < rows; ++row) {
      std::cin.read(reinterpret_cast<char*>(scores.data()), static_cast<std::streamsize>(4 * scores.size()));
      std::printf("%d ", sampler.pick(scores.data()));
    }
    std::printf("\n");
  }
}
