# The emulated GPU's plug-in and what drives it.
target_sources(test_cuda_golden PRIVATE ${CMAKE_SOURCE_DIR}/tools/gpu/drive.c ${CMAKE_SOURCE_DIR}/tests/unit/cpu/golden_case.c
               ${CMAKE_SOURCE_DIR}/tests/unit/cpu/golden_weights.c)
if(TARGET mobula_cuda_emu)
  add_dependencies(test_cuda_golden mobula_cuda_emu)
endif()
