# Sets ONNXRUNTIME_INCLUDE_DIR: -DOnnxRuntime_ROOT (an unpacked release), or the system (Debian's libonnxruntime-dev);
# NOTFOUND elsewhere, which stops nothing. Only a test wants the headers: the operators declare what they use
# (ort/onnxruntime_abi.h), and this holds those declarations to the originals. Any 1.18 or later has all of them.
find_path(ONNXRUNTIME_INCLUDE_DIR onnxruntime_c_api.h
  HINTS ${OnnxRuntime_ROOT} ENV OnnxRuntime_ROOT
  PATH_SUFFIXES include include/onnxruntime onnxruntime include/onnxruntime/core/session onnxruntime/core/session)
message(STATUS "ONNX Runtime headers: ${ONNXRUNTIME_INCLUDE_DIR}")
