#include "engine/api/prompt.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/file.h"
#include "runtime/base/mem.h"
#define MOB_LOG_COMPONENT "api"
#include "runtime/base/log.h"

// -----------------------------------------------------------------------------------------------
// open

// transformers hands the special tokens of tokenizer_config.json to the template.
static json_t *read_special(const char *dir) {
  static const char *const names[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                      "pad_token", "cls_token", "mask_token"};
  json_t *out = json_object();
  mob_buf_t text = {0};
  char *path = mob_path_join(dir, "tokenizer_config.json");
  json_t *config = NULL;
  if (mob_file_read(path, 64 << 20, &text) == MOB_OK)
    config = json_loadb((char *)text.data, text.len, 0, NULL);
  for (size_t i = 0; i < MOB_LEN(names); i++) {
    json_t *token = json_object_get(config, names[i]);
    if (json_is_object(token)) token = json_object_get(token, "content");
    if (json_is_string(token)) json_object_set(out, names[i], token);
  }
  json_decref(config);
  mob_buf_free(&text);
  free(path);
  return out;
}

// A literal template comes from a shell: \n and the like are written out.
static void unescape(const char *text, mob_buf_t *out) {
  for (; *text; text++) {
    if (*text != '\\' || !text[1]) {
      mob_buf_putc(out, *text);
      continue;
    }
    text++;
    switch (*text) {
    case 'n':
      mob_buf_putc(out, '\n');
      break;
    case 't':
      mob_buf_putc(out, '\t');
      break;
    case 'r':
      mob_buf_putc(out, '\r');
      break;
    case '\\':
    case '\'':
    case '"':
      mob_buf_putc(out, *text);
      break;
    default:
      mob_buf_putc(out, '\\');
      mob_buf_putc(out, *text);
    }
  }
}

static const char *skip_blanks(const char *at) {
  while (isspace((unsigned char)*at)) at++;
  return at;
}

// Whether the source has a loop `for x in message['content']` (or .content): then it wants parts,
// not a text.
static bool loops_over_content(const char *source) {
  for (const char *at = source; (at = strstr(at, " in ")); at++) {
    const char *name = skip_blanks(at + 4);
    const char *end = name;
    while (isalnum((unsigned char)*end) || *end == '_') end++;
    if (end == name) continue;
    if (strncmp(end, ".content", 8) == 0 && !isalnum((unsigned char)end[8]) && end[8] != '_')
      return true;
    if (strncmp(end, "['content']", 11) == 0 || strncmp(end, "[\"content\"]", 11) == 0) return true;
  }
  return false;
}

static mob_status open_given_template(const char *option, mob_buf_t *source) {
  if (mob_file_exists(option)) return mob_file_read(option, 4 << 20, source);
  unescape(option, source);
  return MOB_OK;
}

static void detect_from_dir(const char *dir, bool *parts_to_list) {
  mob_buf_t text = {0};
  char *path = mob_path_join(dir, "tokenizer_config.json");
  if (mob_file_read(path, 64 << 20, &text) == MOB_OK) {
    json_t *config = json_loadb((char *)text.data, text.len, 0, NULL);
    const char *source = json_string_value(json_object_get(config, "chat_template"));
    if (source) *parts_to_list = loops_over_content(source);
    json_decref(config);
  }
  mob_buf_free(&text);
  free(path);
}

mob_status mob__prompter_open(const char *dir, const char *template_option, const char *format,
                              bool skip_tokenizer, mob_prompter_t *out) {
  memset(out, 0, sizeof *out);
  mob_buf_t source = {0};
  mob_status status = MOB_OK;
  if (!skip_tokenizer) {
    status = mob_tokenizer_open(dir, &out->tokenizer);
    if (status == MOB_E_NOT_FOUND) {
      MOB_WARN("no tokenizer.json in %s: only token-id prompts are served", dir);
      status = MOB_OK;
    }
    if (status != MOB_OK) goto done;
  }
  if (template_option) {
    MOB_TRY_GOTO(open_given_template(template_option, &source), status, done);
    status = mob_template_parse((char *)source.data, source.len, &out->chat);
    if (status != MOB_OK) {
      mob_wrap(status, "--chat-template");
      goto done;
    }
    out->parts_to_list = loops_over_content(mob_buf_cstr(&source));
  } else if (out->tokenizer) {
    status = mob_template_open(dir, &out->chat);
    if (status == MOB_E_NOT_FOUND) status = MOB_OK;
    if (status != MOB_OK) goto done;
    detect_from_dir(dir, &out->parts_to_list);
  }
  if (strcmp(format, "auto") != 0) out->parts_to_list = strcmp(format, "openai") == 0;
  out->special = read_special(dir);
done:
  mob_buf_free(&source);
  if (status != MOB_OK) mob__prompter_close(out);
  return status;
}

void mob__prompter_close(mob_prompter_t *p) {
  if (p->tokenizer) mob_tokenizer_close(p->tokenizer);
  if (p->chat) mob_template_free(p->chat);
  json_decref(p->special);
  memset(p, 0, sizeof *p);
}

// -------------------------------------------------------------------------------------------
// messages

static mob_status part_text(const json_t *part, const char **out) {
  *out = NULL;
  if (json_is_string(part)) {
    *out = json_string_value(part);
    return MOB_OK;
  }
  const json_t *type = json_object_get(part, "type");
  if (!json_is_object(part) || !type)
    return mob_fail(MOB_E_INVALID, "Missing 'type' field in multimodal part.");
  if (!json_is_string(type))
    return mob_fail(MOB_E_INVALID, "Invalid 'type' field in multimodal part.");
  const char *name = json_string_value(type);
  static const char *const media[] = {"image_url", "audio_url", "input_audio", "video_url"};
  for (size_t i = 0; i < MOB_LEN(media); i++) {
    if (strcmp(name, media[i]) == 0) {
      return mob_fail(MOB_E_INVALID, "At most 0 %.5s(s) may be provided in one request.",
                      i == 2 ? "audio" : media[i]);
    }
  }
  if (strcmp(name, "text") != 0 && strcmp(name, "refusal") != 0) {
    return mob_fail(MOB_E_INVALID, "Unknown part type: %s", name);
  }
  *out = json_string_value(json_object_get(part, name));
  return MOB_OK;
}

// A list of parts becomes one text, joined by newlines, or a list of {"type": "text", "text": ...}.
static mob_status flatten_content(const json_t *content, bool as_list, json_t **out) {
  mob_buf_t text = {0};
  json_t *list = as_list ? json_array() : NULL;
  mob_status status = MOB_OK;
  size_t i, used = 0;
  json_t *part;
  if (json_is_string(content)) {
    if (as_list)
      json_array_append_new(list, json_pack("{s:s, s:O}", "type", "text", "text", content));
    else
      mob_buf_append(&text, json_string_value(content), json_string_length(content));
  } else {
    json_array_foreach((json_t *)content, i, part) {
      const char *piece;
      MOB_TRY_GOTO(part_text(part, &piece), status, done);
      if (!piece || !*piece) continue; // empty parts are skipped
      if (as_list)
        json_array_append_new(list, json_pack("{s:s, s:s}", "type", "text", "text", piece));
      else
        mob_buf_printf(&text, "%s%s", used++ ? "\n" : "", piece);
    }
  }
  *out = as_list ? json_incref(list) : json_stringn(text.data ? (char *)text.data : "", text.len);
done:
  json_decref(list);
  mob_buf_free(&text);
  return status;
}

// Templates want the arguments of tool calls as objects; the API has them as JSON in a text.
static mob_status copy_tool_calls(const json_t *calls, json_t *message) {
  json_t *copy = json_deep_copy(calls), *call;
  size_t i;
  json_array_foreach(copy, i, call) {
    json_t *function = json_object_get(call, "function");
    const char *text = json_string_value(json_object_get(function, "arguments"));
    if (!text) continue;
    json_error_t error;
    json_t *arguments = json_loads(text, JSON_DECODE_ANY, &error);
    if (!arguments) {
      json_decref(copy);
      return mob_fail(MOB_E_INVALID, "arguments of a tool call are not JSON: %s", error.text);
    }
    json_object_set_new(function, "arguments", arguments);
  }
  json_object_set_new(message, "tool_calls", copy);
  return MOB_OK;
}

static mob_status build_message(const json_t *from, bool as_list, json_t *messages) {
  json_t *message = json_object(), *content = NULL;
  json_array_append_new(messages, message);
  const char *role = json_string_value(json_object_get(from, "role"));
  json_object_set(message, "role", json_object_get(from, "role"));
  MOB_TRY(flatten_content(json_object_get(from, "content"), as_list, &content));
  json_object_set_new(message, "content", content);
  const json_t *calls = json_object_get(from, "tool_calls"),
               *id = json_object_get(from, "tool_call_id");
  if (strcmp(role, "assistant") == 0 && json_is_array(calls))
    MOB_TRY(copy_tool_calls(calls, message));
  if (strcmp(role, "tool") == 0 && id) json_object_set(message, "tool_call_id", (json_t *)id);
  if (json_is_string(json_object_get(from, "name")))
    json_object_set(message, "name", json_object_get(from, "name"));
  return MOB_OK;
}

// ---------------------------------------------------------------------------------------------
// render

// continue_final_message: the text ends where the last message's content ends.
static mob_status cut_after_final(const json_t *messages, size_t begin, mob_buf_t *out) {
  const json_t *content =
      json_object_get(json_array_get(messages, json_array_size(messages) - 1), "content");
  if (json_is_array(content)) {
    content = json_object_get(json_array_get(content, json_array_size(content) - 1), "text");
  }
  const char *final = json_string_value(content);
  const char *bad = "continue_final_message is set but the final message does not appear in the "
                    "chat after applying "
                    "the chat template! This can happen if the chat template deletes portions of "
                    "the final message.";
  if (!final) return mob_fail(MOB_E_INVALID, "%s", bad);
  const char *core = skip_blanks(final);
  size_t core_len = strlen(core);
  while (core_len > 0 && isspace((unsigned char)core[core_len - 1])) core_len--;
  const char *text = mob_buf_cstr(out) + begin, *found = NULL;
  size_t len = out->len - begin;
  if (core_len == 0) return MOB_OK;
  for (const char *at = text; (at = memmem(at, len - (size_t)(at - text), core, core_len)); at++)
    found = at;
  if (!found) return mob_fail(MOB_E_INVALID, "%s", bad);
  size_t end = (size_t)(found - text) + core_len;
  size_t whole = (size_t)(found - text) +
                 strlen(core); // with the blanks behind it, where the template kept them
  if (whole <= len && memcmp(found, core, strlen(core)) == 0) end = whole;
  out->len = begin + end;
  return MOB_OK;
}

static json_t *template_vars(const mob_prompter_t *prompter, const mob_api_request_t *r,
                             json_t *messages) {
  json_t *vars = json_object();
  json_object_update(vars, prompter->special);
  json_object_set(vars, "messages", messages);
  json_object_set_new(vars, "add_generation_prompt",
                      json_boolean(r->add_generation_prompt && !r->continue_final));
  json_object_set(vars, "tools", r->tools ? (json_t *)r->tools : json_null());
  json_object_set(vars, "documents", r->documents ? (json_t *)r->documents : json_null());
  if (r->template_kwargs) json_object_update(vars, (json_t *)r->template_kwargs);
  return vars;
}

mob_status mob__prompt_render(const mob_prompter_t *prompter, const mob_api_request_t *r,
                              const char *format, mob_buf_t *out) {
  mob_template_t *own = NULL;
  json_t *messages = NULL, *vars = NULL, *from;
  size_t i, begin = out->len;
  bool as_list = prompter->parts_to_list;
  mob_status status = MOB_OK;
  if (!prompter->tokenizer) {
    return mob_fail(
        MOB_E_INVALID,
        "This model has no tokenizer: only /v1/completions with token ids as the prompt "
        "is served.");
  }
  if (json_array_size(r->messages) == 0)
    return mob_fail(MOB_E_INVALID, "messages must not be empty");
  if (r->chat_template) {
    status = mob_template_parse(r->chat_template, strlen(r->chat_template), &own);
    if (status != MOB_OK) return mob_wrap(MOB_E_INVALID, "chat_template");
    as_list = strcmp(format, "auto") == 0 ? loops_over_content(r->chat_template) : as_list;
  } else if (!prompter->chat) {
    return mob_fail(
        MOB_E_INVALID,
        "As of transformers v4.44, default chat template is no longer allowed, so you must "
        "provide a chat template if the tokenizer does not define one.");
  }
  messages = json_array();
  json_array_foreach((json_t *)r->messages, i, from) {
    MOB_TRY_GOTO(build_message(from, as_list, messages), status, done);
  }
  vars = template_vars(prompter, r, messages);
  status = mob_template_render(own ? own : prompter->chat, vars, out);
  if (status == MOB_OK && r->continue_final) status = cut_after_final(messages, begin, out);
done:
  json_decref(vars);
  json_decref(messages);
  if (own) mob_template_free(own);
  return status;
}

mob_status mob__prompt_encode(const mob_prompter_t *prompter, const mob_api_request_t *r,
                              const char *text, size_t len, mob_ids_t *out) {
  if (!prompter->tokenizer) {
    return mob_fail(MOB_E_INVALID, "This model has no tokenizer: give the prompt as token ids.");
  }
  MOB_TRY(mob_tokenizer_encode(prompter->tokenizer, text, len, r->add_special, out));
  int64_t keep = r->truncate_prompt_tokens;
  if (keep == MOB_UNSET || (int64_t)out->len <= keep) return MOB_OK;
  bool bos = r->add_special && out->at[0] == mob_tokenizer_bos(prompter->tokenizer);
  size_t tail = (size_t)keep - bos;
  memmove(out->at + bos, out->at + out->len - tail, tail * sizeof *out->at);
  out->len = (size_t)keep;
  return MOB_OK;
}
