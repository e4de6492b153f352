# Flags and the one function that makes a module of a folder. (Instrumented code hides from gcc what is initialised;
# the release build warns of it.)

add_library(mob_flags INTERFACE)
target_compile_options(mob_flags INTERFACE -Wall -Wextra -Wshadow -Werror
                       $<$<C_COMPILER_ID:GNU>:-Wno-format-truncation>
                       $<$<AND:$<C_COMPILER_ID:GNU>,$<BOOL:${MOB_SANITIZE}>>:-Wno-maybe-uninitialized> -fno-strict-aliasing
                       -fno-omit-frame-pointer)
target_compile_definitions(mob_flags INTERFACE _GNU_SOURCE MOB_VERSION="${PROJECT_VERSION}")
target_include_directories(mob_flags INTERFACE ${CMAKE_SOURCE_DIR})
target_link_libraries(mob_flags INTERFACE pthread m)

set(simd_optimisation -O3)
if(MOB_SANITIZE)
  # The vector code takes minutes to compile when it is optimised and instrumented.
  set(simd_optimisation -O1)
  add_compile_options(-g1) # lines for the reports; all of -g costs a quarter of the compilers' time
endif()
if(MOB_SANITIZE STREQUAL "address")
  set(CMAKE_C_FLAGS_RELWITHDEBINFO "-O1 -g")
  add_compile_options(-fsanitize=address,undefined -fno-sanitize-recover=undefined)
  add_link_options(-fsanitize=address,undefined)
  add_compile_definitions(MOB_ASAN=1)
elseif(MOB_SANITIZE STREQUAL "thread")
  add_compile_options(-fsanitize=thread)
  add_link_options(-fsanitize=thread)
  add_compile_definitions(MOB_TSAN=1)
elseif(MOB_SANITIZE)
  message(FATAL_ERROR "MOB_SANITIZE is '${MOB_SANITIZE}'; use 'address' or 'thread'")
endif()

if(MOB_FUZZ)
  list(APPEND simd_optimisation -fno-sanitize=undefined) # no fuzz target reaches it, and clang takes minutes
  add_compile_options(-fsanitize=fuzzer-no-link) # coverage, which the fuzzer is guided by
endif()

find_package(PkgConfig REQUIRED)
foreach(dep libuv jansson libpcre2-8 libutf8proc yaml-0.1 openssl libxxhash hiredis cmocka
            libprotobuf-c grpc)
  string(MAKE_C_IDENTIFIER ${dep} id)
  pkg_check_modules(${id} REQUIRED IMPORTED_TARGET ${dep})
endforeach()

# mob_module(NAME [DEPS target...]): the static library mob_NAME of every *.c in the current folder.
# Files ending in _avx2.c, _avx512.c and _amx.c get that instruction set, and no others do, so that
# one binary runs everywhere and picks its kernels at run time.
function(mob_module name)
  cmake_parse_arguments(ARG "" "" "DEPS" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*.c)
  if(NOT sources)
    add_library(mob_${name} INTERFACE)
    target_link_libraries(mob_${name} INTERFACE mob_flags ${ARG_DEPS})
    return()
  endif()
  add_library(mob_${name} STATIC ${sources})
  target_link_libraries(mob_${name} PUBLIC mob_flags ${ARG_DEPS})
  foreach(source ${sources})
    if(source MATCHES "_avx2\\.c$")
      set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "-mavx2;-mfma;-mf16c;${simd_optimisation}")
    elseif(source MATCHES "_avx512\\.c$")
      set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS
        "-mavx2;-mfma;-mf16c;-mavx512f;-mavx512bw;-mavx512vl;-mavx512dq;-mavx512vbmi;-mavx512bf16;${simd_optimisation}")
    elseif(source MATCHES "_amx\\.c$")
      set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS
        "-mavx2;-mfma;-mf16c;-mavx512f;-mavx512bw;-mavx512vl;-mavx512dq;-mavx512vbmi;-mavx512bf16;-mamx-tile;-mamx-bf16;${simd_optimisation}")
    endif()
  endforeach()
endfunction()
