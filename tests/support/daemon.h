// Node daemons for tests whose program is its own daemon. Include it behind <cmocka.h>.
#ifndef MOB_TEST_DAEMON_H
#define MOB_TEST_DAEMON_H

#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/types.h>
#include <unistd.h>

#include "runtime/base/mem.h"

// Starts `node` of this program in `dir`, with what else it shall be told (NULL: nothing), as
// the head where `head` is NULL, and waits until it is ready. Returns what it says then, which the
// caller frees.
static inline json_t *start_node_daemon(const char *dir, const char *ip, const char *head,
                                        const char *extra, pid_t *pid) {
  int report[2];
  assert_int_equal(pipe2(report, O_CLOEXEC), 0);
  char *argv[12] = {"test", "node", "--ready-fd=3", "--log-to-file"};
  int n = 4;
  argv[n++] = mob_sprintf("--temp-dir=%s", dir);
  argv[n++] = mob_sprintf("--node-ip-address=%s", ip);
  if (extra) argv[n++] = mob_strdup(extra);
  argv[n++] = head ? mob_sprintf("--address=%s", head) : mob_strdup("--head");
  if (!head) argv[n++] = mob_strdup("--port=0");
  *pid = fork();
  if (*pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    dup2(report[1], 3);
    execv("/proc/self/exe", argv);
    _exit(127);
  }
  for (int i = 4; i < n; i++) free(argv[i]);
  close(report[1]);
  char text[4096];
  size_t len = 0;
  ssize_t got;
  while ((got = read(report[0], text + len, sizeof text - len)) > 0) len += (size_t)got;
  close(report[0]);
  json_t *said = json_loadb(text, len, 0, NULL);
  assert_true(json_is_true(json_object_get(said, "ok")));
  return said;
}

#endif
