// libggq-template: a conversation rendered as llama-server renders it, for whoever cannot call C++. It goes through
// the same calls as the server: the template's parser, its workarounds for known templates, and the engine.

#include "chat.h"
#include "json.h"

#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>

namespace {

char * copy(const std::string & text) {
    char * made = static_cast<char *>(std::malloc(text.size() + 1));
    if (made != nullptr) {
        std::memcpy(made, text.c_str(), text.size() + 1);
    }
    return made;
}

} // namespace

// Renders `messages` (JSON, as OpenAI's interface has them) with `tools` (the same; null: none). Returns the
// prompt and sets `failed` to 0, or returns llama.cpp's words and sets it to 1 (the template does not parse) or 2
// (it does not render this conversation). Free what it returns with ggq_free.
extern "C" char * ggq_render_chat(const char * source, const char * bos, const char * eos, const char * messages,
                                  const char * tools, int add_generation_prompt, int * failed) {
    *failed = 1;
    try {
        const common_chat_template parsed(source, bos, eos);  // what the next call throws has lost its words
        const auto templates = common_chat_templates_init(nullptr, source, bos, eos);
        *failed = 2;
        common_chat_templates_inputs inputs;
        inputs.messages              = common_chat_msgs_parse_oaicompat(common_json::parse(messages));
        inputs.tools                 = common_chat_tools_parse_oaicompat(common_json::parse(tools));
        inputs.add_generation_prompt = add_generation_prompt != 0;
        const auto made              = common_chat_templates_apply(templates.get(), inputs);
        *failed = 0;
        return copy(made.prompt);
    } catch (const std::exception & error) {
        return copy(error.what());
    } catch (...) {
        return copy("it gave no reason");
    }
}

extern "C" void ggq_free(char * text) { std::free(text); }
