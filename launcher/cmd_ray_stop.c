// `ray stop`: ends the node daemons of this machine that the session files name, and nothing else.

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "launcher/cmd_ray.h"
#include "runtime/base/clock.h"
#include "runtime/node/say.h"
#include "runtime/node/session.h"

#define DEFAULT_GRACE_S 16

static const char help[] =
    "Usage: ray stop [OPTIONS]\n\n"
    "  Stop the nodes that were started on this machine, with their actors. Only the cluster of "
    "this\n"
    "  temporary folder is touched.\n\n"
    "Options:\n"
    "  -f, --force                 end them at once with SIGKILL\n"
    "  -g, --grace-period SECONDS  wait this long before SIGKILL (16)\n"
    "  --temp-dir DIR              the folder given to `ray start` ($RAY_TMPDIR/ray or /tmp/ray)\n";

static size_t count_alive(const mob_processes_t *processes, size_t to) {
  size_t n = 0;
  for (size_t i = 0; i < to; i++) n += mob_process_alive(processes->at[i]);
  return n;
}

// How many of the first `to` are left at `end_ms`, or sooner when it is none.
static size_t wait_for_end(const mob_processes_t *processes, size_t to, uint64_t end_ms) {
  size_t alive;
  while ((alive = count_alive(processes, to)) && mob_now_ms() < end_ms) {
    nanosleep(&(struct timespec){.tv_nsec = 5 * 1000 * 1000}, NULL);
  }
  return alive;
}

static void send_all(const mob_processes_t *processes, size_t from, size_t to, int sig) {
  for (size_t i = from; i < to; i++) {
    if (mob_process_alive(processes->at[i])) kill(processes->at[i].pid, sig);
  }
}

int mob_ray_stop_main(int argc, char **argv) {
  const char *grace = NULL, *temp_option = NULL;
  bool force = false, verbose = false;
  const mob_cli_flag_t flags[] = {
      {"--force", NULL, &force},          {"-f", NULL, &force},
      {"--grace-period", &grace, NULL},   {"-g", &grace, NULL},
      {"--temp-dir", &temp_option, NULL}, {"-v", NULL, &verbose},
      {"--verbose", NULL, &verbose},
  };
  int code = mob_cli_parse(argc, argv, "ray stop", help, flags, MOB_LEN(flags), NULL, 0, NULL);
  if (code >= 0) return code;
  mob_say_setup(MOB_STYLE_AUTO, -1);
  double seconds = DEFAULT_GRACE_S;
  if (grace) {
    char *end;
    seconds = strtod(grace, &end);
    if (*end || end == grace || seconds < 0) {
      fprintf(stderr, "Error: Invalid value for '--grace-period': '%s' is not a valid integer.\n",
              grace);
      return 2;
    }
  }
  mob_node_records_t records = {0};
  mob_processes_t processes = {0};
  char *temp_dir = mob_temp_dir(temp_option);
  if (mob_node_records_list(temp_dir, &records) != MOB_OK) {
    MOB_SAY_ERROR("%s", mob_errmsg());
    free(temp_dir);
    return 1;
  }
  // Workers before heads, so that they leave in order instead of finding their head gone.
  size_t daemons = records.len, workers = 0;
  for (int head = 0; head < 2; head++) {
    if (head) workers = processes.len;
    for (size_t i = 0; i < records.len; i++) {
      if (records.at[i].head == head) *mob_vec_push(&processes) = records.at[i].process;
    }
  }
  for (size_t i = 0; i < daemons; i++) mob_process_children(processes.at[i].pid, &processes);
  if (!processes.len) {
    MOB_SAY("Did not find any active Ray processes.");
  } else {
    int sig = force ? SIGKILL : SIGTERM;
    uint64_t now = mob_now_ms(), grace_ms = force ? 2000 : (uint64_t)(seconds * 1000);
    send_all(&processes, 0, workers, sig);
    wait_for_end(&processes, workers, now + grace_ms / 2);
    send_all(&processes, workers, daemons, sig);
    size_t left = wait_for_end(&processes, processes.len, now + grace_ms);
    if (left) {
      MOB_SAY_WARNING(
          "Stopped only %zu out of %zu Ray processes within the grace period %g seconds. "
          "Remaining processes will be forcefully terminated.",
          processes.len - left, processes.len, seconds);
      MOB_SAY_WARNING("You can also use `--force` to forcefully terminate processes or set higher "
                      "`--grace-period` to wait longer time for proper termination.");
      send_all(&processes, 0, processes.len, SIGKILL);
      left = wait_for_end(&processes, processes.len, mob_now_ms() + 2000);
    }
    if (left) {
      MOB_SAY_ERROR("%zu processes do not end: they hang in the kernel.", left);
    } else {
      MOB_SAY_OK("Stopped all %zu Ray processes.", processes.len);
    }
  }
  mob_node_records_t rest = {0};
  if (mob_node_records_list(temp_dir, &rest) == MOB_OK && !rest.len)
    mob_current_cluster_clear(temp_dir, NULL);
  mob_node_records_free(&rest);
  mob_node_records_free(&records);
  mob_vec_free(&processes);
  free(temp_dir);
  return 0;
}
