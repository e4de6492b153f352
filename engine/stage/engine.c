// The group's life: start of the stages, loading, readiness, loss, stop.
#include "engine/stage/engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/stage/engine_internal.h"
#include "engine/stage/runner.h"
#include "runtime/base/clock.h"
#include "runtime/base/hex.h"
#define MOB_LOG_COMPONENT "engine"
#include "runtime/base/log.h"
#include "runtime/base/utf8.h"
#include "runtime/rpc/message.h"

enum {
  DEFAULT_START_TIMEOUT_MS = 300000,
  JOIN_TIMEOUT_MS = 60000,
  PEER_GRACE_MS = 80, // for the true cause of what a neighbour noticed
  SILENT_FOR_MS = 1500,
};

void mob__engine_send(mob_engine_t *e, int stage, const Mobula__StageDown *message) {
  e->out.len = 0;
  mob__wire_down(message, &e->out);
  e->transport->send(e->link, stage, (mob_bytes_t){e->out.data, e->out.len});
}

static void send_beat(mob_engine_t *e) {
  Mobula__Beat beat = MOBULA__BEAT__INIT;
  Mobula__StageDown down = MOBULA__STAGE_DOWN__INIT;
  down.message_case = MOBULA__STAGE_DOWN__MESSAGE_BEAT;
  down.beat = &beat;
  for (int s = 0; s < e->actors; s++) mob__engine_send(e, s, &down);
}

static void send_shutdown(mob_engine_t *e) {
  Mobula__Shutdown shutdown = MOBULA__SHUTDOWN__INIT;
  Mobula__StageDown down = MOBULA__STAGE_DOWN__INIT;
  down.message_case = MOBULA__STAGE_DOWN__MESSAGE_SHUTDOWN;
  down.shutdown = &shutdown;
  for (int s = 0; s < e->actors; s++) mob__engine_send(e, s, &down);
}

static void progress(mob_engine_t *e, const char *phase, uint64_t bytes) {
  if (e->events.on_progress) e->events.on_progress(e->owner, phase, bytes, e->total_bytes);
}

// ------------------------------------------------------------------------------------------- loss

static void describe(const mob_engine_t *e, int stage, char *text, size_t size) {
  const mob__stage_t *s = &e->stages[stage];
  char ip[64] = "";
  int pid = 0;
  if (e->link) e->transport->describe(e->link, stage, ip, &pid);
  if (s->pid) pid = s->pid;
  int n = snprintf(text, size, "stage %d of %d", stage / e->parts, e->config.pp);
  int ranks = e->config.tp / e->parts, first = stage % e->parts * ranks;
  if (e->parts > 1)
    n += snprintf(text + n, size - (size_t)n, ", ranks %d-%d of %d", first, first + ranks - 1,
                  e->config.tp);
  if (!ip[0] && !s->ip[0]) return;
  n += snprintf(text + n, size - (size_t)n, " (%s, pid %d", ip[0] ? ip : s->ip, pid);
  if (s->heard_ms)
    n += snprintf(text + n, size - (size_t)n, ", last heard of %.1f s ago",
                  (double)(mob_now_ms() - s->heard_ms) / 1000);
  snprintf(text + n, size - (size_t)n, ")");
}

void mob__engine_lose(mob_engine_t *e, int stage, const char *cause, const char *why) {
  if (e->state >= MOB__ENGINE_LOST) return;
  bool started = e->state == MOB__ENGINE_READY;
  char who[256] = "the group", text[1024];
  if (stage >= 0) describe(e, stage, who, sizeof who);
  mob_utf8_format(text, sizeof text, "%s %s: %s (cause %s, epoch %llu)", who,
                  started ? "was lost" : "failed to start", why, cause,
                  (unsigned long long)e->epoch);
  e->state = MOB__ENGINE_LOST;
  MOB_ERROR("%s", text);
  if (e->link) send_shutdown(e); // the others do not wait for it
  mob__engine_end_all(e, MOB_FINISH_LOST, text);
  if (e->state == MOB__ENGINE_LOST) e->events.on_lost(e->owner, cause, text);
}

// Parts of one stage, and neighbours on the ring.
static bool works_with(const mob_engine_t *e, int a, int b) {
  int pp = e->config.pp, from = a / e->parts, to = b / e->parts;
  if (a == b) return false;
  if (from == to) return true;
  bool first = a % e->parts == 0 && b % e->parts == 0;
  return first && (to == (from + 1) % pp || from == (to + 1) % pp);
}

static void on_peer_grace(uv_timer_t *timer) {
  mob_engine_t *e = timer->data;
  // Nothing said more: blame the one it works with that has been quiet for longest.
  int said = e->peer_lost_stage, peer = -1;
  for (int a = 0; a < e->actors; a++)
    if (works_with(e, said, a) && (peer < 0 || e->stages[a].heard_ms < e->stages[peer].heard_ms))
      peer = a;
  if (peer < 0) peer = said;
  bool silent = mob_now_ms() - e->stages[peer].heard_ms > SILENT_FOR_MS;
  mob__engine_lose(e, peer, silent ? "silent" : "actor_died", e->peer_lost);
}

// A stage that sees its neighbour vanish often says so before the neighbour's own end is known
// here.
static void on_peer_lost(mob_engine_t *e, int stage, const char *why) {
  if (e->peer_lost[0] || e->state >= MOB__ENGINE_LOST) return;
  mob_utf8_format(e->peer_lost, sizeof e->peer_lost, "stage %d: %s", stage / e->parts, why);
  e->peer_lost_stage = stage;
  uv_timer_start(&e->peer_grace, on_peer_grace, PEER_GRACE_MS, 0);
}

static void on_transport_lost(void *owner, int stage, const char *cause, const char *why) {
  mob_engine_t *e = owner;
  // A connection that breaks after a while of silence was not broken by a death.
  bool silent = stage >= 0 && strcmp(cause, "actor_died") == 0 && e->stages[stage].heard_ms &&
                mob_now_ms() - e->stages[stage].heard_ms > SILENT_FOR_MS;
  mob__engine_lose(e, stage, silent ? "silent" : cause, why);
}

// ---------------------------------------------------------------------------------------- loading

static bool all(const mob_engine_t *e, size_t flag_offset) {
  for (int s = 0; s < e->actors; s++)
    if (!*(const bool *)((const char *)&e->stages[s] + flag_offset)) return false;
  return true;
}

static void connect_stages(mob_engine_t *e) {
  e->state = MOB__ENGINE_OPENED;
  progress(e, "loading", 0);
  for (int s = 0; s < e->actors; s++) {
    const mob__stage_t *next = &e->stages[(s + e->parts) % e->actors];
    Mobula__Connect connect = MOBULA__CONNECT__INIT;
    connect.next_ip = (char *)next->ip;
    connect.next_port = s % e->parts == 0 ? (uint32_t)next->port : 0;
    connect.timeout_ms = JOIN_TIMEOUT_MS;
    if (e->parts > 1)
      connect.group_id = (ProtobufCBinaryData){MOB_GROUP_ID, e->group_ids[s / e->parts].bytes};
    Mobula__StageDown down = MOBULA__STAGE_DOWN__INIT;
    down.message_case = MOBULA__STAGE_DOWN__MESSAGE_CONNECT;
    down.connect = &connect;
    mob__engine_send(e, s, &down);
  }
}

// As many pages as the smallest stage has room for, and no more than sequences can ever fill four
// times over.
static int64_t choose_pages(const mob_engine_t *e) {
  if (e->config.pages > 0) return e->config.pages;
  int64_t pages = INT64_MAX;
  for (int s = 0; s < e->actors; s++)
    if (e->stages[s].pages < pages) pages = e->stages[s].pages;
  int64_t per_seq = (e->config.max_len + MOB_PAGE_TOKENS - 1) / MOB_PAGE_TOKENS;
  int64_t useful = 4 * per_seq * e->config.max_seqs;
  return pages < useful ? pages : useful;
}

static void allocate(mob_engine_t *e) {
  e->state = MOB__ENGINE_ALLOCATING;
  int64_t pages = choose_pages(e);
  for (int s = 0; s < e->actors; s++) {
    e->stages[s].pages = pages;
    Mobula__Allocate m = MOBULA__ALLOCATE__INIT;
    m.pages = pages;
    Mobula__StageDown down = MOBULA__STAGE_DOWN__INIT;
    down.message_case = MOBULA__STAGE_DOWN__MESSAGE_ALLOCATE;
    down.allocate = &m;
    mob__engine_send(e, s, &down);
  }
}

// Of the model's files: every part of a stage counts the stage's.
static uint64_t loaded_bytes(const mob_engine_t *e) {
  uint64_t bytes = 0;
  for (int s = 0; s < e->actors; s++) bytes += e->stages[s].loaded_bytes;
  return bytes / (uint64_t)e->parts;
}

static void become_ready(mob_engine_t *e) {
  const mob_engine_config_t *c = &e->config;
  mob_sched_config_t config = {
      .pages = e->stages[0].pages,
      .max_seqs = c->max_seqs,
      .max_tokens = c->max_batched_tokens,
      .max_len = c->max_len,
      .stages = c->pp,
      .depth = c->pp + 1,
      .ids_on_device = true,
      .chunked_prefill = c->chunked_prefill,
      .prefix_cache = c->prefix_cache,
      .policy = c->priority_policy ? MOB_SCHED_PRIORITY : MOB_SCHED_FCFS,
  };
  mob_random(&config.hash_seed, sizeof config.hash_seed);
  if (mob_sched_new(&config, &e->sched) != MOB_OK) {
    mob__engine_lose(e, -1, "start_failed", mob_errmsg());
    return;
  }
  mob__tables_init(&e->tables, mob_sched_slots(&config));
  e->state = MOB__ENGINE_READY;
  mob_engine_info_t info = {.pages = config.pages};
  info.load_bytes = loaded_bytes(e);
  for (int s = 0; s < e->actors; s++) {
    if (e->stages[s].load_seconds > info.load_seconds)
      info.load_seconds = e->stages[s].load_seconds;
  }
  progress(e, "ready", info.load_bytes);
  e->events.on_ready(e->owner, &info);
}

static void report_loading(mob_engine_t *e) {
  progress(e, "loading", loaded_bytes(e));
}

static void on_opened(mob_engine_t *e, mob__stage_t *stage, const Mobula__Opened *m) {
  stage->opened = true;
  snprintf(stage->ip, sizeof stage->ip, "%s", m->ip);
  stage->port = (int)m->port;
  stage->pid = (int)m->pid;
  int index = (int)(stage - e->stages);
  if (e->parts > 1 && index % e->parts == 0) {
    if (m->group_id.len != MOB_GROUP_ID) {
      mob__engine_lose(e, index, "start_failed", "it names no group for the others of its stage");
      return;
    }
    memcpy(e->group_ids[index / e->parts].bytes, m->group_id.data, MOB_GROUP_ID);
  }
  if (e->state == MOB__ENGINE_STARTING && all(e, offsetof(mob__stage_t, opened))) connect_stages(e);
}

static void on_loaded(mob_engine_t *e, mob__stage_t *stage, const Mobula__Loaded *m) {
  stage->loaded = true;
  stage->pages = m->pages;
  stage->loaded_bytes = m->bytes;
  stage->load_seconds = m->seconds;
  MOB_INFO("stage %d: layers %d-%d, %.1f MB in %.2f s; %s", (int)(stage - e->stages) / e->parts,
           stage->first_layer, stage->last_layer - 1, (double)m->bytes / 1e6, m->seconds,
           m->memory);
  report_loading(e);
  if (e->state == MOB__ENGINE_OPENED && all(e, offsetof(mob__stage_t, loaded))) allocate(e);
}

static void on_beat_of(mob_engine_t *e, mob__stage_t *stage, const Mobula__Beat *m) {
  if (e->state != MOB__ENGINE_OPENED || m->loaded_bytes <= stage->loaded_bytes) return;
  stage->loaded_bytes = m->loaded_bytes;
  report_loading(e);
}

static void on_failed(mob_engine_t *e, int stage, const Mobula__Failed *m) {
  if (strcmp(m->cause, "peer_lost") == 0)
    on_peer_lost(e, stage, m->why);
  else
    mob__engine_lose(e, stage, e->state < MOB__ENGINE_READY ? "start_failed" : "actor_died",
                     m->why);
}

static void on_message(void *owner, int index, mob_bytes_t message) {
  mob_engine_t *e = owner;
  if (e->state >= MOB__ENGINE_LOST) return;
  mob__stage_t *stage = &e->stages[index];
  stage->heard_ms = mob_now_ms();
  stage->silent_checks = 0;
  Mobula__StageUp *up = NULL;
  if (mob_pb_unpack(&mobula__stage_up__descriptor, message.data, message.len, &up) != MOB_OK) {
    mob__engine_lose(e, index, "actor_died", mob_errmsg());
    return;
  }
  switch (up->message_case) {
  case MOBULA__STAGE_UP__MESSAGE_OPENED:
    on_opened(e, stage, up->opened);
    break;
  case MOBULA__STAGE_UP__MESSAGE_LOADED:
    on_loaded(e, stage, up->loaded);
    break;
  case MOBULA__STAGE_UP__MESSAGE_READY:
    stage->ready = true;
    if (e->state == MOB__ENGINE_ALLOCATING && all(e, offsetof(mob__stage_t, ready)))
      become_ready(e);
    break;
  case MOBULA__STAGE_UP__MESSAGE_FAILED:
    on_failed(e, index, up->failed);
    break;
  case MOBULA__STAGE_UP__MESSAGE_RESULT:
    mob__engine_result(e, index, up->result);
    break;
  case MOBULA__STAGE_UP__MESSAGE_BEAT:
    on_beat_of(e, stage, up->beat);
    break;
  default:
    break;
  }
  mob_pb_free(up);
}

// ------------------------------------------------------------------------------------------ start

static void on_phase(void *owner, const char *phase) {
  mob_engine_t *e = owner;
  if (e->state == MOB__ENGINE_STARTING) progress(e, phase, 0);
}

static void on_beat(uv_timer_t *timer) {
  mob_engine_t *e = timer->data;
  if (e->link && e->state < MOB__ENGINE_LOST) send_beat(e);
}

static void on_watch(uv_timer_t *timer) {
  mob_engine_t *e = timer->data;
  if (e->state < MOB__ENGINE_LOST) mob__watch_check(e);
}

static void init_handle(mob_engine_t *e, uv_handle_t *handle) {
  handle->data = e;
  e->handles++;
}

static void init_handles(mob_engine_t *e) {
  uv_timer_init(e->loop, &e->beat);
  uv_timer_init(e->loop, &e->watch);
  uv_timer_init(e->loop, &e->peer_grace);
  uv_idle_init(e->loop, &e->pump_idle);
  uv_check_init(e->loop, &e->pump_check);
  init_handle(e, (uv_handle_t *)&e->beat);
  init_handle(e, (uv_handle_t *)&e->watch);
  init_handle(e, (uv_handle_t *)&e->peer_grace);
  init_handle(e, (uv_handle_t *)&e->pump_idle);
  init_handle(e, (uv_handle_t *)&e->pump_check);
  uv_timer_start(&e->beat, on_beat, MOB__BEAT_MS, MOB__BEAT_MS);
  uv_timer_start(&e->watch, on_watch, MOB__SILENCE_CHECK_MS, MOB__SILENCE_CHECK_MS);
}

static mob_status check_config(const mob_engine_config_t *c) {
  if (c->tp < 1 || c->pp < 1 || c->parts < 0 || (c->parts && c->tp % c->parts != 0))
    return mob_fail(MOB_E_INVALID, "tensor parallel size %d, pipeline parallel size %d", c->tp,
                    c->pp);
  if (c->max_len < 2 || c->max_seqs < 1 || c->max_batched_tokens < 1)
    return mob_fail(MOB_E_INVALID, "max_len %d, max_seqs %d, max_batched_tokens %d", c->max_len,
                    c->max_seqs, c->max_batched_tokens);
  return MOB_OK;
}

static char *text_or_empty(const char *text) {
  return (char *)(text ? text : "");
}

static void put_config(const mob_engine_t *e, int actor, mob_buf_t *out) {
  const mob_engine_config_t *c = &e->config;
  Mobula__StageConfig m = MOBULA__STAGE_CONFIG__INIT;
  m.protocol = MOB__STAGE_PROTOCOL;
  m.group = (ProtobufCBinaryData){sizeof e->group, (uint8_t *)e->group};
  m.epoch = e->epoch;
  m.stage = (uint32_t)(actor / e->parts);
  m.stages = (uint32_t)c->pp;
  m.tp = (uint32_t)c->tp;
  m.ranks = (uint32_t)(c->tp / e->parts);
  m.first_rank = m.ranks * (uint32_t)(actor % e->parts);
  m.first_layer = (uint32_t)e->stages[actor].first_layer;
  m.last_layer = (uint32_t)e->stages[actor].last_layer;
  m.model_dir = text_or_empty(c->model_dir ? c->model_dir : mob_model_dir(c->model));
  m.fingerprint = mob_model_fingerprint(c->model);
  m.device = text_or_empty(c->device ? c->device : "auto");
  m.dtype = text_or_empty(c->dtype);
  m.kv_cache_dtype = text_or_empty(c->kv_cache_dtype);
  m.max_tokens = (uint32_t)c->max_batched_tokens;
  m.slots = (uint32_t)c->max_seqs + 1; // as mob_sched_slots()
  m.max_len = (uint32_t)c->max_len;
  m.expert_parallel = c->expert_parallel;
  m.eager = c->eager;
  m.dummy = c->dummy;
  m.memory_share = c->memory_share;
  m.overrides = text_or_empty(c->overrides);
  m.threads = (uint32_t)c->cpu_threads;
  mob_buf_reserve(out, mobula__stage_config__get_packed_size(&m));
  out->len = mobula__stage_config__pack(&m, out->data);
}

static mob_status start_transport(mob_engine_t *e, const mob_backend_t *backend) {
  static const mob__transport_events_t events = {on_phase, on_message, on_transport_lost};
  const mob_engine_config_t *c = &e->config;
  mob_buf_t *packed = MOB_NEW_ARRAY(mob_buf_t, (size_t)e->actors);
  mob_bytes_t *configs = MOB_NEW_ARRAY(mob_bytes_t, (size_t)e->actors);
  for (int s = 0; s < e->actors; s++) {
    put_config(e, s, &packed[s]);
    configs[s] = (mob_bytes_t){packed[s].data, packed[s].len};
  }
  mob__transport_spec_t spec = {
      .cluster = c->cluster,
      .stages = e->actors,
      .ranks = c->tp / e->parts,
      .gpus = true,
      .configs = configs,
      .timeout_ms = c->start_timeout_ms ? c->start_timeout_ms : DEFAULT_START_TIMEOUT_MS,
      .backend = backend,
  };
  mob_status status = e->transport->start(e->loop, &spec, &events, e, &e->link);
  for (int s = 0; s < e->actors; s++) mob_buf_free(&packed[s]);
  free(packed);
  free(configs);
  return status;
}

static void on_handle_closed(uv_handle_t *handle);

static void close_handles(mob_engine_t *e) {
  uv_close((uv_handle_t *)&e->beat, on_handle_closed);
  uv_close((uv_handle_t *)&e->watch, on_handle_closed);
  uv_close((uv_handle_t *)&e->peer_grace, on_handle_closed);
  uv_close((uv_handle_t *)&e->pump_idle, on_handle_closed);
  uv_close((uv_handle_t *)&e->pump_check, on_handle_closed);
}

mob_status mob__engine_start_on(uv_loop_t *loop, const mob_engine_config_t *config,
                                const mob_engine_events_t *events, void *owner,
                                const mob__transport_ops_t *transport, const mob_backend_t *backend,
                                mob_engine_t **out) {
  MOB_TRY(check_config(config));
  int *split = MOB_NEW_ARRAY(int, (size_t)config->pp + 1);
  mob_status status = mob__split_layers(config->model, config->pp, config->layer_split, split);
  if (status != MOB_OK) {
    free(split);
    return status;
  }
  mob_engine_t *e = MOB_NEW(mob_engine_t);
  e->loop = loop;
  e->config = *config;
  e->events = *events;
  e->owner = owner;
  e->transport = transport;
  e->epoch = 1;
  e->seed_state = config->seed;
  e->warn_preemptions = 1;
  e->total_bytes = mob_model_bytes(config->model);
  mob_random(e->group, sizeof e->group);
  e->parts = config->parts ? config->parts : 1;
  e->actors = config->pp * e->parts;
  e->group_ids = MOB_NEW_ARRAY(mob__group_id_t, (size_t)config->pp);
  e->stages = MOB_NEW_ARRAY(mob__stage_t, (size_t)e->actors);
  for (int s = 0; s < e->actors; s++) {
    e->stages[s].first_layer = split[s / e->parts];
    e->stages[s].last_layer = split[s / e->parts + 1];
  }
  free(split);
  init_handles(e);
  status = start_transport(e, backend);
  if (status != MOB_OK) {
    close_handles(e);
    return status;
  }
  *out = e;
  return MOB_OK;
}

mob_status mob_engine_start(uv_loop_t *loop, const mob_engine_config_t *config,
                            const mob_engine_events_t *events, void *owner, mob_engine_t **out) {
  const mob__transport_ops_t *transport =
      config->cluster ? &mob__transport_cluster : &mob__transport_local;
  return mob__engine_start_on(loop, config, events, owner, transport, NULL, out);
}

// ------------------------------------------------------------------------------------------- stop

static void on_handle_closed(uv_handle_t *handle) {
  mob_engine_t *e = handle->data;
  if (--e->handles > 0) return;
  void (*stopped)(void *) = e->stopped;
  void *arg = e->stopped_arg;
  mob_sched_free(e->sched);
  mob__tables_free(&e->tables);
  for (size_t i = 0; i < e->sent.len; i++) free(e->sent.at[i].acked_ns);
  mob_vec_free(&e->sent);
  mob_vec_free(&e->gens);
  mob_vec_free(&e->delivering);
  mob_buf_free(&e->out);
  free(e->stages);
  free(e->group_ids);
  free(e);
  if (stopped) stopped(arg);
}

static void on_transport_stopped(void *arg) {
  mob_engine_t *e = arg;
  e->link = NULL;
  close_handles(e);
}

void mob_engine_stop(mob_engine_t *e, void (*done)(void *arg), void *arg) {
  MOB_ASSERT(e->state != MOB__ENGINE_STOPPED);
  e->state = MOB__ENGINE_STOPPED;
  e->stopped = done;
  e->stopped_arg = arg;
  mob__engine_end_all(e, MOB_FINISH_ABORT, "the engine is stopping");
  e->transport->stop(e->link, on_transport_stopped, e);
}

// ------------------------------------------------------------------------------------------ stats

static int compare(const void *a, const void *b) {
  uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
  return (x > y) - (x < y);
}

void mob_engine_stats(const mob_engine_t *e, mob_engine_stats_t *out) {
  *out = (mob_engine_stats_t){0};
  if (!e->sched) return;
  mob_sched_stats_t s;
  mob_sched_stats(e->sched, &s);
  *out = (mob_engine_stats_t){
      .running = s.running,
      .waiting = s.waiting,
      .pages_total = s.pages_total,
      .pages_used = s.pages_used,
      .prompt_tokens = s.prompt_tokens,
      .generated_tokens = s.generated_tokens,
      .preemptions = s.preemptions,
      .steps = s.steps,
      .prefix_queries = s.prefix_queries,
      .prefix_hits = s.prefix_hits,
  };
  size_t n = e->steps_timed < MOB__RECENT_STEPS ? (size_t)e->steps_timed : MOB__RECENT_STEPS;
  if (!n) return;
  uint32_t sorted[MOB__RECENT_STEPS];
  memcpy(sorted, e->step_us, n * sizeof *sorted);
  qsort(sorted, n, sizeof *sorted, compare);
  out->step_p50_us = sorted[n / 2];
  out->step_p99_us = sorted[n * 99 / 100];
}

int mob_engine_stages(const mob_engine_t *e, mob_stage_health_t *out, int max) {
  uint64_t now_ms = mob_now_ms(), now_ns = mob_now_ns();
  int ranks = e->config.tp / e->parts;
  for (int s = 0; s < e->actors && s < max; s++) {
    const mob__stage_t *stage = &e->stages[s];
    uint64_t limit, age = mob__watch_step_age(e, s, now_ns, &limit);
    out[s] = (mob_stage_health_t){
        .stage = s / e->parts,
        .first_layer = stage->first_layer,
        .last_layer = stage->last_layer,
        .first_rank = s % e->parts * ranks,
        .ranks = ranks,
        .pid = stage->pid,
        .alive = stage->heard_ms && stage->silent_checks < MOB__SILENCE_CHECKS &&
                 e->state < MOB__ENGINE_LOST,
        .heard_ms = stage->heard_ms ? now_ms - stage->heard_ms : 0,
        .step_age_ms = age / 1000000,
    };
    snprintf(out[s].node_ip, sizeof out[s].node_ip, "%s", stage->ip);
  }
  return e->actors;
}
