#include "engine/api/serve_cluster.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "engine/backend.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/node/session.h"
#define MOB_LOG_COMPONENT "vllm"
#include "runtime/base/log.h"

// ---------------------------------------------------------------------------------------------
// finding

// Whether something accepts connections there. Before the loop runs; the address is this machine's
// own.
static bool answers(const char *address, int timeout_ms) {
  const char *colon = strrchr(address, ':');
  if (!colon) return false;
  char *host = mob_strndup(address, (size_t)(colon - address));
  struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list = NULL;
  bool ok = false;
  char *name = host;
  if (*name == '[' && name[strlen(name) - 1] == ']') {
    name[strlen(name) - 1] = '\0';
    name++;
  }
  if (getaddrinfo(name, colon + 1, &hints, &list) == 0) {
    int fd = socket(list->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    ok = fd >= 0 && connect(fd, list->ai_addr, list->ai_addrlen) == 0;
    if (fd >= 0 && !ok && errno == EINPROGRESS) {
      struct pollfd p = {.fd = fd, .events = POLLOUT};
      int error = 0;
      socklen_t len = sizeof error;
      ok = poll(&p, 1, timeout_ms) == 1 &&
           getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len) == 0 && error == 0;
    }
    if (fd >= 0) close(fd);
    freeaddrinfo(list);
  }
  free(host);
  return ok;
}

mob_status mob__cluster_find(char **out) {
  *out = NULL;
  const char *env = getenv("RAY_ADDRESS");
  if (env && *env && strcmp(env, "auto") != 0 && strcmp(env, "local") != 0) {
    if (strstr(env, "://") || !strchr(env, ':')) {
      return mob_fail(MOB_E_INVALID, "RAY_ADDRESS=%s: the address of a GCS is HOST:PORT", env);
    }
    *out = mob_strdup(env);
    return MOB_OK;
  }
  if (env && strcmp(env, "local") == 0) return MOB_OK;
  char *temp = mob_temp_dir(NULL), *address = NULL;
  mob_status status = mob_current_cluster_read(temp, &address);
  free(temp);
  if (status == MOB_OK && answers(address, 1000)) {
    *out = address;
    return MOB_OK;
  }
  bool group = getenv("LWS_GROUP_SIZE") && atoi(getenv("LWS_GROUP_SIZE")) > 1;
  mob_status result = MOB_OK;
  if (status == MOB_OK) MOB_INFO("no cluster answers at %s any more", address);
  if (group) {
    result =
        mob_fail(MOB_E_UNAVAILABLE,
                 "this pod belongs to a group of %s, but no cluster runs here: did ray_init.sh "
                 "leader fail?",
                 getenv("LWS_GROUP_SIZE"));
  }
  free(address);
  return result;
}

// ---------------------------------------------------------------------------------------------
// judging

// How many processes of `ranks` GPUs the nodes have room for.
static size_t room(const double *gpus, size_t count, int ranks) {
  size_t fit = 0;
  for (size_t i = 0; i < count; i++) fit += (size_t)(gpus[i] / ranks);
  return fit;
}

// The fewest pods that a stage can be in, all with as many ranks; 0: there is no way.
static int parts_of(const double *gpus, size_t count, int tp, int pp, bool may_span) {
  for (int parts = 1; parts <= (may_span ? tp : 1); parts++)
    if (tp % parts == 0 && room(gpus, count, tp / parts) >= (size_t)(parts * pp)) return parts;
  return 0;
}

mob_status mob__cluster_judge(const double *gpus, size_t count, size_t wanted, int tp, int pp,
                              bool may_span, int *parts) {
  double total = 0, most = 0;
  size_t with = 0; // nodes that have GPUs
  for (size_t i = 0; i < count; i++) {
    total += gpus[i];
    if (gpus[i] > 0) with++;
    if (gpus[i] > most) most = gpus[i];
  }
  *parts = parts_of(gpus, count, tp, pp, may_span);
  long long need = (long long)tp * pp, have = (long long)total;
  if (count < wanted) {
    return mob_fail(MOB_E_UNAVAILABLE, "%zu of %zu nodes and %lld GPUs are there", count, wanted,
                    have);
  }
  if (have == 0) { // every stage runs on its node's CPUs
    *parts = 1;
    return MOB_OK;
  }
  bool whole = wanted > 0;
  if (tp > most && need <= have && !may_span) {
    int fitting = (int)most;
    while (fitting > 1 && need % fitting != 0) fitting--;
    return mob_fail(MOB_E_INVALID,
                    "tensor parallel size %d does not fit a pod of %d GPUs, and only the CUDA "
                    "backend computes a stage in several pods: use -tp %d -pp %lld",
                    tp, (int)most, fitting, need / fitting);
  }
  if (need > have || *parts == 0) {
    if (!whole) {
      return mob_fail(MOB_E_UNAVAILABLE, "%lld of %lld GPUs are there, on %zu nodes", have, need,
                      count);
    }
    return mob_fail(
        MOB_E_INVALID,
        "tensor x pipeline parallel size is %d x %d = %lld GPUs, but the group has %lld on "
        "%zu nodes: use -tp %d -pp %zu",
        tp, pp, need, have, count, (int)most, with);
  }
  if (have % need != 0) {
    return mob_fail(
        MOB_E_INVALID,
        "tensor x pipeline parallel size is %d x %d = %lld GPUs, which is no divisor of the "
        "group's %lld: use -tp %d -pp %zu",
        tp, pp, need, have, (int)most, with);
  }
  return MOB_OK;
}

// ---------------------------------------------------------------------------------------------
// waiting

struct mob__cluster_wait {
  uv_loop_t *loop;
  char *address, *missing; // what was missing when it was last looked at
  int tp, pp;
  const char *device;
  int *parts;
  size_t wanted;
  uint64_t deadline, told;
  uv_timer_t timer;
  mob_cluster_t *cluster;
  bool connected, asking, ended;
  mob_done_fn done;
  void *arg;
};

static void look(mob__cluster_wait_t *w);

static void on_timer_closed(uv_handle_t *handle) {
  mob__cluster_wait_t *w = handle->data;
  free(w->address);
  free(w->missing);
  free(w);
}

static void on_closed(void *arg, mob_status status, const char *why) {
  (void)status, (void)why;
  mob__cluster_wait_t *w = arg;
  uv_close((uv_handle_t *)&w->timer, on_timer_closed);
}

static void release(mob__cluster_wait_t *w) {
  w->ended = true;
  uv_timer_stop(&w->timer);
  mob_cluster_t *cluster = w->cluster;
  w->cluster = NULL;
  if (cluster)
    mob_cluster_close(cluster, on_closed, w);
  else
    on_closed(w, MOB_OK, NULL);
}

static void end(mob__cluster_wait_t *w, mob_status status, const char *why) {
  if (w->ended) return;
  mob_done_fn done = w->done;
  void *arg = w->arg;
  char *text = why ? mob_strdup(why) : NULL;
  release(w);
  done(arg, status, text);
  free(text);
}

static void note_missing(mob__cluster_wait_t *w, const char *text) {
  if (!w->missing || strcmp(w->missing, text) != 0) {
    free(w->missing);
    w->missing = mob_strdup(text);
    w->told = 0;
  }
  if (mob_now_ms() < w->told + 10000) return;
  w->told = mob_now_ms();
  MOB_INFO("waiting for the group at %s: %s (%.0f s left)", w->address, text,
           (double)(w->deadline > w->told ? w->deadline - w->told : 0) / 1000);
}

// This pod has what the others have. Asked only where it matters: CUDA takes a while to look.
static bool can_span(const char *device) {
  const mob_backend_t *backend = NULL;
  return mob_backend_find(device, &backend) == MOB_OK && backend->join;
}

static void on_nodes(void *arg, mob_status status, const char *why, const mob_node_info_t *nodes,
                     size_t count) {
  mob__cluster_wait_t *w = arg;
  w->asking = false;
  if (w->ended) return;
  if (status != MOB_OK) {
    note_missing(w, why);
    return;
  }
  double *gpus = MOB_NEW_ARRAY(double, count + 1);
  size_t alive = 0;
  for (size_t i = 0; i < count; i++) {
    if (nodes[i].alive) gpus[alive++] = nodes[i].gpus;
  }
  mob_status verdict =
      mob__cluster_judge(gpus, alive, w->wanted, w->tp, w->pp, false, w->parts);
  if (verdict == MOB_E_INVALID) { // judged again in any case: looking leaves a message of its own
    const bool spans = can_span(w->device);
    verdict = mob__cluster_judge(gpus, alive, w->wanted, w->tp, w->pp, spans, w->parts);
  }
  free(gpus);
  if (verdict == MOB_E_UNAVAILABLE)
    note_missing(w, mob_errmsg());
  else
    end(w, verdict, verdict == MOB_OK ? NULL : mob_errmsg());
}

static void look(mob__cluster_wait_t *w) {
  if (w->ended || !w->connected || w->asking) return;
  w->asking = true;
  mob_cluster_nodes(w->cluster, on_nodes, w);
}

static void on_alive(void *owner, const uint8_t node_id[MOB_NODE_ID_LEN], const char *ip) {
  (void)node_id, (void)ip;
  look(owner);
}

static void on_lost(void *owner, const char *why) {
  mob__cluster_wait_t *w = owner;
  char *text = mob_sprintf("the cluster at %s is gone: %s", w->address, why);
  end(w, MOB_E_UNAVAILABLE, text);
  free(text);
}

static const mob_cluster_events_t cluster_events = {.on_node_alive = on_alive, .on_lost = on_lost};

static void on_connected(void *arg, mob_status status, const char *why);

static void try_connect(mob__cluster_wait_t *w) {
  if (mob_cluster_connect(w->loop, w->address, &cluster_events, w, on_connected, w, &w->cluster) ==
      MOB_OK)
    return;
  w->cluster = NULL;
  note_missing(w, mob_errmsg());
}

static void on_connected(void *arg, mob_status status, const char *why) {
  mob__cluster_wait_t *w = arg;
  if (w->ended) return;
  if (status == MOB_OK) {
    w->connected = true;
    look(w);
    return;
  }
  note_missing(w, why);
  mob_cluster_t *cluster = w->cluster;
  w->cluster = NULL;
  if (cluster) mob_cluster_close(cluster, NULL, NULL); // the timer tries again
}

static void on_tick(uv_timer_t *timer) {
  mob__cluster_wait_t *w = timer->data;
  if (mob_now_ms() >= w->deadline) {
    char *text = mob_sprintf(
        "the group is incomplete: %s. Look at the logs of the pods that are missing, or wait "
        "longer with --ready-timeout.",
        w->missing ? w->missing : "the cluster does not answer");
    end(w, MOB_E_TIMEOUT, text);
    free(text);
    return;
  }
  if (!w->cluster)
    try_connect(w);
  else
    look(w);
}

mob_status mob__cluster_wait(uv_loop_t *loop, const char *address, int tp, int pp,
                             const char *device, uint64_t timeout_ms, mob_done_fn done,
                             void *arg, int *parts, mob__cluster_wait_t **out) {
  mob__cluster_wait_t *w = MOB_NEW(mob__cluster_wait_t);
  const char *size = getenv("LWS_GROUP_SIZE");
  *w = (mob__cluster_wait_t){.loop = loop,
                             .address = mob_strdup(address),
                             .tp = tp,
                             .pp = pp,
                             .device = device,
                             .parts = parts,
                             .done = done,
                             .arg = arg,
                             .wanted = size && atoi(size) > 0 ? (size_t)atoi(size) : 0,
                             .deadline = mob_now_ms() + timeout_ms};
  uv_timer_init(loop, &w->timer);
  w->timer.data = w;
  uv_timer_start(&w->timer, on_tick, 0, 250);
  *out = w;
  return MOB_OK;
}

void mob__cluster_wait_cancel(mob__cluster_wait_t *w) {
  if (!w->ended) release(w);
}

void mob__cluster_end_head(const char *address) {
  mob_node_records_t records = {0};
  char *temp = mob_temp_dir(NULL);
  if (mob_node_records_list(temp, &records) == MOB_OK) {
    for (size_t i = 0; i < records.len; i++) {
      const mob_node_record_t *r = &records.at[i];
      if (r->head && strcmp(r->address, address) == 0 && mob_process_alive(r->process))
        kill(r->process.pid, SIGTERM);
    }
  }
  mob_node_records_free(&records);
  free(temp);
}
