#include "launcher/lws/client.h"

#include <errno.h>
#include <math.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "launcher/lws/commands.h"
#include "launcher/lws/state.h"
#include "runtime/base/buf.h"
#include "runtime/base/clock.h"

static mob_status send_line(int fd, json_t *request) {
  char *text = json_dumps(request, JSON_COMPACT);
  if (!text) return mob_fail(MOB_E_INVALID, "the request is not valid UTF-8");
  char *line = mob_sprintf("%s\n", text);
  size_t len = strlen(line), sent = 0;
  mob_status status = MOB_OK;
  while (sent < len && status == MOB_OK) {
    ssize_t n = send(fd, line + sent, len - sent, MSG_NOSIGNAL);
    if (n < 0 && errno != EINTR)
      status = mob_fail(MOB_E_UNAVAILABLE, "the runner ended: %s", strerror(errno));
    if (n > 0) sent += (size_t)n;
  }
  free(line);
  free(text);
  return status;
}

static mob_status receive_line(int fd, double timeout_s, mob_buf_t *line) {
  uint64_t start = mob_now_ms();
  for (;;) {
    int wait = -1;
    if (isfinite(timeout_s)) {
      double left = timeout_s * 1000 - (double)(mob_now_ms() - start);
      wait = left > 0 ? (left < 2e9 ? (int)left : 2000000000) : 0;
    }
    struct pollfd p = {.fd = fd, .events = POLLIN};
    int ready = poll(&p, 1, wait);
    if (ready < 0 && errno == EINTR) continue;
    if (ready == 0) return mob_fail(MOB_E_TIMEOUT, "no answer within %g s", timeout_s);
    mob_buf_reserve(line, 16384);
    ssize_t n = read(fd, line->data + line->len, 16384);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return mob_fail(MOB_E_UNAVAILABLE, "the runner ended before it answered");
    line->len += (size_t)n;
    if (line->data[line->len - 1] == '\n') return MOB_OK;
  }
}

mob_status mob__client_ask(const char *dir, json_t *request, double timeout_s, json_t **out) {
  int fd = -1;
  mob_buf_t line = {0};
  mob_status status = mob__state_connect(dir, &fd);
  *out = NULL;
  if (status == MOB_OK) status = send_line(fd, request);
  if (status == MOB_OK) status = receive_line(fd, timeout_s, &line);
  if (status == MOB_OK) {
    *out = json_loadb((const char *)line.data, line.len, 0, NULL);
    if (!*out) status = mob_fail(MOB_E_FORMAT, "the runner's answer is no JSON");
  }
  if (status == MOB_OK && json_is_false(json_object_get(*out, "ok"))) {
    const char *error = json_string_value(json_object_get(*out, "error"));
    status = mob_fail(MOB_E_INVALID, "%s", error ? error : "refused");
    json_decref(*out);
    *out = NULL;
  }
  if (fd >= 0) close(fd);
  mob_buf_free(&line);
  json_decref(request);
  return status;
}

int mob__client_command(const char *command, const char *dir, const char *name, json_t *request,
                        double timeout_s) {
  char *path = NULL;
  json_t *answer = NULL;
  mob_status status = mob__state_find(dir, name, &path);
  if (status == MOB_OK) {
    status = mob__client_ask(path, request, timeout_s, &answer);
  } else {
    json_decref(request);
  }
  if (status == MOB_OK) {
    const char *text = json_string_value(json_object_get(answer, "text"));
    if (text) printf("%s\n", text);
  } else {
    fprintf(stderr, "mobula lws %s: %s\n", command, mob_errmsg());
  }
  json_decref(answer);
  free(path);
  return status == MOB_OK ? 0 : 1;
}

int mob__lws_down(int argc, char **argv) {
  const char *name = NULL, *dir = NULL;
  bool now = false;
  mob_lws_words_t words = {0};
  const mob_lws_option_t options[] = {
      {"now", NULL, MOB_LWS_OPT_FLAG, &now, "kill the pods, without their grace periods", 0},
      MOB_LWS_CLIENT_OPTIONS(&name, &dir),
  };
  const mob_lws_usage_t usage = {
      "down",
      "",
      "Deletes all pods, each with its grace period, and ends the runner. Returns when "
      "nothing is left.",
      options,
      MOB_LEN(options),
      false};
  int code = mob__options_parse(&usage, argc, argv, &words);
  if (code < 0 && words.len)
    code = mob__usage_error("down", "takes no \"%s\"; choose a runner with --name", words.at[0]);
  mob_vec_free(&words);
  if (code >= 0) return code;
  return mob__client_command("down", dir, name,
                             json_pack("{s:s, s:b}", "op", "down", "now", (int)now), INFINITY);
}

int mob__lws_scale(int argc, char **argv) {
  const char *name = NULL, *dir = NULL;
  int64_t replicas = -1;
  mob_lws_words_t words = {0};
  const mob_lws_option_t options[] = {
      {"replicas", "N", MOB_LWS_OPT_INT, &replicas, "number of groups", 0},
      MOB_LWS_CLIENT_OPTIONS(&name, &dir),
  };
  const mob_lws_usage_t usage = {
      "scale", "[LEADERWORKERSET]", "Changes the number of groups. The highest index goes first.",
      options, MOB_LEN(options),    false};
  int code = mob__options_parse(&usage, argc, argv, &words);
  if (code < 0 && words.len > 1) code = mob__usage_error("scale", "takes one LeaderWorkerSet");
  if (code < 0 && replicas < 0) code = mob__usage_error("scale", "needs --replicas N");
  json_t *request = json_pack("{s:s, s:I, s:s*}", "op", "scale", "replicas", (json_int_t)replicas,
                              "name", words.len ? words.at[0] : NULL);
  mob_vec_free(&words);
  if (code >= 0) {
    json_decref(request);
    return code;
  }
  return mob__client_command("scale", dir, name, request, 30);
}

int mob__lws_fault(int argc, char **argv) {
  const char *name = NULL, *dir = NULL, *process = NULL;
  int64_t pid = -1, sig = -1;
  mob_lws_words_t words = {0};
  const mob_lws_option_t options[] = {
      {"process", "PATTERN", MOB_LWS_OPT_STRING, &process,
       "the processes whose name matches this regular expression or, when none does,\nwhose "
       "command line does",
       0},
      {"pid", "N", MOB_LWS_OPT_INT, &pid, "the process with this id inside the pod", 0},
      {"signal", "N", MOB_LWS_OPT_INT, &sig, "signal of kill (default 9)", 0},
      MOB_LWS_CLIENT_OPTIONS(&name, &dir),
  };
  const mob_lws_usage_t usage = {
      "fault",
      "POD kill|freeze|thaw|link-down|link-up|delete|netem ARGS...|netem off",
      "POD is its name, or that without the set's, such as 0-1.\n"
      "  kill       SIGKILL to PID 1 of the pod, or to --process or --pid\n"
      "  freeze     SIGSTOP to all its processes, or to --process or --pid; thaw continues them\n"
      "  link-down  its network goes silent: packets vanish, no connection is closed; link-up ends "
      "that\n"
      "  delete     like kubectl delete pod\n"
      "  netem      tc-netem(8) on both ends of its link, such as: netem delay 20ms loss 5%",
      options,
      MOB_LEN(options),
      false};
  int code = mob__options_parse(&usage, argc, argv, &words);
  if (code < 0 && words.len > 2 && strcmp(words.at[1], "netem") != 0) {
    code = mob__usage_error("fault", "does not know \"%s\" here", words.at[2]);
  }
  if (code < 0 && words.len < 2)
    code = mob__usage_error("fault", "needs a pod and what to do to it");
  json_t *request = json_pack("{s:s}", "op", "fault");
  if (words.len >= 2) {
    json_object_set_new(request, "pod", json_string(words.at[0]));
    json_object_set_new(request, "action", json_string(words.at[1]));
  }
  if (process) json_object_set_new(request, "process", json_string(process));
  if (pid >= 0) json_object_set_new(request, "pid", json_integer(pid));
  if (sig >= 0) json_object_set_new(request, "signal", json_integer(sig));
  json_t *args = json_array();
  for (size_t i = 2; i < words.len; i++) json_array_append_new(args, json_string(words.at[i]));
  json_object_set_new(request, "args", args);
  mob_vec_free(&words);
  if (code >= 0) {
    json_decref(request);
    return code;
  }
  return mob__client_command("fault", dir, name, request, 30);
}
