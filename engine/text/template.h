// Chat templates: Jinja as far as the templates of DeepSeek-V3/R1, Qwen2.5/3 and Llama-3.x use it,
// rendered the way transformers' apply_chat_template renders (trim_blocks, lstrip_blocks, its extra
// functions).
#ifndef MOB_TEXT_TEMPLATE_H
#define MOB_TEXT_TEMPLATE_H

#include <jansson.h>
#include <stdbool.h>

#include "runtime/base/buf.h"
#include "runtime/base/status.h"

typedef struct mob_template mob_template_t;

// Parses Jinja source. Errors name line and cause.
mob_status mob_template_parse(const char *source, size_t len, mob_template_t **out);
// From DIR/tokenizer_config.json ("chat_template": string, or a list of {name, template}:
// "default") or DIR/chat_template.jinja. MOB_E_NOT_FOUND when the directory has none.
mob_status mob_template_open(const char *dir, mob_template_t **out);
void mob_template_free(mob_template_t *tpl);

// Renders with the variables of `vars` (an object: messages, add_generation_prompt, bos_token,
// eos_token, tools, and whatever chat_template_kwargs brings). Appends to `out`. A template's
// raise_exception() is MOB_E_INVALID with its text. Bounded in time and memory against hostile
// templates.
mob_status mob_template_render(const mob_template_t *tpl, json_t *vars, mob_buf_t *out);

#endif
