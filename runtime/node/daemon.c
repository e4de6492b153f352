// The daemon around a node: signals, the report to its launcher, the exit code.
#define MOB_LOG_COMPONENT "node"

#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "runtime/node/node.h"

// A node that ended has this long to close its connections; the process ends with its code anyway.
#define CLOSE_MS 800

typedef struct daemon_state {
  uv_loop_t loop;
  uv_signal_t sigterm, sigint;
  uv_timer_t last_resort;
  mob_node_t *node;
  int ready_fd;
  void (*on_ready)(void *arg, mob_node_t *node);
  void *arg;
  int code;
  char *why;
} daemon_state_t;

static void report(daemon_state_t *state, json_t *json) {
  if (state->ready_fd >= 0) {
    char *text = json_dumps(json, JSON_COMPACT);
    ssize_t ignored = write(state->ready_fd, text, strlen(text));
    (void)ignored;
    free(text);
    close(state->ready_fd);
    state->ready_fd = -1;
  }
  json_decref(json);
}

static void on_ready(void *owner, mob_node_t *node) {
  daemon_state_t *state = owner;
  report(state, json_pack("{s:b, s:s, s:s, s:s, s:s}", "ok", 1, "ip", mob_node_ip_address(node),
                          "address", mob_node_gcs_address(node), "session_dir",
                          mob_node_session_dir(node), "node_id", mob_node_id_hex(node)));
  if (state->on_ready) state->on_ready(state->arg, node);
}

static void on_last_resort(uv_timer_t *timer) {
  const daemon_state_t *state = timer->data;
  _exit(state->code);
}

static void on_ending(void *owner, mob_node_t *node, int code, const char *why) {
  daemon_state_t *state = owner;
  (void)node;
  state->code = code;
  report(state, json_pack("{s:b, s:s}", "ok", 0, "error", why));
  uv_timer_start(&state->last_resort, on_last_resort, CLOSE_MS, 0);
}

static void on_end(void *owner, mob_node_t *node, int code, const char *why) {
  daemon_state_t *state = owner;
  (void)node;
  state->node = NULL;
  state->code = code;
  free(state->why);
  state->why = mob_strdup(why);
  uv_close((uv_handle_t *)&state->sigterm, NULL);
  uv_close((uv_handle_t *)&state->sigint, NULL);
  uv_close((uv_handle_t *)&state->last_resort, NULL);
}

static void on_signal(uv_signal_t *signal, int number) {
  daemon_state_t *state = signal->data;
  if (state->node) mob_node_stop(state->node, number == SIGTERM ? "SIGTERM" : "SIGINT");
}

static const mob_node_events_t events = {on_ready, on_ending, on_end};

// A log that its reader does not drain must not stop the daemon: fd 2 becomes a non-blocking
// description of its own (the flag of a shared one would reach the pod's other processes), and
// lines that find the pipe full are in the session's files only.
static void unblock_stderr(void) {
  int fd = open("/proc/self/fd/2", O_WRONLY | O_APPEND | O_NONBLOCK | O_CLOEXEC);
  if (fd < 0) return; // a socket cannot be opened again
  dup2(fd, STDERR_FILENO);
  close(fd);
}

int mob_node_run(const mob_start_options_t *options, uint64_t connect_timeout_ms,
                 void (*ready)(void *arg, mob_node_t *node), void *arg, char **why) {
  daemon_state_t state = {.ready_fd = options->ready_fd, .on_ready = ready, .arg = arg};
  uv_loop_init(&state.loop);
  signal(SIGPIPE, SIG_IGN);
  uv_signal_init(&state.loop, &state.sigterm);
  uv_signal_init(&state.loop, &state.sigint);
  uv_timer_init(&state.loop, &state.last_resort);
  state.sigterm.data = state.sigint.data = state.last_resort.data = &state;
  uv_signal_start(&state.sigterm, on_signal, SIGTERM);
  uv_signal_start(&state.sigint, on_signal, SIGINT);
  unblock_stderr();
  state.node = mob_node_start(&state.loop, options, connect_timeout_ms, &events, &state);
  uv_run(&state.loop, UV_RUN_DEFAULT);
  uv_loop_close(&state.loop);
  if (why) {
    *why = state.why;
  } else {
    free(state.why);
  }
  return state.code;
}

int mob_node_main(int argc, char **argv) {
  mob_start_options_t options;
  int code = 2;
  char *why = NULL;
  mob_start_options_init(&options);
  mob_log_set_process("node");
  options.log_to_stderr = true;
  if (mob_start_options_parse(&options, argc, argv) != MOB_OK) {
    fprintf(stderr, "%s\n", mob_errmsg());
    goto cleanup;
  }
  if (options.help) {
    mob_buf_t text = {0};
    mob_start_options_help(&text, "mobula node");
    fputs(mob_buf_cstr(&text), stdout);
    mob_buf_free(&text);
    code = 0;
    goto cleanup;
  }
  if (mob_start_options_check(&options) != MOB_OK) {
    fprintf(stderr, "%s\n", mob_errmsg());
    goto cleanup;
  }
  code = mob_node_run(&options, 30000, NULL, NULL, &why);
  if (code && options.ready_fd < 0 && why) fprintf(stderr, "%s\n", why);
cleanup:
  free(why);
  mob_start_options_free(&options);
  return code;
}
