#include "engine/api/serve.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine/api/gateway.h"
#include "engine/api/serve_cluster.h"
#include "engine/api/serve_env.h"
#include "engine/api/serve_plan.h"
#include "engine/api/version.h"
#include "runtime/base/clock.h"
#include "runtime/base/file.h"
#include "runtime/base/mem.h"
#define MOB_LOG_COMPONENT "vllm"
#include "runtime/base/log.h"

enum {
  LOST_GRACE_MS = 500,  // /health answers 503 for so long before the port closes
  STOP_GRACE_MS = 3000, // for the engine's orderly end
  TOLD_MS = 500,        // to tell the requests that --shutdown-timeout cuts off
  STATS_MS = 5000,
};

typedef struct serve {
  uv_loop_t loop;
  const mob_serve_options_t *options;
  mob_serve_plan_t plan;
  mob_http_server_t *http;
  mob_gateway_t *gateway;
  mob_pods_t *pods;
  mob_engine_t *engine;
  mob__cluster_wait_t *wait;
  char *cluster; // GCS address, NULL without one
  uv_signal_t term, interrupt, child;
  uv_timer_t stats, deadline;
  bool ready, lost, draining, stopping, engine_stopped;
  int code;
  uint64_t begun_ms, stats_ms, progress_ms, progress_bytes;
} serve_t;

// uvicorn's lines, which readiness scripts look for.
static void say(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static void say(const char *fmt, ...) {
  char text[512];
  va_list args;
  va_start(args, fmt);
  vsnprintf(text, sizeof text, fmt, args);
  va_end(args);
  fprintf(stderr, "INFO:     %s\n", text);
}

static void note_end(const char *why) {
  FILE *file =
      access("/dev/termination-log", W_OK) == 0 ? fopen("/dev/termination-log", "w") : NULL;
  if (!file) return;
  fprintf(file, "%s\n", why);
  fclose(file);
}

// -------------------------------------------------------------------------------------------------
// end

static void close_handle(uv_handle_t *handle, void *arg) {
  (void)arg;
  if (!uv_is_closing(handle) && (handle->type == UV_SIGNAL || handle->type == UV_TIMER) &&
      handle->data == arg) {
    uv_close(handle, NULL);
  }
}

static void finish(serve_t *s) {
  if (s->http) mob_http_close(s->http);
  s->http = NULL;
  uv_walk(&s->loop, close_handle, s);
  uv_stop(&s->loop);
}

static void on_engine_stopped(void *arg) {
  serve_t *s = arg;
  s->engine_stopped = true;
  finish(s);
}

static void on_stop_deadline(uv_timer_t *timer) {
  finish(timer->data);
}

static void stop(serve_t *s, int code) {
  if (s->stopping) return;
  s->stopping = true;
  s->code = code;
  if (s->http) mob_http_close(s->http);
  s->http = NULL;
  if (s->wait) mob__cluster_wait_cancel(s->wait);
  s->wait = NULL;
  if (s->pods) {
    mob_gateway_set_pods(s->gateway, NULL);
    mob_pods_close(s->pods);
    s->pods = NULL;
  }
  if (s->lost && s->cluster) mob__cluster_end_head(s->cluster);
  if (!s->engine) {
    finish(s);
    return;
  }
  uv_timer_start(&s->deadline, on_stop_deadline, s->lost ? LOST_GRACE_MS / 2 : STOP_GRACE_MS, 0);
  mob_gateway_set_engine(s->gateway, NULL);
  mob_engine_stop(s->engine, on_engine_stopped, s);
}

static void on_drained(void *arg) {
  serve_t *s = arg;
  if (!s->stopping) MOB_INFO("All requests have ended. Shutting down.");
  stop(s, s->lost ? s->code : 0); // a group lost while draining is still lost
}

static void on_told_deadline(uv_timer_t *timer) {
  serve_t *s = timer->data;
  stop(s, s->lost ? s->code : 0);
}

static void on_drain_deadline(uv_timer_t *timer) {
  serve_t *s = timer->data;
  MOB_WARN("%zu requests did not end within --shutdown-timeout and are aborted",
           mob_gateway_under_way(s->gateway));
  uv_timer_start(&s->deadline, on_told_deadline, TOLD_MS, 0);
  mob_gateway_end_all(s->gateway,
                      "the server is shutting down"); // the last reply sent ends the drain
}

static void on_signal(uv_signal_t *handle, int number) {
  serve_t *s = handle->data;
  if (s->draining || s->stopping) {
    MOB_WARN("Second signal: ending at once.");
    exit(128 + number);
  }
  s->draining = true;
  if (!s->ready || s->lost) {
    MOB_INFO("Received signal %d before serving. Shutting down.", number);
    stop(s, s->lost ? s->code : 0);
    return;
  }
  MOB_INFO("Shutting down FastAPI HTTP server.");
  say("Shutting down");
  uv_timer_start(&s->deadline, on_drain_deadline, (uint64_t)(s->options->shutdown_timeout * 1000),
                 0);
  mob_http_drain(s->http, on_drained, s);
}

// As PID 1 of a container, processes whose parents died become ours.
static void on_child(uv_signal_t *handle, int number) {
  (void)handle, (void)number;
  while (waitpid(-1, NULL, WNOHANG) > 0) {
  }
}

// ----------------------------------------------------------------------------------------------
// engine

static void on_progress(void *owner, const char *phase, uint64_t bytes, uint64_t total) {
  serve_t *s = owner;
  if (strcmp(phase, "loading") != 0) {
    if (strcmp(phase, "ready") != 0) MOB_INFO("engine: %s", phase);
    return;
  }
  uint64_t now = mob_now_ms();
  if (s->progress_ms && now < s->progress_ms + 1000 && bytes < total) return;
  double rate = s->progress_ms && now > s->progress_ms && bytes >= s->progress_bytes
                    ? (double)(bytes - s->progress_bytes) / (double)(now - s->progress_ms) / 1e6
                    : 0;
  MOB_INFO("Loading weights: %.2f of %.2f GB (%.0f%%, %.2f GB/s)", (double)bytes / 1e9,
           (double)total / 1e9, total ? 100.0 * (double)bytes / (double)total : 100.0, rate);
  s->progress_ms = now;
  s->progress_bytes = bytes;
}

static void on_stats(uv_timer_t *timer) {
  serve_t *s = timer->data;
  uint64_t now = mob_now_ms();
  mob_gateway_log_stats(s->gateway, (double)(now - s->stats_ms) / 1000);
  s->stats_ms = now;
}

// Pods that share the machine's network (the local runner's loopback mode) are told their own
// address.
static const char *listen_host(const mob_serve_options_t *o) {
  const char *pod = getenv("MOBULA_BIND_ADDRESS");
  return o->host ? o->host : pod && *pod ? pod : NULL;
}

static void on_ready(void *owner, const mob_engine_info_t *info) {
  serve_t *s = owner;
  int max_len = s->plan.engine.max_len;
  MOB_INFO("Loading model weights took %.4f GB", (double)info->load_bytes / 1e9);
  MOB_INFO("Loading weights took %.2f seconds", info->load_seconds);
  MOB_INFO("# CUDA blocks: %lld, # CPU blocks: 0", (long long)info->pages);
  MOB_INFO("GPU KV cache size: %lld tokens", (long long)info->pages * MOB_PAGE_TOKENS);
  MOB_INFO("Maximum concurrency for %d tokens per request: %.2fx", max_len,
           (double)info->pages * MOB_PAGE_TOKENS / max_len);
  MOB_INFO("init engine (profile, create kv cache, warmup model) took %.2f seconds",
           (double)(mob_now_ms() - s->begun_ms) / 1000);
  mob_gateway_set_engine(s->gateway, s->engine);
  mob_gateway_log_routes(s->gateway);
  if (mob_http_listen(s->http) != MOB_OK) {
    MOB_ERROR("%s", mob_errmsg());
    stop(s, 1);
    return;
  }
  s->ready = true;
  const char *host = listen_host(s->options);
  if (s->pods)
    mob_pods_tell_gateway(s->pods, host, mob_http_port(s->http), s->options->ssl_certfile != NULL,
                          s->options->model);
  if (!host) host = "0.0.0.0";
  bool six = strchr(host, ':') != NULL;
  say("Started server process [%d]", getpid());
  say("Waiting for application startup.");
  say("Application startup complete.");
  say("Uvicorn running on %s://%s%s%s:%d (Press CTRL+C to quit)",
      s->options->ssl_certfile ? "https" : "http", six ? "[" : "", host, six ? "]" : "",
      mob_http_port(s->http));
  if (!s->options->disable_log_stats) {
    s->stats_ms = mob_now_ms();
    uv_timer_start(&s->stats, on_stats, STATS_MS, STATS_MS);
  }
}

static void on_lost_grace(uv_timer_t *timer) {
  serve_t *s = timer->data;
  stop(s, s->code);
}

static void on_lost(void *owner, const char *cause, const char *why) {
  serve_t *s = owner;
  if (s->stopping) return;
  s->lost = true;
  s->code = s->ready ? MOB_EXIT_LOST : MOB_EXIT_LOST_AT_START;
  MOB_ERROR("group lost, cause %s: %s", cause, why);
  char *text = mob_sprintf("group lost, cause %s: %s", cause, why);
  note_end(text);
  free(text);
  mob_gateway_lost(s->gateway, cause, why);
  uv_timer_stop(&s->stats);
  if (s->ready && mob__env_true("VLLM_KEEP_ALIVE_ON_ENGINE_DEATH")) {
    MOB_WARN("VLLM_KEEP_ALIVE_ON_ENGINE_DEATH is set: the API goes on answering 503");
    return;
  }
  uv_timer_start(&s->deadline, on_lost_grace, s->ready ? LOST_GRACE_MS : 0, 0);
}

static void start_engine(serve_t *s) {
  static const mob_engine_events_t events = {on_progress, on_ready, on_lost};
  mob_engine_config_t *e = &s->plan.engine;
  e->cluster = s->cluster;
  e->start_timeout_ms = (uint64_t)(s->options->ready_timeout * 1000);
  if (mob_pods_open(&s->loop, s->cluster, &s->pods) == MOB_OK)
    mob_gateway_set_pods(s->gateway, s->pods);
  else
    MOB_WARN("/metrics will not show the pods: %s", mob_errmsg());
  MOB_INFO("Initializing a V0 LLM engine (v%s) with config: model='%s', tokenizer='%s', dtype=%s, "
           "max_seq_len=%d, "
           "load_format=%s, tensor_parallel_size=%d, pipeline_parallel_size=%d, quantization=%s, "
           "enforce_eager=%s, "
           "kv_cache_dtype=%s, device_config=%s, seed=%lld, served_model_name=%s, "
           "enable_prefix_caching=%s, "
           "chunked_prefill_enabled=%s, cluster=%s",
           MOB_VLLM_VERSION, s->options->model,
           s->options->tokenizer ? s->options->tokenizer : s->options->model, e->dtype, e->max_len,
           s->options->load_format, e->tp, e->pp,
           mob_model_desc(e->model)->quant_block_rows ? "fp8" : "None", e->eager ? "True" : "False",
           e->kv_cache_dtype, e->device, (long long)s->options->seed,
           s->options->served_names.len ? s->options->served_names.at[0] : s->options->model,
           e->prefix_cache ? "True" : "False", e->chunked_prefill ? "True" : "False",
           s->cluster ? s->cluster : "this process");
  if (mob_engine_start(&s->loop, e, &events, s, &s->engine) == MOB_OK) return;
  MOB_ERROR("%s", mob_errmsg());
  note_end(mob_errmsg());
  stop(s, 1);
}

static void warn_of_span(const mob_engine_config_t *e) {
  if (e->parts <= 1) return;
  MOB_WARN("tensor parallel size %d spans %d pods of %d ranks: every layer's sums cross the network, "
           "through NCCL. -tp %d -pp %d crosses it once a stage.",
           e->tp, e->parts, e->tp / e->parts, e->tp / e->parts, e->pp * e->parts);
}

static void on_group(void *arg, mob_status status, const char *why) {
  serve_t *s = arg;
  s->wait = NULL;
  if (status == MOB_OK) {
    warn_of_span(&s->plan.engine);
    start_engine(s);
    return;
  }
  MOB_ERROR("%s", why);
  note_end(why);
  stop(s, status == MOB_E_INVALID   ? 1
          : status == MOB_E_TIMEOUT ? MOB_EXIT_INCOMPLETE
                                    : MOB_EXIT_LOST_AT_START);
}

// -----------------------------------------------------------------------------------------------
// start

static void raise_file_limit(void) {
  struct rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  rlim_t wanted = 65535;
  if (limit.rlim_max != RLIM_INFINITY && wanted > limit.rlim_max) wanted = limit.rlim_max;
  if (limit.rlim_cur != RLIM_INFINITY && limit.rlim_cur >= wanted) return;
  limit.rlim_cur = wanted;
  setrlimit(RLIMIT_NOFILE, &limit);
}

static void watch_signals(serve_t *s) {
  signal(SIGPIPE, SIG_IGN);
  uv_signal_init(&s->loop, &s->term);
  uv_signal_init(&s->loop, &s->interrupt);
  uv_signal_init(&s->loop, &s->child);
  uv_timer_init(&s->loop, &s->stats);
  uv_timer_init(&s->loop, &s->deadline);
  s->term.data = s->interrupt.data = s->child.data = s->stats.data = s->deadline.data = s;
  uv_signal_start(&s->term, on_signal, SIGTERM);
  uv_signal_start(&s->interrupt, on_signal, SIGINT);
  if (getpid() == 1) uv_signal_start(&s->child, on_child, SIGCHLD);
}

static mob_status bind_api(serve_t *s) {
  const mob_serve_options_t *o = s->options;
  mob_http_config_t config = {
      .host = listen_host(o),
      .port = (int)o->port,
      .max_body = (size_t)o->max_body,
      .max_header = 64 * 1024,
      .keep_alive_ms = (uint64_t)(o->keep_alive * 1000),
      .request_ms = (uint64_t)(o->request_timeout * 1000),
      .tls_cert = o->ssl_certfile,
      .tls_key = o->ssl_keyfile ? o->ssl_keyfile : o->ssl_certfile,
      .tls_ca = o->ssl_ca_certs,
      .tls_cert_reqs = (int)o->ssl_cert_reqs,
  };
  return mob_http_bind(&s->loop, &config, &mob_gateway_handler, s->gateway, &s->http);
}

static mob_status prepare(serve_t *s) {
  const mob_serve_options_t *o = s->options;
  MOB_TRY(mob__serve_plan(o, &s->plan));
  mob_gateway_config_t config = {.options = o,
                                 .model = s->plan.model,
                                 .max_len = s->plan.engine.max_len,
                                 .prefix_cache = s->plan.engine.prefix_cache};
  MOB_TRY(mob_gateway_open(&s->loop, &config, &s->gateway));
  MOB_TRY(bind_api(s));
  return mob__cluster_find(&s->cluster);
}

int mob__serve(const mob_serve_options_t *options) {
  serve_t *s = MOB_NEW(serve_t);
  s->options = options;
  s->begun_ms = mob_now_ms();
  uv_loop_init(&s->loop);
  mob__env_report();
  MOB_INFO("vLLM API server version %s", MOB_VLLM_VERSION);
  raise_file_limit();
  watch_signals(s);
  if (prepare(s) != MOB_OK) {
    fprintf(stderr, "vllm serve: error: %s\n", mob_errmsg());
    note_end(mob_errmsg());
    stop(s, 1);
  } else if (s->cluster) {
    mob_engine_config_t *e = &s->plan.engine;
    mob__cluster_wait(&s->loop, s->cluster, e->tp, e->pp, e->device,
                      (uint64_t)(options->ready_timeout * 1000), on_group, s, &e->parts, &s->wait);
  } else {
    start_engine(s);
  }
  if (!s->stopping || s->engine) uv_run(&s->loop, UV_RUN_DEFAULT);
  // What is still open belongs to worker threads or to an engine that did not stop in time; the
  // process ends anyway.
  uint64_t end = mob_now_ms() + 500;
  while (uv_run(&s->loop, UV_RUN_NOWAIT) && mob_now_ms() < end) usleep(1000);
  bool clean = uv_loop_close(&s->loop) == 0;
  int code = s->code;
  bool served = s->ready;
  if (clean) {
    mob_gateway_close(s->gateway);
    mob__serve_plan_clear(&s->plan);
    free(s->cluster);
    free(s);
  }
  if (served) say("Finished server process [%d]", getpid());
  return code;
}
