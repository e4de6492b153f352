# `cmake --install DIR --prefix P` puts programs and plug-ins under P; the target `bundle` makes a directory that
# runs on any x86-64 Linux with glibc >= 2.36, its other shared libraries beside it.
include(GNUInstallDirs)
install(DIRECTORY ${CMAKE_BINARY_DIR}/bin/ DESTINATION ${CMAKE_INSTALL_BINDIR} USE_SOURCE_PERMISSIONS
        PATTERN "*bench*" EXCLUDE PATTERN "*check*" EXCLUDE PATTERN "*_emu*" EXCLUDE) # what measures and checks: tools/, tests/emu
install(FILES ${CMAKE_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DATADIR}/mobula)

add_custom_target(bundle
  COMMAND ${CMAKE_SOURCE_DIR}/tools/bundle ${CMAKE_BINARY_DIR} ${CMAKE_BINARY_DIR}/bundle/mobula
  USES_TERMINAL VERBATIM)
if(TARGET mobula)
  add_dependencies(bundle mobula)
endif()
