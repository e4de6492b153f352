// The one executable: which command it is follows from the name it was started under, or from its
// first argument.

#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

#include "engine/api/vllm.h"
#include "engine/stage/stage.h"
#include "launcher/cmd_ray.h"
#include "launcher/cmd_status.h"
#include "launcher/lws/lws.h"
#include "runtime/actor/worker.h"
#include "runtime/base/log.h"
#include "runtime/gcs/gcs.h"
#include "runtime/node/node.h"
#include "runtime/rpc/ray_version.h"

static int help_main(int argc, char **argv);

static int version_main(int argc, char **argv) {
  (void)argc;
  (void)argv;
  printf("mobula %s (speaks Ray %s)\n", MOB_VERSION, MOB_RAY_VERSION);
  return 0;
}

typedef struct command {
  const char *name;
  int (*run)(int argc, char **argv);
  const char *help; // NULL: internal
} command_t;

static const command_t commands[] = {
    {"ray_init.sh", mob_ray_init_main,
     "bring a pod of a LeaderWorkerSet group into its cluster: leader | worker"},
    {"ray", mob_ray_main, "start, stop and look at nodes: ray --help"},
    {"vllm", mob_vllm_main, "serve a model over the OpenAI API: vllm serve DIR"},
    {"status", mob_status_main, "the group on one screen: pods, stages, GPUs, network, requests"},
    {"lws", mob_lws_main, "run LeaderWorkerSet manifests on this machine: lws up FILE"},
    {"node", mob_node_main, "a node daemon in the foreground, with the flags of `ray start`"},
    {"gcs-server", mob_gcs_server_main,
     "the control store alone, with the flags of Ray's gcs_server"},
    {"version", version_main, "print the version"},
    {"help", help_main, "this text"},
    {"actor-worker", mob_actor_worker_main, NULL},
    // Other names of the same.
    {"multi-node-serving.sh", mob_ray_init_main, NULL},
    {"gcs_server", mob_gcs_server_main, NULL},
    {"--version", version_main, NULL},
    {"--help", help_main, NULL},
    {"-h", help_main, NULL},
};

static void print_help(FILE *out) {
  fputs("Usage: mobula COMMAND [ARGUMENTS]\n\n"
        "Serves large models from LeaderWorkerSet groups: the cluster, its actors and the engine "
        "in one program.\n\n"
        "Commands:\n",
        out);
  for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
    if (commands[i].help) fprintf(out, "  %-12s %s\n", commands[i].name, commands[i].help);
  }
  fputs("\nLinks named ray_init.sh, multi-node-serving.sh, ray, vllm and gcs_server run the "
        "command of their name.\n"
        "`mobula COMMAND --help` tells more.\n",
        out);
}

static int help_main(int argc, char **argv) {
  (void)argc;
  (void)argv;
  print_help(stdout);
  return 0;
}

static const command_t *find(const char *name) {
  for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
    if (strcmp(commands[i].name, name) == 0) return &commands[i];
  }
  return NULL;
}

// Daemons and actors run /proc/self/exe, and `ps` and `top` would show them as "exe".
static void name_process(const char *command) {
  if (strcmp(command, "node") == 0) prctl(PR_SET_NAME, "mobula-node");
  if (strcmp(command, "actor-worker") == 0) prctl(PR_SET_NAME, "mobula-actor");
}

int main(int argc, char **argv) {
  // gRPC's threads would each get an arena of the allocator and keep what a burst of calls left in it.
  mallopt(M_ARENA_MAX, 2);
  mob_stage_register(); // for the processes of actors
  const char *slash = argc ? strrchr(argv[0], '/') : NULL;
  const command_t *command = argc ? find(slash ? slash + 1 : argv[0]) : NULL;
  if (command) return command->run(argc, argv);
  if (argc < 2) {
    print_help(stderr);
    return 2;
  }
  // `mobula serve DIR` is `vllm serve DIR`.
  if (strcmp(argv[1], "serve") == 0) return mob_vllm_main(argc, argv);
  command = find(argv[1]);
  if (!command) {
    fprintf(stderr, "mobula: unknown command '%s'. `mobula help` lists them.\n", argv[1]);
    return 2;
  }
  name_process(command->name);
  return command->run(argc - 1, argv + 1);
}
