# test_cluster.c is its own node daemon and actor process.
if(TARGET test_stage_cluster)
  target_link_libraries(test_stage_cluster PRIVATE mob_node mob_gcs)
  target_link_options(test_stage_cluster PRIVATE -rdynamic)
  set_tests_properties(stage.cluster PROPERTIES RUN_SERIAL ON)
endif()
if(TARGET test_stage_devices)
  add_dependencies(test_stage_devices nvml_double) # of ../gpu/extra.cmake
endif()
