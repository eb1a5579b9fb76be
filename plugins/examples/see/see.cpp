// Asks a model that sees about pictures; the answer streams.
//
//   see DIRECTORY QUESTION PICTURE.ppm...    e.g. after: magick photo.jpg -auto-orient photo.ppm
//
// PPM files (P6, 8 bits) are pixels behind a few numbers. A program of your own hands over what its decoder or its
// camera gives: 8-bit RGB, rows from the top. "<image>" in the question says where a picture stands.
#include <awq2trt/awq2trt.hpp>
#include <fstream>
#include <iostream>
#include <limits>

namespace {

constexpr int32_t kLongest = 1 << 14;  // pixels of a side

struct Picture {
  int32_t width, height;
  std::vector<uint8_t> rgb;
};

// A number of a PPM's header; lines that begin with # are comments.
int32_t read_number(std::istream& in) {
  while ((in >> std::ws).peek() == '#') in.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  int32_t number = 0;
  in >> number;
  return number;
}

Picture read_ppm(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  const bool is_ppm = in.get() == 'P' && in.get() == '6';
  Picture picture{read_number(in), read_number(in), {}};
  const int32_t white = read_number(in);
  in.get();  // the blank before the pixels
  if (!in || !is_ppm || white != 255 || picture.width < 1 || picture.height < 1 || picture.width > kLongest ||
      picture.height > kLongest) {
    throw std::runtime_error(path + ": expected a PPM file (P6) with 8 bits per colour");
  }
  picture.rgb.resize(size_t{3} * static_cast<size_t>(picture.width) * static_cast<size_t>(picture.height));
  in.read(reinterpret_cast<char*>(picture.rgb.data()), static_cast<std::streamsize>(picture.rgb.size()));
  if (!in) throw std::runtime_error(path + ": the pixels end too early");
  return picture;
}

// Asks about the pictures that wait. A model without a chat template, such as OpenFlamingo, goes on with the text.
void ask(const std::string& question, int pictures, awq2trt::Session* session) {
  try {
    session->append({{"user", question}});
  } catch (const awq2trt::Error& error) {
    if (error.code() != awq2trt::ErrorCode::kNoTemplate) throw;
    std::string text = question;
    if (question.find("<image>") == std::string::npos) {
      for (int i = 0; i < pictures; ++i) text.insert(0, "<image>");
    }
    session->append_text(text);
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 4) {
    std::cerr << "usage: see DIRECTORY QUESTION PICTURE.ppm...\n";
    return 2;
  }
  try {
    awq2trt::Session session = awq2trt::Model::load(arguments[1]).session();
    for (int i = 3; i < count; ++i) {
      const Picture picture = read_ppm(arguments[i]);
      session.append_image(picture.rgb.data(), picture.width, picture.height);
    }
    ask(arguments[2], count - 3, &session);
    session.generate({}, [](std::string_view text) { return static_cast<bool>(std::cout << text << std::flush); });
    std::cout << "\n";
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 1;
  }
}
