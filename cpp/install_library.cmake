# What `cmake --install --component library` brings for C and C++: headers, both libraries, pkg-config, find_package().
# Not part of a plain `cmake --install`, which is the Python package's.
include(CMakePackageConfigHelpers)

file(STRINGS "${CMAKE_SOURCE_DIR}/Cargo.toml" cargo_version REGEX "^version = ")
string(REGEX REPLACE "^version = \"(.*)\"$" "\\1" cargo_version "${cargo_version}")
set(soname libnvfp4_moe.so.0) # as rust/build.rs gives it to the linker
set(shared_library "libnvfp4_moe.so.${cargo_version}")

file(CONFIGURE OUTPUT "${CMAKE_BINARY_DIR}/nvfp4_moe.pc" @ONLY CONTENT
"prefix=\${pcfiledir}/../..
Name: nvfp4_moe
Description: The NVFP4 mixture-of-experts layer and NVFP4 linear
Version: @cargo_version@
Cflags: -I\${prefix}/include
Libs: -L\${prefix}/lib -lnvfp4_moe
Libs.private: -lpthread -ldl -lm
")
file(CONFIGURE OUTPUT "${CMAKE_BINARY_DIR}/nvfp4_moe-config.cmake" @ONLY CONTENT
"# find_package(nvfp4_moe): nvfp4_moe::shared, nvfp4_moe::static, and nvfp4_moe::nvfp4_moe, which is the shared one.
get_filename_component(_prefix \"\${CMAKE_CURRENT_LIST_DIR}/../../..\" ABSOLUTE)
if(NOT TARGET nvfp4_moe::shared)
  add_library(nvfp4_moe::shared SHARED IMPORTED)
  set_target_properties(nvfp4_moe::shared PROPERTIES
    IMPORTED_LOCATION \"\${_prefix}/lib/@shared_library@\" IMPORTED_SONAME @soname@
    INTERFACE_INCLUDE_DIRECTORIES \"\${_prefix}/include\")
  add_library(nvfp4_moe::static STATIC IMPORTED)
  set_target_properties(nvfp4_moe::static PROPERTIES
    IMPORTED_LOCATION \"\${_prefix}/lib/libnvfp4_moe.a\"
    INTERFACE_INCLUDE_DIRECTORIES \"\${_prefix}/include\" INTERFACE_LINK_LIBRARIES \"pthread;dl;m\")
  add_library(nvfp4_moe::nvfp4_moe INTERFACE IMPORTED)
  set_target_properties(nvfp4_moe::nvfp4_moe PROPERTIES INTERFACE_LINK_LIBRARIES nvfp4_moe::shared)
endif()
unset(_prefix)
")
write_basic_package_version_file("${CMAKE_BINARY_DIR}/nvfp4_moe-config-version.cmake"
  VERSION "${cargo_version}" COMPATIBILITY SameMajorVersion)

set(for_c COMPONENT library EXCLUDE_FROM_ALL)
install(FILES include/nvfp4_moe.h include/nvfp4_moe_checkpoint.h include/nvfp4_moe.hpp DESTINATION include ${for_c})
install(FILES "${RUST_LIBRARY}" DESTINATION lib ${for_c})
install(PROGRAMS "${RUST_SHARED_LIBRARY}" DESTINATION lib RENAME "${shared_library}" ${for_c})
install(FILES "${CMAKE_BINARY_DIR}/nvfp4_moe.pc" DESTINATION lib/pkgconfig ${for_c})
install(FILES "${CMAKE_BINARY_DIR}/nvfp4_moe-config.cmake" "${CMAKE_BINARY_DIR}/nvfp4_moe-config-version.cmake"
  DESTINATION lib/cmake/nvfp4_moe ${for_c})
install(CODE "set(lib \"\$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}/lib\")
  file(CREATE_LINK ${shared_library} \"\${lib}/${soname}\" SYMBOLIC)
  file(CREATE_LINK ${soname} \"\${lib}/libnvfp4_moe.so\" SYMBOLIC)" ${for_c})
if(CMAKE_OBJCOPY AND CMAKE_STRIP)
  # Debug information is most of the size. The shared library's stays beside it, in a file that debuggers find.
  install(CODE "set(lib \"\$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}/lib\")
  execute_process(COMMAND \"${CMAKE_OBJCOPY}\" --only-keep-debug ${shared_library} ${shared_library}.debug
    WORKING_DIRECTORY \"\${lib}\" COMMAND_ERROR_IS_FATAL ANY)
  execute_process(COMMAND \"${CMAKE_STRIP}\" --strip-debug libnvfp4_moe.a ${shared_library}
    WORKING_DIRECTORY \"\${lib}\" COMMAND_ERROR_IS_FATAL ANY)
  execute_process(COMMAND \"${CMAKE_OBJCOPY}\" --add-gnu-debuglink=${shared_library}.debug ${shared_library}
    WORKING_DIRECTORY \"\${lib}\" COMMAND_ERROR_IS_FATAL ANY)" ${for_c})
endif()
