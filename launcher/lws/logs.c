// `mobula lws logs`: reads the pod's log file, also when the runner is gone.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <unistd.h>

#include "launcher/lws/client.h"
#include "launcher/lws/commands.h"
#include "launcher/lws/log_marker.h"
#include "launcher/lws/state.h"
#include "runtime/base/buf.h"
#include "runtime/base/file.h"

// The log of the pod with this name, or whose name is a set's and this behind it: the shortest of
// those that end so.
static mob_status find_log(const char *dir, const char *pod, char **out) {
  char *logs = mob_path_join(dir, "logs");
  DIR *entries = opendir(logs);
  mob_status status = MOB_OK;
  size_t matches = 0, shortest = SIZE_MAX;
  *out = NULL;
  for (struct dirent *e; entries && (e = readdir(entries));) {
    size_t n = strlen(e->d_name), len = strlen(pod);
    if (n < 4 || strcmp(e->d_name + n - 4, ".log") != 0) continue;
    n -= 4;
    bool whole = n == len && strncmp(e->d_name, pod, n) == 0;
    if (!whole &&
        !(n > len && e->d_name[n - len - 1] == '-' && strncmp(e->d_name + n - len, pod, len) == 0))
      continue;
    if (whole) n = 0;
    if (n > shortest) continue;
    matches = n == shortest ? matches + 1 : 1;
    shortest = n;
    free(*out);
    *out = mob_path_join(logs, e->d_name);
  }
  if (entries) closedir(entries);
  if (matches != 1) {
    free(*out);
    *out = NULL;
    status = mob_fail(MOB_E_NOT_FOUND, "%s has %s log of a pod \"%s\"", logs,
                      matches ? "more than one" : "no", pod);
  }
  free(logs);
  return status;
}

// Where the last (`back` 0) or an earlier start's output begins and ends, markers left out.
static bool find_run(const mob_buf_t *text, size_t back, size_t *from, size_t *to) {
  const size_t len = strlen(MOB_LWS_LOG_MARKER);
  *to = text->len;
  for (size_t i = text->len; i-- > 0;) {
    if (text->len - i < len || memcmp(text->data + i, MOB_LWS_LOG_MARKER, len) != 0) continue;
    if (i > 0 && text->data[i - 1] != '\n') continue;
    if (back-- > 0) {
      *to = i;
      continue;
    }
    const uint8_t *nl = memchr(text->data + i, '\n', text->len - i);
    *from = nl ? (size_t)(nl - text->data) + 1 : text->len;
    return true;
  }
  return false;
}

// Prints what comes to the file until the runner is gone.
static void follow(const char *path, const char *dir, size_t from) {
  int watch = inotify_init1(IN_CLOEXEC | IN_NONBLOCK), runner,
      fd = open(path, O_RDONLY | O_CLOEXEC);
  if (mob__state_connect(dir, &runner) != MOB_OK) runner = -1;
  if (watch < 0 || fd < 0 || inotify_add_watch(watch, path, IN_MODIFY) < 0) return;
  lseek(fd, (off_t)from, SEEK_SET);
  for (;;) {
    char chunk[16384];
    ssize_t n;
    while ((n = read(fd, chunk, sizeof chunk)) > 0) fwrite(chunk, 1, (size_t)n, stdout);
    if (fflush(stdout) != 0 || runner < 0) break;
    struct pollfd fds[] = {{.fd = watch, .events = POLLIN}, {.fd = runner, .events = POLLIN}};
    if (poll(fds, 2, -1) < 0 && errno != EINTR) break;
    while (read(watch, chunk, sizeof chunk) > 0) continue;
    if (fds[1].revents) { // the runner ended: once more round for the rest
      close(runner);
      runner = -1;
    }
  }
  close(fd);
  close(watch);
  if (runner >= 0) close(runner);
}

int mob__lws_logs(int argc, char **argv) {
  const char *name = NULL, *dir = NULL;
  bool follows = false, previous = false, all = false;
  mob_lws_words_t words = {0};
  const mob_lws_option_t options[] = {
      {"follow", NULL, MOB_LWS_OPT_FLAG, &follows,
       "go on with what comes, until the runner ends (-f)", 'f'},
      {"previous", NULL, MOB_LWS_OPT_FLAG, &previous, "of the start before the latest", 0},
      {"all", NULL, MOB_LWS_OPT_FLAG, &all, "of all starts, of replaced pods too", 0},
      MOB_LWS_CLIENT_OPTIONS(&name, &dir),
  };
  const mob_lws_usage_t usage = {
      "logs",
      "POD",
      "Prints the output of the pod's latest start. POD is its name, or that "
      "without the set's, such as 0-1.",
      options,
      MOB_LEN(options),
      false};
  int code = mob__options_parse(&usage, argc, argv, &words);
  if (code < 0 && words.len != 1) code = mob__usage_error("logs", "needs one pod");
  if (code >= 0) {
    mob_vec_free(&words);
    return code;
  }
  char *path = NULL, *log = NULL;
  mob_buf_t text = {0};
  mob_status status = mob__state_find(dir, name, &path);
  if (status == MOB_OK) status = find_log(path, words.at[0], &log);
  if (status == MOB_OK) status = mob_file_read(log, (size_t)1 << 30, &text);
  if (status == MOB_OK) {
    size_t from = 0, to = text.len;
    if (!all && !find_run(&text, previous ? 1 : 0, &from, &to)) {
      status = mob_fail(MOB_E_NOT_FOUND,
                        previous ? "the pod has no previous start" : "the pod has not started yet");
    } else {
      fwrite(text.data + from, 1, to - from, stdout);
      fflush(stdout);
      if (follows && !previous) follow(log, path, text.len);
    }
  }
  if (status != MOB_OK) fprintf(stderr, "mobula lws logs: %s\n", mob_errmsg());
  mob_buf_free(&text);
  mob_vec_free(&words);
  free(path);
  free(log);
  return status == MOB_OK ? 0 : 1;
}
