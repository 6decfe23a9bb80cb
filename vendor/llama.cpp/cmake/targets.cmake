# What ggq adds to llama.cpp's targets.

target_sources(llama-common PRIVATE ${CMAKE_CURRENT_LIST_DIR}/flush_log_at_exit.cpp)

# libggq-template: llama-server's way from a chat template to a prompt, behind a C function. Without it ggq says that
# templates were not compared.
if(EXISTS ${CMAKE_SOURCE_DIR}/common/chat.h)
    add_library(ggq-template SHARED ${CMAKE_CURRENT_LIST_DIR}/chat_template.cpp)
    target_link_libraries(ggq-template PRIVATE llama-common)
    target_compile_features(ggq-template PRIVATE cxx_std_17)
    add_dependencies(llama-quantize ggq-template)
endif()

# libggq-quants: ggml's quantizers compiled once more, with side_by_side.h. Products are not fused with sums, since
# they are not in libggml-base, whose bytes it must make; where the compiler would fuse them there, or is told to
# reckon loosely, there is no such library. ggq tries it before it is used, so that a CPU without AVX2 is no harm.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64" AND CMAKE_C_COMPILER_ID MATCHES "GNU|Clang")
    include(CheckCSourceCompiles)
    check_c_source_compiles("
        #if defined(__FMA__) || defined(__FAST_MATH__)
        #error
        #endif
        int main(void) { return 0; }" GGQ_COMPUTES_PLAINLY)
endif()
if(GGQ_COMPUTES_PLAINLY)
    file(READ ${CMAKE_SOURCE_DIR}/ggml/src/ggml-quants.c quants)
    set(include "#include \"side_by_side.h\"\n")
    foreach(search make_qx_quants make_qkx2_quants make_qkx3_quants)
        set(definition "static float ${search}(")
        string(FIND "${quants}" "${definition}" found)
        if(found LESS 0)
            message(FATAL_ERROR "ggml-quants.c defines no ${search}: side_by_side.h was written for another one.")
        endif()
        string(REPLACE "${definition}" "${include}static float one_by_one_${search}(" quants "${quants}")
        set(include "")
    endforeach()
    file(GENERATE OUTPUT ${CMAKE_BINARY_DIR}/ggq-quants.c CONTENT "${quants}")
    add_library(ggq-quants SHARED ${CMAKE_BINARY_DIR}/ggq-quants.c)
    set_target_properties(ggq-quants PROPERTIES C_STANDARD 11 C_EXTENSIONS ON)
    target_include_directories(ggq-quants PRIVATE ${CMAKE_CURRENT_LIST_DIR} ${CMAKE_SOURCE_DIR}/ggml/src)
    target_link_libraries(ggq-quants PRIVATE ggml-base m)
    # Its functions have the names of libggml-base's own: none but ours is to be seen from outside.
    target_compile_options(ggq-quants PRIVATE -O3 -mavx2 -ffp-contract=off -fno-math-errno -fno-trapping-math
        -UGGML_SHARED -fvisibility=hidden -Wno-unused-function)
    add_dependencies(llama-quantize ggq-quants)
endif()
