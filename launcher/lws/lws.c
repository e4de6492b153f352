#include "launcher/lws/lws.h"

#include <stdio.h>
#include <string.h>

#include "launcher/lws/commands.h"
#include "runtime/base/mem.h"

static const struct {
  const char *name;
  int (*run)(int argc, char **argv);
  const char *about;
} commands[] = {
    {"up", mob__lws_up, "start the pods of the manifests and look after them"},
    {"status", mob__lws_status,
     "show groups, pods, Services and events; or wait until all is ready"},
    {"logs", mob__lws_logs, "print a pod's output"},
    {"scale", mob__lws_scale, "change the number of groups"},
    {"fault", mob__lws_fault, "kill, freeze, cut off or delete a pod"},
    {"exec", mob__lws_exec, "run a command inside a pod"},
    {"down", mob__lws_down, "end all pods and the runner"},
};

static void print_help(FILE *to) {
  fprintf(to, "usage: mobula lws COMMAND ...\n\nRuns LeaderWorkerSets on this machine as a cluster "
              "would, each pod in its "
              "own namespaces.\n\ncommands:\n");
  for (size_t i = 0; i < MOB_LEN(commands); i++)
    fprintf(to, "  %-8s %s\n", commands[i].name, commands[i].about);
  fprintf(to, "\n`mobula lws COMMAND --help` describes each.\n");
}

int mob_lws_main(int argc, char **argv) {
  const char *name = argc > 1 ? argv[1] : "";
  if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0) {
    print_help(stdout);
    return 0;
  }
  for (size_t i = 0; i < MOB_LEN(commands); i++) {
    if (strcmp(name, commands[i].name) == 0) return commands[i].run(argc - 1, argv + 1);
  }
  if (*name) fprintf(stderr, "mobula lws: unknown command \"%s\"\n\n", name);
  print_help(stderr);
  return 2;
}
