# What `cmake --install` puts where: headers, libraries, find_package(awq2trt), pkg-config, examples, licences. The component
# `shared` alone is what a kit carries: the shared library, and what a CMake project needs of it.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(package ${CMAKE_INSTALL_LIBDIR}/cmake/awq2trt)
set(documents ${CMAKE_INSTALL_DATAROOTDIR}/doc/awq2trt)
install(DIRECTORY include/awq2trt DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT shared)
install(TARGETS awq2trt EXPORT awq2trt-targets COMPONENT shared)
install(TARGETS awq2trt_static EXPORT awq2trt-static-targets COMPONENT static)
install(EXPORT awq2trt-targets NAMESPACE awq2trt:: DESTINATION ${package} COMPONENT shared)
install(EXPORT awq2trt-static-targets NAMESPACE awq2trt:: DESTINATION ${package} COMPONENT static)

write_basic_package_version_file(awq2trt-config-version.cmake COMPATIBILITY SameMinorVersion)
configure_package_config_file(cmake/awq2trt-config.cmake.in awq2trt-config.cmake INSTALL_DESTINATION ${package})
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/awq2trt-config.cmake ${CMAKE_CURRENT_BINARY_DIR}/awq2trt-config-version.cmake
  DESTINATION ${package} COMPONENT shared)

file(RELATIVE_PATH prefix_from_pc "/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/")
configure_file(cmake/awq2trt.pc.in awq2trt.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/awq2trt.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT static)

install(DIRECTORY ../examples DESTINATION ${documents} COMPONENT shared)
install(FILES ../../LICENSE DESTINATION ${documents} COMPONENT shared)
install(FILES ../third_party/llama_cpp_jinja/LICENSE DESTINATION ${documents} RENAME LICENSE.llama_cpp_jinja
  COMPONENT shared)
if(AWQ2TRT_CROSS)  # which finds static libraries alone, so that they are inside
  foreach(name libpcre2-dev libutf8proc-dev nlohmann-json3-dev)
    install(FILES ${AWQ2TRT_CROSS_ROOT}/usr/share/doc/${name}/copyright DESTINATION ${documents} RENAME LICENSE.${name}
      COMPONENT shared OPTIONAL)
  endforeach()
endif()
