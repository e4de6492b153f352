// What the small commands share: flags, and a connection whose calls block.

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "launcher/cmd_ray.h"
#include "runtime/node/session.h"
#include "runtime/rpc/message.h"

int mob_cli_parse(int argc, char **argv, const char *command, const char *help,
                  const mob_cli_flag_t *flags, size_t count, const char **rest, size_t max,
                  size_t *n_rest) {
  size_t n = 0;
  char *error = NULL;
  for (int i = 1; i < argc && !error; i++) {
    const char *arg = argv[i];
    if (!strcmp(arg, "--help") || !strcmp(arg, "-h")) {
      fputs(help, stdout);
      return 0;
    }
    if (*arg != '-') {
      if (n < max) {
        rest[n++] = arg;
      } else {
        error = mob_sprintf("Got unexpected extra argument (%s)", arg);
      }
      continue;
    }
    size_t len = strncmp(arg, "--", 2) == 0 ? strcspn(arg, "=") : strlen(arg);
    const mob_cli_flag_t *flag = NULL;
    for (size_t f = 0; f < count; f++) {
      if (strlen(flags[f].name) == len && strncmp(flags[f].name, arg, len) == 0) flag = &flags[f];
    }
    if (!flag) {
      error = mob_sprintf("No such option: %.*s", (int)len, arg);
    } else if (!flag->value) {
      *flag->set = true;
      if (arg[len]) error = mob_sprintf("Option '%s' does not take a value.", flag->name);
    } else if (arg[len]) {
      *flag->value = arg + len + 1;
    } else if (i + 1 < argc) {
      *flag->value = argv[++i];
    } else {
      error = mob_sprintf("Option '%s' requires an argument.", flag->name);
    }
  }
  if (n_rest) *n_rest = n;
  if (!error) return -1;
  fprintf(stderr, "Usage: %s [OPTIONS]\nTry '%s --help' for help.\n\nError: %s\n", command, command,
          error);
  free(error);
  return 2;
}

static void on_connected(void *arg, mob_status status, const char *why) {
  mob_cli_t *cli = arg;
  cli->status = status == MOB_OK ? MOB_OK : mob_fail(status, "%s", why);
  cli->waiting = false;
}

static void run_until_answered(mob_cli_t *cli) {
  while (cli->waiting) uv_run(&cli->loop, UV_RUN_ONCE);
}

mob_status mob_cli_connect(mob_cli_t *cli, const char *address, uint64_t timeout_ms) {
  char *current = NULL;
  memset(cli, 0, sizeof *cli);
  if (!address || !strcmp(address, "auto")) address = getenv("RAY_ADDRESS");
  if (!address || !*address || !strcmp(address, "auto")) {
    char *temp_dir = mob_temp_dir(NULL);
    mob_status status = mob_current_cluster_read(temp_dir, &current);
    free(temp_dir);
    if (status != MOB_OK) {
      return mob_fail(MOB_E_NOT_FOUND,
                      "ConnectionError: Could not find any running Ray instance. Please specify "
                      "the one to connect "
                      "to by setting the `--address` flag or `RAY_ADDRESS` environment variable.");
    }
    address = current;
  }
  uv_loop_init(&cli->loop);
  mob_status status = mob_rpc_new(&cli->loop, &cli->rpc);
  if (status == MOB_OK) {
    cli->waiting = true;
    status =
        mob_gcs_client_new(cli->rpc, address, timeout_ms, NULL, NULL, on_connected, cli, &cli->gcs);
  }
  if (status == MOB_OK) {
    run_until_answered(cli);
    status = cli->status;
  }
  free(current);
  if (status != MOB_OK) {
    char *why = mob_strdup(mob_errmsg());
    mob_cli_close(cli);
    status = mob_fail(status, "%s", why);
    free(why);
  }
  return status;
}

static void on_reply(void *arg, mob_status status, const char *why, const void *reply) {
  mob_cli_t *cli = arg;
  cli->status = status == MOB_OK ? MOB_OK : mob_fail(status, "%s", why);
  cli->reply = status == MOB_OK ? mob_pb_clone(reply) : NULL;
  cli->waiting = false;
}

mob_status mob_cli_call(mob_cli_t *cli, const char *path, const void *request,
                        const ProtobufCMessageDescriptor *reply_type, void *reply) {
  cli->waiting = true;
  mob_gcs_call(cli->gcs, path, request, reply_type, 10000, on_reply, cli);
  run_until_answered(cli);
  *(void **)reply = cli->reply;
  return cli->status;
}

mob_status mob_cli_kv_get(mob_cli_t *cli, const char *ns, const char *key, char **value,
                          size_t *len) {
  Ray__Rpc__InternalKVGetRequest request = RAY__RPC__INTERNAL_KVGET_REQUEST__INIT;
  Ray__Rpc__InternalKVGetReply *reply = NULL;
  request.key = mob_pb_bytes(key, strlen(key));
  request.namespace_ = mob_pb_bytes(ns, strlen(ns));
  MOB_TRY(mob_cli_call(cli, "/ray.rpc.InternalKVGcsService/InternalKVGet", &request,
                       &ray__rpc__internal_kvget_reply__descriptor, &reply));
  *value = mob_strndup((const char *)reply->value.data, reply->value.len);
  *len = reply->value.len;
  mob_pb_free(reply);
  return MOB_OK;
}

void mob_cli_close(mob_cli_t *cli) {
  if (cli->gcs) mob_gcs_client_close(cli->gcs);
  if (cli->rpc) mob_rpc_close(cli->rpc, NULL, NULL);
  uv_run(&cli->loop, UV_RUN_DEFAULT);
  uv_loop_close(&cli->loop);
  memset(cli, 0, sizeof *cli);
}
