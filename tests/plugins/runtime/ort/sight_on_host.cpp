// Sessions with images on the CUDA backend, with the host in place of the GPU.
//
//   sight_on_host DIR ONNXRUNTIME OPERATORS < commands
//
// In: a model that sees, as of cuda_backend_on_host.h, and commands, one per line; `S` is the number of a session:
//   open S | image S FILE WIDTH HEIGHT (raw RGB) | append S TOKEN... | answer S COUNT | rewind S COUNT | fork S NEW
//   written S: bytes written to the device since it was asked last
// Out: answers, in tokens, or numbers, and last how much memory was left.
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <memory>
#include <sstream>
#include <utility>

#include "ort/cuda_backend_on_host.h"
#include "session/model_state.h"
#include "session/session_state.h"

namespace {

using awq2trt::detail::ModelState;
using awq2trt::detail::SessionState;

void show(std::istringstream* in, SessionState* session) {
  std::string file;
  int32_t width = 0, height = 0;
  *in >> file >> width >> height;
  std::ifstream pixels(file, std::ios::binary);
  const std::string rgb{std::istreambuf_iterator<char>(pixels), {}};
  if (rgb.size() != 3 * static_cast<size_t>(width) * static_cast<size_t>(height)) throw std::runtime_error(file);
  session->append_image(reinterpret_cast<const uint8_t*>(rgb.data()), width, height);
}

void answer(int64_t count, SessionState* session) {
  awq2trt::GenerateOptions options;
  options.max_tokens = count;
  options.ignore_model_stops = true;
  for (const int32_t token : session->generate(options, {}).tokens) std::cout << token << ' ';
  std::cout << '\n';
}

void serve(const std::shared_ptr<const ModelState>& model, size_t* written) {
  std::map<int, std::unique_ptr<SessionState>> sessions;
  std::string line;
  while (std::getline(std::cin, line)) {
    std::istringstream in(line);
    std::string command;
    int number = 0;
    in >> command >> number;
    std::unique_ptr<SessionState>& session = sessions[number];
    if (command == "image") {
      show(&in, session.get());
      continue;
    }
    const std::vector<int32_t> numbers{std::istream_iterator<int32_t>(in), {}};
    if (command == "open") {
      session = std::make_unique<SessionState>(model, model->backend->new_cache(model->backend->capacity()));
    } else if (command == "append") {
      session->append_tokens(numbers);
    } else if (command == "answer") {
      answer(numbers.at(0), session.get());
    } else if (command == "rewind") {
      session->rewind(numbers.at(0));
    } else if (command == "fork") {
      sessions[numbers.at(0)] = session->fork();
    } else if (command == "written") {
      std::cout << std::exchange(*written, 0) << '\n';
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) return 2;
  const on_host::Files files{argv[1], argv[2], argv[3], ""};
  size_t live = 0, written = 0;
  try {
    const auto open = [&](const awq2trt::Manifest& manifest, const std::shared_ptr<const awq2trt::Tables>& text) {
      return on_host::open_cuda_backend(files, manifest, &live, text, &written);
    };
    serve(awq2trt::detail::load_model(files.directory, awq2trt::Verify::kSizes, open), &written);
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
  std::cout << "left " << live << '\n';
  return 0;
}
