# Included by CMake when llama.cpp's own project() runs (CMAKE_PROJECT_llama.cpp_INCLUDE), so that no file of
# llama.cpp is edited. Its targets exist only at the end of configuring, hence the deferred call; EVAL fixes
# this folder's path now, since a deferred argument is expanded later.
cmake_language(EVAL CODE "
    cmake_language(DEFER DIRECTORY [[${CMAKE_SOURCE_DIR}]] CALL include [[${CMAKE_CURRENT_LIST_DIR}/targets.cmake]])")
