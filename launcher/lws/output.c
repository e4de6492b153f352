// A container's output: into the pod's log file as it comes, and onto the terminal in whole lines
// with the pod's name in front.
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "launcher/lws/instance.h"
#include "launcher/lws/kubelet.h"
#include "launcher/lws/log_marker.h"

static void write_log(mob_lws_pod_t *pod, const void *data, size_t len) {
  const char *p = data;
  if (len > 0) pod->log_last = p[len - 1];
  while (len > 0) {
    ssize_t n = write(pod->log, p, len);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return; // a full disk must not end the pods
    p += n;
    len -= (size_t)n;
  }
}

static void show(mob_lws_instance_t *c, const char *line, size_t len) {
  // One pod may hold several containers: then the container's name stands there, too.
  mob_lws_pod_t *pod = c->pod;
  if (pod->instance_count > 1) {
    printf("[%s/%s] %.*s\n", pod->id.name, c->spec->name, (int)len, line);
  } else {
    printf("[%s] %.*s\n", pod->id.name, (int)len, line);
  }
}

static void show_lines(mob_lws_instance_t *c, bool end) {
  mob_buf_t *b = &c->line;
  size_t from = 0;
  for (const uint8_t *nl; from < b->len && (nl = memchr(b->data + from, '\n', b->len - from));) {
    size_t len = (size_t)(nl - b->data) - from;
    show(c, (const char *)b->data + from, len);
    from += len + 1;
  }
  mob_buf_consume(b, from);
  if (b->len > 0 && (end || b->len > 65536)) {
    show(c, (const char *)b->data, b->len);
    b->len = 0;
  }
  fflush(stdout);
}

void mob__output_begin(mob_lws_instance_t *c) {
  char line[400], time_text[40];
  time_t now = time(NULL);
  struct tm tm;
  gmtime_r(&now, &tm);
  strftime(time_text, sizeof time_text, "%Y-%m-%dT%H:%M:%SZ", &tm);
  if (c->pod->log_last && c->pod->log_last != '\n') write_log(c->pod, "\n", 1);
  int n =
      snprintf(line, sizeof line, MOB_LWS_LOG_MARKER "container %s, start %u, pod uid %s, %s ---\n",
               c->spec->name, c->starts, c->pod->uid, time_text);
  write_log(c->pod, line, (size_t)n);
}

void mob__output_note(mob_lws_instance_t *c, const char *text) {
  write_log(c->pod, text, strlen(text));
  write_log(c->pod, "\n", 1);
  if (c->pod->kubelet->config.show_output) show(c, text, strlen(text));
}

void mob__output_read(mob_lws_instance_t *c, bool to_the_end) {
  if (c->output < 0) return;
  char chunk[16384];
  for (;;) {
    ssize_t n = read(c->output, chunk, sizeof chunk);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN && !to_the_end) return;
    if (n <= 0) break;
    write_log(c->pod, chunk, (size_t)n);
    if (c->pod->kubelet->config.show_output) {
      mob_buf_append(&c->line, chunk, (size_t)n);
      show_lines(c, false);
    }
    if (!to_the_end && (size_t)n < sizeof chunk) return;
  }
  show_lines(c, true);
  mob__watch_stop(&c->output_watch);
  close(c->output);
  c->output = -1;
}
