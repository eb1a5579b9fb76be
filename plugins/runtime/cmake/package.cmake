# What `cmake --install` puts where: headers, libraries, find_package(awq2trt), pkg-config, licences.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(package ${CMAKE_INSTALL_LIBDIR}/cmake/awq2trt)
install(DIRECTORY include/awq2trt DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(TARGETS awq2trt awq2trt_static EXPORT awq2trt-targets)
install(EXPORT awq2trt-targets NAMESPACE awq2trt:: DESTINATION ${package})

write_basic_package_version_file(awq2trt-config-version.cmake COMPATIBILITY SameMinorVersion)
configure_package_config_file(cmake/awq2trt-config.cmake.in awq2trt-config.cmake INSTALL_DESTINATION ${package})
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/awq2trt-config.cmake ${CMAKE_CURRENT_BINARY_DIR}/awq2trt-config-version.cmake
  DESTINATION ${package})

file(RELATIVE_PATH prefix_from_pc "/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/")
configure_file(cmake/awq2trt.pc.in awq2trt.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/awq2trt.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

install(FILES ../../LICENSE DESTINATION ${CMAKE_INSTALL_DATAROOTDIR}/doc/awq2trt)
install(FILES ../third_party/llama_cpp_jinja/LICENSE DESTINATION ${CMAKE_INSTALL_DATAROOTDIR}/doc/awq2trt RENAME LICENSE.llama_cpp_jinja)
