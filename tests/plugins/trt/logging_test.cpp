// Messages reach the logger of the TensorRT that loaded the library, as TensorRT 10 declares it and as TensorRT 11 and
// TensorRT-RTX do. The latter's classes are written out here, since headers of TensorRT 10 lack them.
#include "trt/logging.h"

#include <string>

#include <gtest/gtest.h>

namespace awq2trt {
namespace {

using Severity = nvinfer1::ILogger::Severity;

struct Heard {
  Severity severity = Severity::kINTERNAL_ERROR;
  std::string message;
};

class LoggerOf10 final : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override { heard = {severity, message}; }
  Heard heard;
};

class FinderOf10 final : public nvinfer1::ILoggerFinder {
 public:
  nvinfer1::ILogger* findLogger() override { return logger; }
  LoggerOf10* logger = nullptr;
};

class Versioned : public nvinfer1::IVersionedInterface {
 public:
  nvinfer1::InterfaceInfo getInterfaceInfo() const noexcept override { return {"a test's", 1, 0}; }
};

class ILoggerOf11 : public Versioned {
 public:
  virtual void log(Severity severity, const char* message) noexcept = 0;
};

class ILoggerFinderOf11 : public Versioned {
 public:
  virtual ILoggerOf11* findLogger() = 0;
};

class LoggerOf11 final : public ILoggerOf11 {
 public:
  void log(Severity severity, const char* message) noexcept override { heard = {severity, message}; }
  Heard heard;
};

class FinderOf11 final : public ILoggerFinderOf11 {
 public:
  ILoggerOf11* findLogger() override { return logger; }
  LoggerOf11* logger = nullptr;
};

class LoggingTest : public testing::Test {
 protected:
  void TearDown() override { set_logger_finder(nullptr); }

  // The text that one message writes to stderr.
  static std::string stderr_of(Severity severity) {
    testing::internal::CaptureStderr();
    log(severity, "%d blocks", 7);
    return testing::internal::GetCapturedStderr();
  }
};

template <typename Finder, typename Logger>
void finds_the_logger() {
  Finder finder;
  Logger logger;
  // The finder as the library gets it: a pointer that is read as the class of the headers, whatever their version.
  set_logger_finder(static_cast<nvinfer1::ILoggerFinder*>(static_cast<void*>(&finder)));
  testing::internal::CaptureStderr();
  log(Severity::kERROR, "%d blocks", 6);
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "6 blocks\n") << "no logger yet";
  finder.logger = &logger;
  testing::internal::CaptureStderr();
  log(Severity::kVERBOSE, "%d blocks", 7);
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
  EXPECT_EQ(logger.heard.severity, Severity::kVERBOSE);
  EXPECT_EQ(logger.heard.message, "7 blocks");
}

TEST_F(LoggingTest, FindsTheLoggerOfTensorRt10) { finds_the_logger<FinderOf10, LoggerOf10>(); }

TEST_F(LoggingTest, FindsTheLoggerOfTensorRt11) { finds_the_logger<FinderOf11, LoggerOf11>(); }

TEST_F(LoggingTest, WithoutAFinderErrorsAndWarningsGoToStderr) {
  EXPECT_EQ(stderr_of(Severity::kERROR), "7 blocks\n");
  EXPECT_EQ(stderr_of(Severity::kWARNING), "7 blocks\n");
  EXPECT_EQ(stderr_of(Severity::kINFO), "");
}

TEST_F(LoggingTest, LongMessagesAreCut) {
  FinderOf10 finder;
  LoggerOf10 logger;
  finder.logger = &logger;
  set_logger_finder(&finder);
  log(Severity::kERROR, "%s", std::string(2000, 'x').c_str());
  EXPECT_EQ(logger.heard.message, std::string(511, 'x'));
}

}  // namespace
}  // namespace awq2trt
