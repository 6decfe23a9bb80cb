// llama.cpp's common logger writes from a thread and is never destroyed (upstream issue 22142), so a tool
// that ends at once can lose its last lines. This object, linked into libllama-common, flushes at exit.

#include "log.h"

namespace {

struct flush_log_at_exit {
    ~flush_log_at_exit() { common_log_flush(common_log_main()); }
};

flush_log_at_exit guard;

} // namespace
