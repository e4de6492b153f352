// `ray status`, `ray health-check` and `ray drain-node`.

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "launcher/cmd_ray.h"
#include "ray/autoscaler.pb-c.h"
#include "runtime/base/clock.h"
#include "runtime/base/hex.h"
#include "runtime/node/status_text.h"
#include "runtime/rpc/message.h"
#include "runtime/rpc/ray_version.h"

// The original waits 35 s; whoever polls wants to know sooner.
#define CONNECT_TIMEOUT_MS 5000

static int fail(mob_cli_t *cli) {
  fprintf(stderr, "%s\n", mob_errmsg());
  if (cli) mob_cli_close(cli);
  return 1;
}

// Ray's own rule: a client and its cluster are of one release.
static mob_status check_version(mob_cli_t *cli) {
  char *text = NULL;
  size_t len = 0;
  MOB_TRY(mob_cli_kv_get(cli, "cluster", "CLUSTER_METADATA", &text, &len));
  json_t *json = json_loadb(text, len, 0, NULL);
  const char *version = json_string_value(json_object_get(json, "ray_version"));
  mob_status status = MOB_OK;
  if (!version || strcmp(version, MOB_RAY_VERSION) != 0) {
    status = mob_fail(MOB_E_UNSUPPORTED,
                      "RuntimeError: Ray version mismatch: cluster has Ray version %s but local "
                      "Ray version is %s",
                      version ? version : "unknown", MOB_RAY_VERSION);
  }
  json_decref(json);
  free(text);
  return status;
}

int mob_ray_status_main(int argc, char **argv) {
  static const char help[] =
      "Usage: ray status [OPTIONS]\n\n  Print cluster status, including autoscaling info.\n\n"
      "Options:\n  --address TEXT  the cluster's HOST:PORT\n  -v, --verbose   each node too\n";
  const char *address = NULL, *password = NULL;
  bool verbose = false;
  const mob_cli_flag_t flags[] = {{"--address", &address, NULL},
                                  {"-v", NULL, &verbose},
                                  {"--verbose", NULL, &verbose},
                                  {"--redis_password", &password, NULL}};
  int code = mob_cli_parse(argc, argv, "ray status", help, flags, MOB_LEN(flags), NULL, 0, NULL);
  if (code >= 0) return code;
  mob_cli_t cli;
  char *report = NULL;
  size_t len = 0;
  if (mob_cli_connect(&cli, address, CONNECT_TIMEOUT_MS) != MOB_OK) return fail(NULL);
  if (check_version(&cli) != MOB_OK) return fail(&cli);
  mob_status status = mob_cli_kv_get(&cli, "", "__autoscaling_status", &report, &len);
  if (status == MOB_E_NOT_FOUND || (status == MOB_OK && !len)) {
    puts("No cluster status. It may take a few seconds for the Ray internal services to start up.");
  } else if (status == MOB_OK) {
    mob_buf_t text = {0};
    status = mob_status_text(report, len, verbose, &text);
    fputs(mob_buf_cstr(&text), stdout);
    mob_buf_free(&text);
  }
  free(report);
  if (status != MOB_OK && status != MOB_E_NOT_FOUND) return fail(&cli);
  mob_cli_close(&cli);
  return 0;
}

int mob_ray_health_main(int argc, char **argv) {
  static const char help[] = "Usage: ray health-check [OPTIONS]\n\n  Check whether the cluster's "
                             "head answers.\n\nOptions:\n"
                             "  --address TEXT        the cluster's HOST:PORT\n  --component TEXT  "
                             "    ask for one component's sign of life\n"
                             "  --skip-version-check  do not compare releases\n";
  const char *address = NULL, *component = NULL;
  bool skip = false;
  const mob_cli_flag_t flags[] = {{"--address", &address, NULL},
                                  {"--component", &component, NULL},
                                  {"--skip-version-check", NULL, &skip}};
  int code =
      mob_cli_parse(argc, argv, "ray health-check", help, flags, MOB_LEN(flags), NULL, 0, NULL);
  if (code >= 0) return code;
  mob_cli_t cli;
  if (mob_cli_connect(&cli, address, CONNECT_TIMEOUT_MS) != MOB_OK) return fail(NULL);
  if (!skip && check_version(&cli) != MOB_OK) return fail(&cli);
  code = 0;
  if (component) {
    char *text = NULL;
    size_t len = 0;
    code = 1;
    if (mob_cli_kv_get(&cli, "healthcheck", component, &text, &len) == MOB_OK) {
      json_t *json = json_loadb(text, len, 0, NULL);
      const char *expiry = getenv("RAY_HEALTHCHECK_EXPIRATION_S");
      double age = mob_wall_seconds() - json_number_value(json_object_get(json, "time"));
      code = json && age < (expiry ? atof(expiry) : 10) ? 0 : 1;
      json_decref(json);
      free(text);
    }
  }
  mob_cli_close(&cli);
  return code;
}

int mob_ray_drain_main(int argc, char **argv) {
  static const char help[] =
      "Usage: ray drain-node [OPTIONS]\n\n  Let a node finish its work and take no "
      "more.\n\nOptions:\n"
      "  --address TEXT\n  --node-id TEXT  hex  [required]\n"
      "  --reason [DRAIN_NODE_REASON_IDLE_TERMINATION|DRAIN_NODE_REASON_PREEMPTION]  [required]\n"
      "  --reason-message TEXT  [required]\n  --deadline-remaining-seconds INTEGER\n";
  const char *address = NULL, *node = NULL, *reason = NULL, *message = NULL, *deadline = NULL;
  const mob_cli_flag_t flags[] = {{"--address", &address, NULL},
                                  {"--node-id", &node, NULL},
                                  {"--reason", &reason, NULL},
                                  {"--reason-message", &message, NULL},
                                  {"--deadline-remaining-seconds", &deadline, NULL}};
  int code =
      mob_cli_parse(argc, argv, "ray drain-node", help, flags, MOB_LEN(flags), NULL, 0, NULL);
  if (code >= 0) return code;
  uint8_t id[28];
  const char *wrong = !node ? "Missing option '--node-id'."
                      : mob_unhex(node, id, sizeof id) != MOB_OK
                          ? "Invalid value for '--node-id': it must be 56 hexadecimal digits."
                      : !reason  ? "Missing option '--reason'."
                      : !message ? "Missing option '--reason-message'."
                                 : NULL;
  Ray__Rpc__Autoscaler__DrainNodeRequest request = RAY__RPC__AUTOSCALER__DRAIN_NODE_REQUEST__INIT;
  if (!wrong && !strcmp(reason, "DRAIN_NODE_REASON_IDLE_TERMINATION")) {
    request.reason = RAY__RPC__AUTOSCALER__DRAIN_NODE_REASON__DRAIN_NODE_REASON_IDLE_TERMINATION;
  } else if (!wrong && !strcmp(reason, "DRAIN_NODE_REASON_PREEMPTION")) {
    request.reason = RAY__RPC__AUTOSCALER__DRAIN_NODE_REASON__DRAIN_NODE_REASON_PREEMPTION;
  } else if (!wrong) {
    wrong = "Invalid value for '--reason'.";
  }
  if (wrong) {
    fprintf(stderr,
            "Usage: ray drain-node [OPTIONS]\nTry 'ray drain-node --help' for help.\n\nError: %s\n",
            wrong);
    return 2;
  }
  request.node_id = mob_pb_bytes(id, sizeof id);
  request.reason_message = (char *)message;
  if (deadline) request.deadline_timestamp_ms = mob_wall_ms() + 1000 * atoll(deadline);
  mob_cli_t cli;
  Ray__Rpc__Autoscaler__DrainNodeReply *reply = NULL;
  if (mob_cli_connect(&cli, address, CONNECT_TIMEOUT_MS) != MOB_OK) return fail(NULL);
  if (mob_cli_call(&cli, "/ray.rpc.autoscaler.AutoscalerStateService/DrainNode", &request,
                   &ray__rpc__autoscaler__drain_node_reply__descriptor, &reply) != MOB_OK) {
    return fail(&cli);
  }
  code = reply->is_accepted ? 0 : 1;
  if (code)
    fprintf(stderr, "Error: The drain request is not accepted: %s\n",
            reply->rejection_reason_message);
  mob_pb_free(reply);
  mob_cli_close(&cli);
  return code;
}
