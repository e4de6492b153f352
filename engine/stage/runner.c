#include "engine/stage/runner.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/comm/tcp.h"
#include "engine/stage/devices.h"
#include "engine/stage/dtype.h"
#include "runtime/base/clock.h"
#define MOB_LOG_COMPONENT "stage"
#include "runtime/base/log.h"
#include "runtime/base/mailbox.h"
#include "runtime/rpc/message.h"

typedef enum note_kind {
  NOTE_UP,       // `bytes` go to the gateway
  NOTE_JOB_DONE, // the blocking job ended; `bytes` go to the gateway
  NOTE_CLOSED,
} note_kind_t;

typedef struct note {
  note_kind_t kind;
  mob_buf_t bytes;
} note_t;

struct mob__runner {
  uv_loop_t *loop;
  mob__runner_events_t events;
  void *owner;
  Mobula__StageConfig *config;
  char ip[64];
  int *devices; // leased, by their place in the node's list
  size_t device_count;
  int *chosen; // [tp], of the backend; outlives the executor
  const mob_backend_t *backend;

  mob_mailbox_t *mailbox;
  uv_timer_t beat, watch;
  int timers; // open ones
  int silent_checks;
  bool end_reported;

  // The blocking job: these belong to its thread while it runs.
  pthread_t thread;
  bool busy, closing;                              // closing: the last thread runs or has run
  bool job_ok;                                     // of the job that ended last
  int jobs_done;                                   // successful ones: 1 opened, 2 loaded, 3 ready
  bool (*job)(mob__runner_t *r, mob_buf_t *reply); // writes a StageUp; false: a Failed
  mob_model_t *model;
  mob_ring_t *ring;
  mob_link_t *next, *prev; // around the ring
  char next_ip[64];
  int next_port;
  uint8_t group_id[MOB_GROUP_ID]; // of the stage, when it is in several processes
  uint64_t join_timeout_ms;
  int64_t pages;
  uint64_t load_total;

  _Atomic(mob_exec_t *) exec;
  atomic_bool aborting;
  _Atomic uint64_t loaded_bytes, last_step;

  mob__tables_t tables;
  mob__step_limits_t limits;
  void (*closed)(void *arg);
  void *closed_arg;
};

static void post(mob__runner_t *r, note_kind_t kind, mob_buf_t bytes) {
  note_t *note = MOB_NEW(note_t);
  note->kind = kind;
  note->bytes = bytes;
  mob_mailbox_post(r->mailbox, note);
}

static void put_failed(mob_buf_t *out, const char *cause, const char *why) {
  Mobula__Failed failed = MOBULA__FAILED__INIT;
  failed.cause = (char *)cause;
  failed.why = (char *)why;
  Mobula__StageUp up = MOBULA__STAGE_UP__INIT;
  up.message_case = MOBULA__STAGE_UP__MESSAGE_FAILED;
  up.failed = &failed;
  mob__wire_up(&up, out);
}

// ---------------------------------------------------------------------------------- blocking jobs

static bool has_others(const Mobula__StageConfig *c) {
  return c->ranks < c->tp;
}

static mob_status open_model(mob__runner_t *r, int *port) {
  const Mobula__StageConfig *c = r->config;
  mob_model_options_t options = {
      .dummy = c->dummy, .trust_lookup = true, .overrides = c->overrides[0] ? c->overrides : NULL};
  MOB_TRY(mob_model_open(c->model_dir, &options, &r->model));
  uint64_t mine = mob_model_fingerprint(r->model);
  if (mine != c->fingerprint)
    return mob_fail(
        MOB_E_INVALID,
        "the model in %s is not the same on all nodes: fingerprint %016llx at the gateway, "
        "%016llx on %s",
        c->model_dir, (unsigned long long)c->fingerprint, (unsigned long long)mine, r->ip);
  const mob_model_desc_t *desc = mob_model_desc(r->model);
  if (c->last_layer > (uint32_t)desc->n_layers)
    return mob_fail(MOB_E_INVALID, "layers [%u, %u) of %d", c->first_layer, c->last_layer,
                    desc->n_layers);
  r->limits.vocab = (uint32_t)desc->vocab;
  *port = 0;
  if (c->stages > 1 && c->first_rank == 0) MOB_TRY(mob_ring_open(r->ip, &r->ring, port));
  if (!r->backend) MOB_TRY(mob_backend_find(c->device, &r->backend));
  if (!has_others(c)) return MOB_OK;
  if (!r->backend->join)
    return mob_fail(MOB_E_UNSUPPORTED,
                    "the %s backend computes a stage in one pod, and --tensor-parallel-size %u "
                    "takes %u: use --pipeline-parallel-size between pods",
                    r->backend->name, c->tp, c->tp / c->ranks);
  return c->first_rank == 0 ? r->backend->group_id(r->group_id) : MOB_OK;
}

static bool job_open(mob__runner_t *r, mob_buf_t *reply) {
  int port;
  if (open_model(r, &port) != MOB_OK) {
    put_failed(reply, "start_failed", mob_errmsg());
    return false;
  }
  Mobula__Opened opened = MOBULA__OPENED__INIT;
  opened.ip = r->ip;
  opened.port = (uint32_t)port;
  opened.pid = (uint32_t)getpid();
  if (has_others(r->config) && r->config->first_rank == 0)
    opened.group_id = (ProtobufCBinaryData){sizeof r->group_id, r->group_id};
  Mobula__StageUp up = MOBULA__STAGE_UP__INIT;
  up.message_case = MOBULA__STAGE_UP__MESSAGE_OPENED;
  up.opened = &opened;
  mob__wire_up(&up, reply);
  return true;
}

static mob_status join_ring(mob__runner_t *r) {
  const Mobula__StageConfig *c = r->config;
  if (!r->ring) return MOB_OK;
  mob_ring_self_t self = {
      .epoch = c->epoch, .model = c->fingerprint, .stage = c->stage, .stages = c->stages};
  memcpy(self.group, c->group.data, sizeof self.group);
  return mob_ring_join(r->ring, r->next_ip, r->next_port, &self, r->join_timeout_ms, &r->next,
                       &r->prev);
}

// For a backend with devices; the others take none.
static mob_status choose_devices(mob__runner_t *r, int *devices, const int **out) {
  const Mobula__StageConfig *c = r->config;
  *out = NULL;
  if (strcmp(r->backend->name, "cuda") != 0) return MOB_OK;
  mob__device_ask_t ask = {.node = r->ip,
                           .stage = (int)c->stage,
                           .place = (int)(c->stage * (c->tp / c->ranks) + c->first_rank / c->ranks),
                           .places = (int)(c->stages * (c->tp / c->ranks)),
                           .tp = (int)c->ranks,
                           .leased = r->devices,
                           .leased_count = r->device_count,
                           .visible = r->backend->device_count()};
  if (ask.visible < 1) return MOB_E_UNSUPPORTED; // with the backend's reason
  *out = devices;
  return mob__stage_devices(&ask, devices);
}

static mob_status open_exec(mob__runner_t *r) {
  const Mobula__StageConfig *c = r->config;
  bool first = c->stage == 0, last = c->stage + 1 == c->stages;
  bool links = c->stages > 1 && c->first_rank == 0;
  mob_exec_spec_t spec = {
      .model = r->model,
      .first_layer = (int)c->first_layer,
      .last_layer = (int)c->last_layer,
      .tp = (int)c->tp,
      .ranks = (int)c->ranks,
      .first_rank = (int)c->first_rank,
      .expert_parallel = c->expert_parallel,
      .threads = (int)c->threads,
      .max_tokens = (int)c->max_tokens,
      .max_seqs = (int)c->slots,
      .max_len = (int)c->max_len,
      .eager = c->eager,
      .memory_share = c->memory_share,
      .prev = first ? NULL : r->prev,
      .next = last ? NULL : r->next,
      .ids = !links  ? NULL
             : first ? r->prev
             : last  ? r->next
                     : NULL,
      .link = &mob_link_tcp,
  };
  MOB_TRY(mob__dtypes(c->dtype, c->kv_cache_dtype, mob_model_desc(r->model), &spec));
  mob_exec_t *exec = NULL;
  r->chosen = MOB_NEW_ARRAY(int, c->ranks);
  MOB_TRY(choose_devices(r, r->chosen, &spec.devices));
  MOB_TRY(r->backend->open(&spec, &exec));
  atomic_store(&r->exec, exec);
  if (atomic_load(&r->aborting)) r->backend->abort(exec);
  return MOB_OK;
}

static void on_load_progress(void *arg, const mob_load_progress_t *p) {
  mob__runner_t *r = arg;
  // Reader threads may report out of order.
  uint64_t seen = atomic_load(&r->loaded_bytes);
  while (seen < p->bytes && !atomic_compare_exchange_weak(&r->loaded_bytes, &seen, p->bytes)) {
  }
}

static mob_status connect_and_load(mob__runner_t *r, mob_memory_plan_t *plan) {
  MOB_TRY(join_ring(r));
  MOB_TRY(open_exec(r));
  mob_exec_t *exec = atomic_load(&r->exec);
  if (has_others(r->config)) MOB_TRY(r->backend->join(exec, r->group_id, r->join_timeout_ms));
  MOB_TRY(r->backend->plan(exec, plan));
  if (plan->pages < 1)
    return mob_fail(MOB_E_NO_RESOURCES, "the model does not fit: %s", plan->text);
  return r->backend->load(exec, on_load_progress, r);
}

static bool job_load(mob__runner_t *r, mob_buf_t *reply) {
  uint64_t start = mob_now_ms();
  mob_memory_plan_t plan = {0};
  if (connect_and_load(r, &plan) != MOB_OK) {
    put_failed(reply, "start_failed", mob_errmsg());
    return false;
  }
  Mobula__Loaded loaded = MOBULA__LOADED__INIT;
  loaded.pages = plan.pages;
  loaded.bytes = atomic_load(&r->loaded_bytes);
  loaded.seconds = (double)(mob_now_ms() - start) / 1000;
  loaded.memory = plan.text;
  Mobula__StageUp up = MOBULA__STAGE_UP__INIT;
  up.message_case = MOBULA__STAGE_UP__MESSAGE_LOADED;
  up.loaded = &loaded;
  mob__wire_up(&up, reply);
  return true;
}

static bool job_allocate(mob__runner_t *r, mob_buf_t *reply) {
  if (r->backend->alloc_kv(atomic_load(&r->exec), r->pages) != MOB_OK) {
    put_failed(reply, "start_failed", mob_errmsg());
    return false;
  }
  Mobula__Ready ready = MOBULA__READY__INIT;
  Mobula__StageUp up = MOBULA__STAGE_UP__INIT;
  up.message_case = MOBULA__STAGE_UP__MESSAGE_READY;
  up.ready = &ready;
  mob__wire_up(&up, reply);
  return true;
}

static void *job_main(void *arg) {
  mob__runner_t *r = arg;
  mob_buf_t reply = {0};
  r->job_ok = r->job(r, &reply);
  post(r, NOTE_JOB_DONE, reply);
  return NULL;
}

static void *close_main(void *arg) {
  mob__runner_t *r = arg;
  mob_exec_t *exec = atomic_load(&r->exec);
  if (exec) r->backend->close(exec);
  mob_link_tcp.close(r->next);
  mob_link_tcp.close(r->prev);
  mob_ring_close(r->ring);
  mob_model_close(r->model);
  post(r, NOTE_CLOSED, (mob_buf_t){0});
  return NULL;
}

static void start_thread(mob__runner_t *r, void *(*run)(void *arg)) {
  r->busy = true;
  int rc = pthread_create(&r->thread, NULL, run, r);
  MOB_ASSERT(rc == 0);
}

static void start_job(mob__runner_t *r, bool (*job)(mob__runner_t *r, mob_buf_t *reply)) {
  r->job = job;
  start_thread(r, job_main);
}

// --------------------------------------------------------------------------------------- messages

static void send_up(mob__runner_t *r, const mob_buf_t *bytes) {
  if (r->closed) return;
  r->events.on_send(r->owner, (mob_bytes_t){bytes->data, bytes->len});
}

static void fail(mob__runner_t *r, const char *cause, const char *why) {
  MOB_ERROR("stage %u: %s", r->config->stage, why);
  mob_buf_t up = {0};
  put_failed(&up, cause, why);
  send_up(r, &up);
  mob_buf_free(&up);
}

static void report_end(mob__runner_t *r, bool lost, const char *why) {
  if (r->end_reported || r->closed) return;
  r->end_reported = true;
  r->events.on_end(r->owner, lost, why);
}

// On an executor thread.
static void on_step_done(void *arg, mob_status status, const char *why,
                         const mob_step_result_t *result) {
  mob__runner_t *r = arg;
  mob_buf_t up = {0};
  if (result) {
    atomic_store(&r->last_step, result->id);
    mob__wire_result(r->config->epoch, result, &up);
  } else if (atomic_load(&r->aborting)) {
    return;
  } else {
    put_failed(&up, status == MOB_E_UNAVAILABLE ? "peer_lost" : "step_failed", why);
  }
  post(r, NOTE_UP, up);
}

static void on_plan(mob__runner_t *r, const Mobula__StepPlan *plan) {
  if (plan->epoch != r->config->epoch) {
    MOB_WARN("a plan of epoch %llu was dropped, this is epoch %llu",
             (unsigned long long)plan->epoch, (unsigned long long)r->config->epoch);
    return;
  }
  if (r->jobs_done < 3) {
    fail(r, "step_failed", "a step came before the stage was ready");
    return;
  }
  mob_arena_t arena = {0};
  mob_step_t step;
  mob_status status = mob__wire_read_plan(&r->tables, &r->limits, plan, &arena, &step);
  if (status == MOB_OK) status = r->backend->step(atomic_load(&r->exec), &step, on_step_done, r);
  if (status != MOB_OK && status != MOB_E_ABORTED) fail(r, "step_failed", mob_errmsg());
  mob_arena_free(&arena);
}

static void on_connect(mob__runner_t *r, const Mobula__Connect *m) {
  snprintf(r->next_ip, sizeof r->next_ip, "%s", m->next_ip);
  r->next_port = (int)m->next_port;
  r->join_timeout_ms = m->timeout_ms;
  if (has_others(r->config) && m->group_id.len != MOB_GROUP_ID) {
    fail(r, "start_failed", "the gateway names no group for a stage in several pods");
    return;
  }
  if (m->group_id.len == MOB_GROUP_ID) memcpy(r->group_id, m->group_id.data, MOB_GROUP_ID);
  start_job(r, job_load);
}

static void on_allocate(mob__runner_t *r, const Mobula__Allocate *m) {
  r->pages = m->pages;
  r->limits.pages = m->pages;
  start_job(r, job_allocate);
}

static void dispatch(mob__runner_t *r, const Mobula__StageDown *down) {
  // Each of the two needs the job before it done, and well.
  int need = down->message_case == MOBULA__STAGE_DOWN__MESSAGE_CONNECT    ? 1
             : down->message_case == MOBULA__STAGE_DOWN__MESSAGE_ALLOCATE ? 2
                                                                          : 0;
  if (need && (r->busy || r->jobs_done != need)) {
    fail(r, "start_failed", "the gateway's messages came out of order");
    return;
  }
  switch (down->message_case) {
  case MOBULA__STAGE_DOWN__MESSAGE_PLAN:
    on_plan(r, down->plan);
    break;
  case MOBULA__STAGE_DOWN__MESSAGE_CONNECT:
    on_connect(r, down->connect);
    break;
  case MOBULA__STAGE_DOWN__MESSAGE_ALLOCATE:
    on_allocate(r, down->allocate);
    break;
  case MOBULA__STAGE_DOWN__MESSAGE_SHUTDOWN:
    report_end(r, false, "the gateway ended the group");
    break;
  default:
    break; // a beat
  }
}

void mob__runner_message(mob__runner_t *r, mob_bytes_t message) {
  if (r->closed) return;
  r->silent_checks = 0;
  Mobula__StageDown *down = NULL;
  if (mob_pb_unpack(&mobula__stage_down__descriptor, message.data, message.len, &down) != MOB_OK) {
    fail(r, "step_failed", mob_errmsg());
    return;
  }
  dispatch(r, down);
  mob_pb_free(down);
}

// --------------------------------------------------------------------------------------- the loop

static void on_beat(uv_timer_t *timer) {
  mob__runner_t *r = timer->data;
  Mobula__Beat beat = MOBULA__BEAT__INIT;
  beat.loaded_bytes = atomic_load(&r->loaded_bytes);
  beat.last_step = atomic_load(&r->last_step);
  Mobula__StageUp up = MOBULA__STAGE_UP__INIT;
  up.message_case = MOBULA__STAGE_UP__MESSAGE_BEAT;
  up.beat = &beat;
  mob_buf_t bytes = {0};
  mob__wire_up(&up, &bytes);
  send_up(r, &bytes);
  mob_buf_free(&bytes);
}

// Counts checks, not time: a process that was stopped for a while first reads what came meanwhile.
static void on_watch(uv_timer_t *timer) {
  mob__runner_t *r = timer->data;
  if (++r->silent_checks >= MOB__SILENCE_CHECKS)
    report_end(r, true, "the gateway has been silent for more than 4 s");
}

static void finish_close(mob__runner_t *r) {
  void (*closed)(void *) = r->closed;
  void *arg = r->closed_arg;
  mob_mailbox_close(r->mailbox);
  mob__tables_free(&r->tables);
  mob_pb_free(r->config);
  free(r->devices);
  free(r->chosen);
  free(r);
  closed(arg);
}

static void close_when_idle(mob__runner_t *r) {
  if (!r->closed || r->busy || r->timers || r->closing) return;
  r->closing = true;
  start_thread(r, close_main);
}

static void on_note(void *owner, void *message) {
  mob__runner_t *r = owner;
  note_t *note = message;
  note_kind_t kind = note->kind;
  if (kind != NOTE_UP) {
    pthread_join(r->thread, NULL);
    r->busy = false;
  }
  if (kind == NOTE_JOB_DONE && r->job_ok) r->jobs_done++;
  if (kind != NOTE_CLOSED) send_up(r, &note->bytes);
  mob_buf_free(&note->bytes);
  free(note);
  if (kind == NOTE_JOB_DONE) close_when_idle(r);
  if (kind == NOTE_CLOSED) finish_close(r);
}

static void on_timer_closed(uv_handle_t *handle) {
  mob__runner_t *r = handle->data;
  r->timers--;
  close_when_idle(r);
}

// --------------------------------------------------------------------------------------- lifetime

static mob_status check_config(const Mobula__StageConfig *c) {
  if (c->protocol != MOB__STAGE_PROTOCOL)
    return mob_fail(MOB_E_UNSUPPORTED,
                    "the gateway speaks version %u of the stage protocol, this node version %d: "
                    "install the same release everywhere",
                    c->protocol, MOB__STAGE_PROTOCOL);
  if (c->group.len != 16 || c->stage >= c->stages || c->tp < 1 || c->first_layer >= c->last_layer ||
      c->max_tokens < 1 || c->slots < 1 || c->max_len < 1 || c->ranks < 1 || c->tp % c->ranks != 0 ||
      c->first_rank % c->ranks != 0 || c->first_rank >= c->tp)
    return mob_fail(MOB_E_INVALID, "the configuration of stage %u of %u is not usable", c->stage,
                    c->stages);
  return MOB_OK;
}

mob_status mob__runner_new(uv_loop_t *loop, const mob__runner_spec_t *spec, mob_bytes_t config,
                           const mob__runner_events_t *events, void *owner, mob__runner_t **out) {
  Mobula__StageConfig *c = NULL;
  MOB_TRY(mob_pb_unpack(&mobula__stage_config__descriptor, config.data, config.len, &c));
  mob_status status = check_config(c);
  if (status != MOB_OK) {
    mob_pb_free(c);
    return status;
  }
  mob__runner_t *r = MOB_NEW(mob__runner_t);
  r->loop = loop;
  r->events = *events;
  r->owner = owner;
  r->config = c;
  snprintf(r->ip, sizeof r->ip, "%s", spec->ip);
  if (spec->device_count) {
    r->devices = MOB_NEW_ARRAY(int, spec->device_count);
    memcpy(r->devices, spec->devices, spec->device_count * sizeof(int));
    r->device_count = spec->device_count;
  }
  r->backend = spec->backend;
  r->limits = (mob__step_limits_t){.max_tokens = c->max_tokens, .max_len = c->max_len};
  mob__tables_init(&r->tables, c->slots);
  r->mailbox = mob_mailbox_new(loop, on_note, r);
  *out = r;
  return MOB_OK;
}

void mob__runner_start(mob__runner_t *r) {
  uv_timer_init(r->loop, &r->beat);
  uv_timer_init(r->loop, &r->watch);
  r->beat.data = r->watch.data = r;
  r->timers = 2;
  uv_timer_start(&r->beat, on_beat, 0, MOB__BEAT_MS);
  uv_timer_start(&r->watch, on_watch, MOB__SILENCE_CHECK_MS, MOB__SILENCE_CHECK_MS);
  start_job(r, job_open);
}

void mob__runner_close(mob__runner_t *r, void (*done)(void *arg), void *arg) {
  MOB_ASSERT(!r->closed);
  r->closed = done;
  r->closed_arg = arg;
  atomic_store(&r->aborting, true);
  mob_exec_t *exec = atomic_load(&r->exec);
  if (exec) r->backend->abort(exec);
  if (!r->busy) { // links, where there are any, belong to the executor
    if (r->next) mob_link_tcp.abort(r->next);
    if (r->prev) mob_link_tcp.abort(r->prev);
  } else if (r->job == job_load && r->ring) {
    mob_ring_abort(r->ring);
  }
  if (r->timers) {
    uv_close((uv_handle_t *)&r->beat, on_timer_closed);
    uv_close((uv_handle_t *)&r->watch, on_timer_closed);
  }
  close_when_idle(r);
}
