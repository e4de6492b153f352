# The actor class that test_cluster.c loads, and a test program that is its own daemon and worker.
add_library(actor_echo MODULE unit/node/classes/echo.c)
target_link_libraries(actor_echo PRIVATE mob_flags PkgConfig::libuv)
set_target_properties(actor_echo PROPERTIES PREFIX "" LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
if(TARGET test_node_cluster)
  target_sources(test_node_cluster PRIVATE unit/node/cluster/harness.c)
  target_link_options(test_node_cluster PRIVATE -rdynamic)
  add_dependencies(test_node_cluster actor_echo)
  set_tests_properties(node.cluster PROPERTIES RUN_SERIAL ON)
endif()
# A driver for the end-to-end tests of `ray list` and `ray status`.
add_executable(actor_driver unit/node/programs/driver.c)
target_link_libraries(actor_driver PRIVATE mob_actor)
set_target_properties(actor_driver PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
if(TARGET test_node_telemetry)
  add_dependencies(test_node_telemetry nvml_double) # of ../gpu/extra.cmake
endif()
