#include "engine/text/template.h"

#include <stdlib.h>
#include <string.h>

#include "engine/text/jinja.h"
#include "runtime/base/file.h"

#define MAX_FILE ((size_t)64 << 20)

struct mob_template {
  mob_arena_t arena; // the tree and every text in it
  mob__jnodes_t body;
};

void mob_template_free(mob_template_t *tpl) {
  if (!tpl) return;
  mob_arena_free(&tpl->arena);
  free(tpl);
}

mob_status mob_template_parse(const char *source, size_t len, mob_template_t **out) {
  mob_template_t *tpl = MOB_NEW(mob_template_t);
  mob__jtokens_t tokens = {0};
  mob_status status = mob__jinja_lex(&tpl->arena, source, len, &tokens);
  if (status == MOB_OK) {
    mob__jparser_t p = {.arena = &tpl->arena, .token = tokens.at};
    status = mob__jinja_parse(&p, &tpl->body);
  }
  mob_vec_free(&tokens);
  if (status != MOB_OK) {
    mob_template_free(tpl);
    tpl = NULL;
  }
  *out = tpl;
  return status;
}

// The template in tokenizer_config.json: a string, or of a list of named ones "default".
static mob_status from_config(const char *path, json_t *config, mob_template_t **out) {
  json_t *value = json_object_get(config, "chat_template");
  for (size_t i = 0; json_is_array(value) && i < json_array_size(value); i++) {
    json_t *entry = json_array_get(value, i);
    const char *name = json_string_value(json_object_get(entry, "name"));
    if (name && strcmp(name, "default") == 0) {
      value = json_object_get(entry, "template");
      break;
    }
  }
  if (!value || json_is_null(value) || json_is_array(value)) {
    return mob_fail(MOB_E_NOT_FOUND, "%s has no chat_template", path);
  }
  if (!json_is_string(value))
    return mob_fail(MOB_E_FORMAT, "%s: chat_template is not a string", path);
  mob_status status = mob_template_parse(json_string_value(value), json_string_length(value), out);
  return status == MOB_OK ? status : mob_wrap(status, "%s: chat_template", path);
}

mob_status mob_template_open(const char *dir, mob_template_t **out) {
  mob_status status = MOB_OK;
  mob_buf_t text = {0};
  json_t *config = NULL;
  json_error_t error;
  char *config_path = mob_path_join(dir, "tokenizer_config.json");
  char *file_path = mob_path_join(dir, "chat_template.jinja");
  *out = NULL;
  if (mob_file_exists(file_path)) { // where there are both, transformers takes this one
    MOB_TRY_GOTO(mob_file_read(file_path, MAX_FILE, &text), status, done);
    status = mob_template_parse((const char *)text.data, text.len, out);
    if (status != MOB_OK) mob_wrap(status, "%s", file_path);
  } else if (mob_file_exists(config_path)) {
    MOB_TRY_GOTO(mob_file_read(config_path, MAX_FILE, &text), status, done);
    config = json_loadb((const char *)text.data, text.len, JSON_ALLOW_NUL, &error);
    if (!config) {
      status = mob_fail(MOB_E_FORMAT, "%s line %d: %s", config_path, error.line, error.text);
      goto done;
    }
    status = from_config(config_path, config, out);
  } else {
    status = mob_fail(MOB_E_NOT_FOUND,
                      "%s has neither tokenizer_config.json nor chat_template.jinja", dir);
  }
done:
  json_decref(config);
  mob_buf_free(&text);
  free(config_path);
  free(file_path);
  return status;
}

mob_status mob_template_render(const mob_template_t *tpl, json_t *vars, mob_buf_t *out) {
  if (!json_is_object(vars))
    return mob_fail(MOB_E_INVALID, "a template's variables must be an object");
  size_t before = out->len;
  mob_buf_t text = {0};
  mob__jscope_t globals = {0}, top = {.parent = &globals};
  mob__jinja_t r = {.out = &text, .scope = &top};
  mob__jflow_t flow = MOB__J_NEXT;
  mob_status status = MOB_OK;
  const char *name;
  json_t *value;
  json_object_foreach(vars, name, value) {
    mob__jvalue_t v;
    MOB_TRY_GOTO(mob__j_from_json(&r, value, 0, &v), status, done);
    mob__jinja_assign(&r, &globals, (mob__jstring_t){name, strlen(name)}, v);
  }
  r.steps = 0; // the input's size is the caller's business
  r.memory = 0;
  status = mob__jinja_exec(&r, &tpl->body, &flow);
  if (status == MOB_OK && text.len) mob_buf_append(out, text.data, text.len);
done:
  if (status != MOB_OK) out->len = before;
  mob_buf_free(&text);
  mob_arena_free(&r.arena);
  return status;
}
