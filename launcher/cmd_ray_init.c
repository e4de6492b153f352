// ray_init.sh: brings a pod of a group into its cluster. The leader starts the head in the
// background and returns when all nodes are there; the worker is its node daemon, and stays.

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "launcher/cmd_ray.h"
#include "runtime/base/clock.h"
#include "runtime/base/hex.h"
#include "runtime/base/vec.h"
#include "runtime/node/init_options.h"
#include "runtime/node/node.h"
#include "runtime/node/say.h"
#include "runtime/node/session.h"
#include "runtime/rpc/message.h"

#define REPEAT_MS 5000 // how often the wait says that it waits

static const char help[] =
    "Usage: ray_init.sh leader --ray_cluster_size=N [--ray_port=6379] [--ray_init_timeout=300] "
    "[flags of ray start]\n"
    "       ray_init.sh worker --ray_address=HOST [--ray_port=6379] [--ray_init_timeout=300] "
    "[flags of ray start]\n\n"
    "leader starts the head, leaves it running and returns as soon as N nodes are there.\n"
    "worker joins the head as soon as it answers and stays in front; it exits with 1 when the head "
    "is lost.\n"
    "The time-out is in seconds.\n";

static void print(const char *text) {
  puts(text);
  fflush(stdout);
}

// --------------------------------------------------------------------------------------------------
// leader

typedef struct leader {
  uv_loop_t loop;
  mob_rpc_t *rpc;
  mob_gcs_client_t *gcs;
  uv_timer_t deadline, repeat;
  int wanted, alive;
  MOB_VEC(char *) nodes; // hex ids of the living
  bool done;
  int code;
} leader_t;

static void leader_end(leader_t *leader, int code, const char *text) {
  if (leader->done) return;
  leader->done = true;
  leader->code = code;
  print(text);
  uv_close((uv_handle_t *)&leader->deadline, NULL);
  uv_close((uv_handle_t *)&leader->repeat, NULL);
  mob_gcs_client_close(leader->gcs);
  mob_rpc_close(leader->rpc, NULL, NULL);
}

static void leader_progress(leader_t *leader) {
  printf("Wait for all ray workers to be active. %d/%d is active\n", leader->alive, leader->wanted);
  fflush(stdout);
  uv_timer_again(&leader->repeat);
}

static void leader_node(leader_t *leader, const ProtobufCBinaryData *id, bool alive) {
  char hex[2 * 28 + 1];
  if (id->len != 28) return;
  mob_hex(id->data, id->len, hex);
  for (size_t i = 0; i < leader->nodes.len; i++) {
    if (strcmp(leader->nodes.at[i], hex) != 0) continue;
    if (alive) return;
    free(leader->nodes.at[i]);
    mob_vec_remove(&leader->nodes, i);
    return;
  }
  if (alive) *mob_vec_push(&leader->nodes) = mob_strdup(hex);
}

static void leader_check(leader_t *leader) {
  if (leader->done || leader->alive == (int)leader->nodes.len) return;
  leader->alive = (int)leader->nodes.len;
  if (leader->alive >= leader->wanted) {
    leader_end(leader, 0,
               "All ray workers are active and the ray cluster is initialized successfully.");
  } else {
    leader_progress(leader);
  }
}

static bool is_alive(const Ray__Rpc__GcsNodeInfo *node) {
  return node->state == RAY__RPC__GCS_NODE_INFO__GCS_NODE_STATE__ALIVE;
}

static void on_message(void *owner, const Ray__Rpc__PubMessage *message) {
  leader_t *leader = owner;
  if (message->inner_message_case != RAY__RPC__PUB_MESSAGE__INNER_MESSAGE_NODE_INFO_MESSAGE) return;
  leader_node(leader, &message->node_info_message->node_id, is_alive(message->node_info_message));
  leader_check(leader);
}

static void on_nodes(void *arg, mob_status status, const char *why, const void *reply_message) {
  leader_t *leader = arg;
  const Ray__Rpc__GetAllNodeInfoReply *reply = reply_message;
  if (leader->done) return;
  if (status != MOB_OK) {
    char *text = mob_sprintf("The head does not tell its nodes: %s", why);
    leader_end(leader, 1, text);
    free(text);
    return;
  }
  for (size_t i = 0; i < reply->n_node_info_list; i++) {
    leader_node(leader, &reply->node_info_list[i]->node_id, is_alive(reply->node_info_list[i]));
  }
  leader_check(leader);
}

static void on_subscribed(void *arg, mob_status status, const char *why, const void *reply) {
  leader_t *leader = arg;
  (void)status;
  (void)why;
  (void)reply;
  if (leader->done) return;
  Ray__Rpc__GetAllNodeInfoRequest request = RAY__RPC__GET_ALL_NODE_INFO_REQUEST__INIT;
  mob_gcs_call(leader->gcs, "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo", &request,
               &ray__rpc__get_all_node_info_reply__descriptor, 10000, on_nodes, leader);
}

static void on_connected(void *arg, mob_status status, const char *why) {
  leader_t *leader = arg;
  (void)why;
  if (leader->done || status != MOB_OK) return; // the deadline says it
  mob_gcs_subscribe(leader->gcs, RAY__RPC__CHANNEL_TYPE__GCS_NODE_INFO_CHANNEL, NULL, 0,
                    on_subscribed, leader);
}

static void on_lost(void *owner, const char *why) {
  char *text = mob_sprintf("The head ended while its workers were awaited: %s", why);
  leader_end(owner, 1, text);
  free(text);
}

static void on_deadline(uv_timer_t *timer) {
  leader_end(timer->data, 1, "Waiting for all ray workers to be active timed out.");
}

static void on_repeat(uv_timer_t *timer) {
  leader_progress(timer->data);
}

static const mob_gcs_client_events_t leader_events = {on_lost, NULL, on_message};

static int wait_for_nodes(const char *address, int wanted, uint64_t timeout_ms) {
  leader_t leader = {.wanted = wanted};
  uv_loop_init(&leader.loop);
  uv_timer_init(&leader.loop, &leader.deadline);
  uv_timer_init(&leader.loop, &leader.repeat);
  leader.deadline.data = leader.repeat.data = &leader;
  uv_timer_start(&leader.deadline, on_deadline, timeout_ms, 0);
  uv_timer_start(&leader.repeat, on_repeat, REPEAT_MS, REPEAT_MS);
  if (mob_rpc_new(&leader.loop, &leader.rpc) != MOB_OK ||
      mob_gcs_client_new(leader.rpc, address, 0, &leader_events, &leader, on_connected, &leader,
                         &leader.gcs) != MOB_OK) {
    fprintf(stderr, "Error: %s\n", mob_errmsg());
    return 1;
  }
  uv_run(&leader.loop, UV_RUN_DEFAULT);
  uv_loop_close(&leader.loop);
  for (size_t i = 0; i < leader.nodes.len; i++) free(leader.nodes.at[i]);
  mob_vec_free(&leader.nodes);
  return leader.code;
}

// The address of the head that holds our port: as it told this machine, else the loopback's.
static char *running_head(const mob_start_options_t *options) {
  char *temp_dir = mob_temp_dir(options->temp_dir), *address = NULL, *host = NULL;
  int port = -1;
  bool known = mob_current_cluster_read(temp_dir, &address) == MOB_OK &&
               mob_split_address(address, &host, &port) == MOB_OK && port == options->port;
  free(host);
  free(temp_dir);
  if (known) return address;
  free(address);
  return mob_sprintf("%s:%d", options->node_ip_address ? options->node_ip_address : "127.0.0.1",
                     options->port);
}

static int run_leader(const mob_init_options_t *init, const mob_start_options_t *options, int argc,
                      char **argv) {
  uint64_t begin = mob_now_ms(), timeout_ms = (uint64_t)init->timeout_s * 1000;
  mob_daemon_t daemon;
  char *address = NULL;
  mob_status status = mob_daemon_start(argc, argv, true, &daemon);
  if (status == MOB_OK) {
    mob_say_started(options, daemon.ip, daemon.address);
    address = mob_strdup(daemon.address);
  } else if (status == MOB_E_EXISTS) {
    // The container was started again in a pod whose head lives: that one serves.
    fprintf(stderr, "%s\n", mob_errmsg());
    address = running_head(options);
  } else {
    fprintf(stderr, "Error: the head did not start: %s\n", mob_errmsg());
    mob_daemon_free(&daemon);
    return 1;
  }
  uint64_t spent = mob_now_ms() - begin;
  int code =
      wait_for_nodes(address, init->cluster_size, spent < timeout_ms ? timeout_ms - spent : 1);
  free(address);
  mob_daemon_free(&daemon);
  return code;
}

// --------------------------------------------------------------------------------------------------
// worker

typedef struct worker {
  const mob_start_options_t *options;
  const char *address;
  bool ready;
} worker_t;

static void on_ready(void *arg, mob_node_t *node) {
  worker_t *worker = arg;
  worker->ready = true;
  mob_say_started(worker->options, mob_node_ip_address(node), mob_node_gcs_address(node));
  printf("Worker: Ray runtime started with head address %s\n", worker->address);
  fflush(stdout);
}

static int run_worker(const mob_init_options_t *init, mob_start_options_t *options) {
  uint64_t begin = mob_now_ms(), timeout_ms = (uint64_t)init->timeout_s * 1000;
  worker_t worker = {.options = options, .address = options->address};
  char *why = NULL;
  options->log_to_stderr = true;
  print("Waiting until the ray worker is active...");
  int code = mob_node_run(options, timeout_ms ? timeout_ms : 1, on_ready, &worker, &why);
  if (code && !worker.ready && mob_now_ms() - begin >= timeout_ms) {
    printf("Ray worker starts timeout, head address: %s\n", worker.address);
    fflush(stdout);
  }
  if (code && why) fprintf(stderr, "%s\n", why);
  free(why);
  return code;
}

int mob_ray_init_main(int argc, char **argv) {
  mob_init_options_t init;
  mob_start_options_t options;
  MOB_VEC(char *) args = {0};
  char *role = NULL, *target = NULL;
  int code = 1;
  mob_start_options_init(&options);
  if (mob_init_options_parse(&init, argc, argv) != MOB_OK) {
    print(mob_errmsg());
    goto cleanup;
  }
  if (init.help) {
    fputs(help, stdout);
    code = 0;
    goto cleanup;
  }
  if (init.leader) {
    role = mob_strdup("--head");
    target = mob_sprintf("--port=%d", init.port);
  } else {
    bool bare6 = strchr(init.ray_address, ':') && *init.ray_address != '[';
    role = mob_strdup("--block");
    target = bare6 ? mob_sprintf("--address=[%s]:%d", init.ray_address, init.port)
                   : mob_sprintf("--address=%s:%d", init.ray_address, init.port);
  }
  *mob_vec_push(&args) = "ray start";
  *mob_vec_push(&args) = role;
  *mob_vec_push(&args) = target;
  for (size_t i = 0; i < init.extra.len; i++) *mob_vec_push(&args) = init.extra.at[i];
  if (mob_start_options_parse(&options, (int)args.len, args.at) != MOB_OK ||
      mob_start_options_check(&options) != MOB_OK) {
    fprintf(stderr, "%s\n", mob_errmsg());
    goto cleanup;
  }
  mob_say_setup(options.log_style, options.color);
  if (options.ignored.len) {
    MOB_SAY_WARNING("Accepted without effect, since nothing here has what they set: %s",
                    mob_buf_cstr(&options.ignored));
  }
  code = init.leader ? run_leader(&init, &options, (int)args.len, args.at)
                     : run_worker(&init, &options);
cleanup:
  free(role);
  free(target);
  mob_vec_free(&args);
  mob_start_options_free(&options);
  mob_init_options_free(&init);
  return code;
}
