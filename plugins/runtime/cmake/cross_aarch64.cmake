# With -DAWQ2TRT_CROSS=aarch64: compiles for an aarch64 Linux, on an x86-64 one. Elsewhere, and without it, does nothing.
#
# In:  Debian's aarch64-linux-gnu-g++, and Debian's packages of PCRE2, utf8proc and nlohmann-json for that CPU, which are
#      downloaded into the build folder, and not installed; or -DAWQ2TRT_CROSS_ROOT, a folder that has them below usr/.
# Out: a compiler, and where find_library looks. Only static libraries are there, so that libawq2trt.so needs none of them.
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
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc CACHE FILEPATH "")

set(AWQ2TRT_CROSS_ROOT ${CMAKE_BINARY_DIR}/aarch64 CACHE PATH "Folder with usr/include and usr/lib/aarch64-linux-gnu")
if(NOT EXISTS ${AWQ2TRT_CROSS_ROOT}/usr)
  message(STATUS "Downloading libraries for aarch64 into ${AWQ2TRT_CROSS_ROOT}")
  execute_process(COMMAND ${CMAKE_CURRENT_LIST_DIR}/fetch_aarch64.sh ${AWQ2TRT_CROSS_ROOT} COMMAND_ERROR_IS_FATAL ANY)
endif()
set(CMAKE_FIND_ROOT_PATH ${AWQ2TRT_CROSS_ROOT} /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
set(CMAKE_LIBRARY_ARCHITECTURE aarch64-linux-gnu)
link_directories(${AWQ2TRT_CROSS_ROOT}/usr/lib/aarch64-linux-gnu)
