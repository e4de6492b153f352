# The double of NVIDIA's library that tests of several modules and the end-to-end tests load (MOB_NVML_LIB).
add_library(nvml_double MODULE support/nvml/double.c)
target_link_libraries(nvml_double PRIVATE mob_flags)
set_target_properties(nvml_double PROPERTIES PREFIX "" LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
add_dependencies(unit_tests nvml_double)
if(TARGET test_gpu_nvml)
  add_dependencies(test_gpu_nvml nvml_double)
endif()
