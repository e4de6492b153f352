// `ray COMMAND`, as far as it means something to a cluster of ours.

#include <stdio.h>
#include <string.h>

#include "launcher/cmd_ray.h"
#include "runtime/rpc/ray_version.h"

static const struct {
  const char *name;
  int (*run)(int argc, char **argv);
  const char *help;
} commands[] = {
    {"start", mob_ray_start_main, "Start a node on this machine."},
    {"stop", mob_ray_stop_main, "Stop this machine's nodes of the cluster."},
    {"status", mob_ray_status_main, "Print the nodes, resources and demands of the cluster."},
    {"health-check", mob_ray_health_main, "Exit with 0 when the cluster's head answers."},
    {"list", mob_ray_list_main, "List nodes, actors or placement-groups."},
    {"drain-node", mob_ray_drain_main, "Let a node finish its work and take no more."},
};

static void print_help(FILE *out) {
  fputs("Usage: ray [OPTIONS] COMMAND [ARGS]...\n\nOptions:\n  --version  Show the version and "
        "exit.\n"
        "  --help     Show this message and exit.\n\nCommands:\n",
        out);
  for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
    fprintf(out, "  %-13s %s\n", commands[i].name, commands[i].help);
  }
}

int mob_ray_main(int argc, char **argv) {
  const char *name = argc > 1 ? argv[1] : "--help";
  if (!strcmp(name, "--help") || !strcmp(name, "-h")) {
    print_help(stdout);
    return 0;
  }
  if (!strcmp(name, "--version")) {
    printf("ray, version %s (mobula %s)\n", MOB_RAY_VERSION, MOB_VERSION);
    return 0;
  }
  for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
    if (strcmp(commands[i].name, name) == 0) return commands[i].run(argc - 1, argv + 1);
  }
  fprintf(stderr,
          "Usage: ray [OPTIONS] COMMAND [ARGS]...\nTry 'ray --help' for help.\n\nError: No such %s "
          "'%s'.\n",
          *name == '-' ? "option:" : "command", name);
  return 2;
}
