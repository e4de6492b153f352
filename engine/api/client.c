#include "engine/api/client.h"

#include <errno.h>
#include <jansson.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include "engine/api/json_out.h"
#include "engine/api/options.h"
#include "runtime/base/mem.h"

typedef struct client {
  char *url, *model, *api_key, *system_prompt;
  char host[256], port[16], path[256]; // of url
} client_t;

static const mob_option_t table[] = {
    {"--url", NULL, MOB_OPT_TEXT, MOB_OPT_ACTS, "http://localhost:8000/v1", offsetof(client_t, url),
     NULL, "URL of the running server."},
    {"--model-name", NULL, MOB_OPT_TEXT, MOB_OPT_ACTS, NULL, offsetof(client_t, model), NULL,
     "Model to ask; default: the first one of /v1/models."},
    {"--api-key", NULL, MOB_OPT_TEXT, MOB_OPT_ACTS, NULL, offsetof(client_t, api_key), NULL,
     "API key; default: OPENAI_API_KEY."},
    {"--system-prompt", NULL, MOB_OPT_TEXT, MOB_OPT_ACTS, NULL, offsetof(client_t, system_prompt),
     NULL, "System message of the chat."},
};

static mob_status split_url(client_t *c) {
  const char *at = c->url;
  if (strncasecmp(at, "http://", 7) != 0)
    return mob_fail(MOB_E_INVALID, "--url %s: only http:// is spoken here", c->url);
  at += 7;
  size_t len = strcspn(at, "/");
  const char *colon = memchr(at, ':', len);
  size_t host_len = colon ? (size_t)(colon - at) : len;
  if (host_len == 0 || host_len >= sizeof c->host)
    return mob_fail(MOB_E_INVALID, "--url %s has no host", c->url);
  snprintf(c->host, sizeof c->host, "%.*s", (int)host_len, at);
  snprintf(c->port, sizeof c->port, "%.*s", colon ? (int)(len - host_len - 1) : 2,
           colon ? colon + 1 : "80");
  snprintf(c->path, sizeof c->path, "%s", at + len);
  for (size_t n = strlen(c->path); n > 0 && c->path[n - 1] == '/'; n--) c->path[n - 1] = '\0';
  return MOB_OK;
}

static mob_status open_socket(const client_t *c, int *out) {
  struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list;
  int rc = getaddrinfo(c->host, c->port, &hints, &list);
  if (rc != 0) return mob_fail(MOB_E_UNAVAILABLE, "%s: %s", c->host, gai_strerror(rc));
  int fd = -1, err = 0;
  for (struct addrinfo *each = list; each && fd < 0; each = each->ai_next) {
    fd = socket(each->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, each->ai_addr, each->ai_addrlen) == 0) continue;
    err = errno;
    close(fd);
    fd = -1;
  }
  freeaddrinfo(list);
  *out = fd;
  return fd >= 0 ? MOB_OK
                 : mob_fail(MOB_E_UNAVAILABLE, "%s:%s: %s", c->host, c->port, strerror(err));
}

// One request in HTTP/1.0, so that the reply ends with the connection and comes unchunked. The
// caller frees *reply.
static mob_status ask(const client_t *c, const char *method, const char *path,
                      const mob_buf_t *body, json_t **reply) {
  *reply = NULL;
  int fd = -1;
  MOB_TRY(open_socket(c, &fd));
  mob_buf_t out = {0}, in = {0};
  mob_buf_printf(
      &out,
      "%s %s%s HTTP/1.0\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n",
      method, c->path, path, c->host, body->len);
  if (c->api_key) mob_buf_printf(&out, "Authorization: Bearer %s\r\n", c->api_key);
  mob_buf_puts(&out, "\r\n");
  mob_buf_append(&out, body->data, body->len);
  mob_status status = MOB_OK;
  for (size_t sent = 0; sent < out.len;) {
    ssize_t n = send(fd, out.data + sent, out.len - sent, MSG_NOSIGNAL);
    if (n <= 0) break;
    sent += (size_t)n;
  }
  for (;;) {
    mob_buf_reserve(&in, 65536);
    ssize_t n = recv(fd, in.data + in.len, 65536, 0);
    if (n <= 0) break;
    in.len += (size_t)n;
  }
  close(fd);
  const char *text = mob_buf_cstr(&in), *begin = strstr(text, "\r\n\r\n");
  int code = strncmp(text, "HTTP/1.", 7) == 0 ? atoi(text + 9) : 0;
  if (begin) *reply = json_loads(begin + 4, 0, NULL);
  if (!*reply)
    status = mob_fail(MOB_E_FORMAT, "the server's reply is not JSON (HTTP status %d)", code);
  else if (code != 200) {
    const json_t *error = json_object_get(*reply, "error");
    const char *why =
        json_string_value(json_object_get(json_is_object(error) ? error : *reply, "message"));
    if (!why) why = json_string_value(error);
    status = mob_fail(MOB_E_INVALID, "HTTP %d: %s", code, why ? why : "no message");
    json_decref(*reply);
    *reply = NULL;
  }
  mob_buf_free(&out);
  mob_buf_free(&in);
  return status;
}

static mob_status find_model(client_t *c) {
  if (c->model) return MOB_OK;
  json_t *reply;
  MOB_TRY(ask(c, "GET", "/models", &(mob_buf_t){0}, &reply));
  const char *id =
      json_string_value(json_object_get(json_array_get(json_object_get(reply, "data"), 0), "id"));
  if (id) c->model = mob_strdup(id);
  json_decref(reply);
  return id ? MOB_OK : mob_fail(MOB_E_FORMAT, "the server lists no model");
}

static mob_status answer(client_t *c, bool chat, json_t *messages, const char *line) {
  mob_buf_t body = {0};
  json_t *reply = NULL;
  mob_json_open(&body, '{');
  mob_json_put_text(&body, "model", c->model);
  if (chat) {
    json_array_append_new(messages, json_pack("{s:s, s:s}", "role", "user", "content", line));
    char *text = json_dumps(messages, JSON_COMPACT);
    mob_json_key(&body, "messages");
    mob_json_raw(&body, text, strlen(text));
    free(text);
  } else {
    mob_json_put_text(&body, "prompt", line);
  }
  mob_json_close(&body, '}');
  mob_status status = ask(c, "POST", chat ? "/chat/completions" : "/completions", &body, &reply);
  if (status == MOB_OK) {
    const json_t *choice = json_array_get(json_object_get(reply, "choices"), 0);
    const json_t *message = json_object_get(choice, "message");
    const char *text =
        json_string_value(json_object_get(chat ? message : choice, chat ? "content" : "text"));
    if (chat && text)
      json_array_append_new(messages,
                            json_pack("{s:s, s:s}", "role", "assistant", "content", text));
    printf("%s\n", text ? text : "");
  }
  json_decref(reply);
  mob_buf_free(&body);
  return status;
}

int mob__client_main(int argc, char **argv, bool chat) {
  const char *name = chat ? "chat" : "complete";
  size_t count = chat ? MOB_LEN(table) : MOB_LEN(table) - 1;
  client_t c = {0};
  mob_options_parsed_t parsed = {0};
  json_t *messages = json_array();
  int code = 0;
  mob_options_init(table, count, &c);
  mob_status status = mob_options_parse(table, count, &c, argc, argv, &parsed);
  if (status == MOB_OK && parsed.positionals.len && !parsed.help) {
    status = mob_fail(MOB_E_INVALID, "unrecognized arguments: %s", parsed.positionals.at[0]);
  }
  if (status != MOB_OK) {
    fprintf(stderr, "usage: vllm %s [options]\nvllm %s: error: %s\n", name, name, mob_errmsg());
    code = 2;
    goto done;
  }
  if (parsed.help) {
    printf("usage: vllm %s [options]\n\n", name);
    mob_options_help(table, count, stdout);
    goto done;
  }
  if (!c.api_key && getenv("OPENAI_API_KEY")) c.api_key = mob_strdup(getenv("OPENAI_API_KEY"));
  if (split_url(&c) != MOB_OK || find_model(&c) != MOB_OK) {
    fprintf(stderr, "vllm %s: error: %s\n", name, mob_errmsg());
    code = 1;
    goto done;
  }
  printf("Using model: %s\n", c.model);
  if (c.system_prompt) {
    json_array_append_new(messages,
                          json_pack("{s:s, s:s}", "role", "system", "content", c.system_prompt));
  }
  puts(chat ? "Please enter a message for the chat model:" : "Please enter prompt to complete:");
  char *line = NULL;
  size_t size = 0;
  for (ssize_t n; fputs("> ", stdout), fflush(stdout), (n = getline(&line, &size, stdin)) > 0;) {
    if (line[n - 1] == '\n') line[n - 1] = '\0';
    if (answer(&c, chat, messages, line) == MOB_OK) continue;
    fprintf(stderr, "vllm %s: error: %s\n", name, mob_errmsg());
    code = 1;
    break;
  }
  free(line);
done:
  json_decref(messages);
  mob_options_clear(table, count, &c);
  mob_options_parsed_free(&parsed);
  return code;
}
