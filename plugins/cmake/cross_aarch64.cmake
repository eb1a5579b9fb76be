# With -DAWQ2TRT_CROSS=aarch64: compiles for an aarch64 Linux, on an x86-64 one. Elsewhere, and without it, does nothing.
#
# In:  Debian's aarch64-linux-gnu-g++; the nvcc that find_cuda_compiler.cmake found, which makes device code for any GPU
#      and takes the rest from targets/aarch64-linux of its toolkit. Most toolkits lack that, and what the library needs
#      of it is one file, the static CUDA runtime.
# Out: CMAKE_CUDA_COMPILER in a toolkit that has it: the machine's own if it does, else one of links in the build folder,
#      with the runtime from PyPI's aarch64 wheel.
set(AWQ2TRT_CROSS "" CACHE STRING "aarch64 to compile for that CPU on another")
if(AWQ2TRT_CROSS STREQUAL "")
  return()
elseif(NOT AWQ2TRT_CROSS STREQUAL "aarch64")
  message(FATAL_ERROR "AWQ2TRT_CROSS: expected aarch64, got ${AWQ2TRT_CROSS}")
endif()
cmake_host_system_information(RESULT host QUERY OS_PLATFORM)
if(host STREQUAL "aarch64")
  return()
endif()

set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
find_program(AWQ2TRT_CROSS_CXX aarch64-linux-gnu-g++)
if(NOT AWQ2TRT_CROSS_CXX)
  message(FATAL_ERROR "no aarch64-linux-gnu-g++; Debian and Ubuntu have it: apt-get install g++-aarch64-linux-gnu")
endif()
set(CMAKE_CXX_COMPILER ${AWQ2TRT_CROSS_CXX} CACHE FILEPATH "")
set(CMAKE_CUDA_HOST_COMPILER ${AWQ2TRT_CROSS_CXX} CACHE FILEPATH "")
set(CMAKE_FIND_ROOT_PATH /usr/aarch64-linux-gnu)  # where Debian's compiler has the target's libraries

set(cuda_cross ${CMAKE_BINARY_DIR}/cuda-aarch64)
if(NOT CMAKE_CUDA_COMPILER MATCHES "^${cuda_cross}/")
  find_program(AWQ2TRT_PYTHON NAMES python3 python HINTS ${Python3_EXECUTABLE} REQUIRED)
  execute_process(
    COMMAND ${AWQ2TRT_PYTHON} -I ${CMAKE_CURRENT_LIST_DIR}/fetch.py cuda-aarch64 ${cuda_cross} ${CMAKE_CUDA_COMPILER}
    COMMAND_ERROR_IS_FATAL ANY)
  set(CMAKE_CUDA_COMPILER ${cuda_cross}/bin/nvcc CACHE FILEPATH "" FORCE)
endif()
