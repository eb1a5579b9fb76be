# Sets TENSORRT_INCLUDE_DIR: -DTensorRT_ROOT, the system (JetPack, Debian packages), else headers from PyPI. Any 10.3 or
# later does: the library uses the versioned plugin interfaces only, and those are the same from 10.3 to 11.
find_path(TENSORRT_INCLUDE_DIR NvInferRuntime.h
  HINTS ${TensorRT_ROOT} ENV TensorRT_ROOT
  PATH_SUFFIXES include)
if(NOT TENSORRT_INCLUDE_DIR)
  set(headers ${CMAKE_BINARY_DIR}/tensorrt_headers)
  message(STATUS "No TensorRT headers on this machine; fetching them from PyPI into ${headers}")
  execute_process(COMMAND ${Python3_EXECUTABLE} -I ${CMAKE_CURRENT_LIST_DIR}/fetch.py tensorrt-headers ${headers}
                  COMMAND_ERROR_IS_FATAL ANY)
  set(TENSORRT_INCLUDE_DIR ${headers} CACHE PATH "" FORCE)
endif()
message(STATUS "TensorRT headers: ${TENSORRT_INCLUDE_DIR}")
