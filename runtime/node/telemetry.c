#include "runtime/node/telemetry.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/clock.h"
#include "runtime/base/utf8.h"
#include "runtime/base/vec.h"
#include "runtime/gpu/visible.h"
#include "runtime/node/detect.h"
#include "runtime/node/traffic.h"
#include "runtime/rpc/message.h"

// Shared with the thread, which may outlive the loop's side: whoever leaves last frees it.
typedef struct shared {
  pthread_mutex_t lock;
  pthread_cond_t wake;
  int users;
  bool wanted, closing, gpus;
  mob_telemetry_reply_t *sample; // finished, not yet taken by the loop
  uv_async_t *ready;             // NULL once the loop's side is gone
} shared_t;

typedef struct waiter {
  mob_telemetry_fn done;
  void *arg;
} waiter_t;

struct mob_telemetry {
  uv_async_t ready;
  uv_timer_t patience;
  shared_t *shared;
  bool started, asked;
  mob_telemetry_reply_t *last;
  MOB_VEC(waiter_t) waiters;
  int handles;
  void (*closed)(void *arg);
  void *closed_arg;
};

// ------------------------------------------------------------------------------------ on the
// thread

typedef struct sampler {
  mob_nvml_t *nvml;
  mob_visible_gpus_t visible;
  char why[256]; // no GPUs
} sampler_t;

static void open_gpus(sampler_t *s, bool wanted) {
  if (!wanted) {
    snprintf(s->why, sizeof s->why, "this node has no GPUs of its own");
  } else if (mob_nvml_open(&s->nvml) != MOB_OK) {
    mob_utf8_format(s->why, sizeof s->why, "%s", mob_errmsg());
  } else {
    mob_gpus_visible(s->nvml, getenv("CUDA_VISIBLE_DEVICES"), getenv("CUDA_DEVICE_ORDER"),
                     &s->visible);
    if (!s->visible.list.len) snprintf(s->why, sizeof s->why, "CUDA_VISIBLE_DEVICES leaves no GPU");
  }
}

// Messages that mob_pb_free() frees are of malloc, strings included.
static void put_gpus(sampler_t *s, mob_telemetry_reply_t *out) {
  out->gpu_state = mob_strdup(s->why);
  out->driver = mob_strdup(s->nvml ? mob_nvml_driver(s->nvml) : "");
  out->gpus = MOB_NEW_ARRAY(Mobula__Rpc__GpuTelemetry *, s->visible.list.len + 1);
  for (size_t i = 0; i < s->visible.list.len; i++) {
    int index = s->visible.list.at[i].index;
    if (index < 0) continue; // an instance of a partitioned GPU
    const mob_gpu_info_t *info = mob_nvml_gpu(s->nvml, index);
    mob_gpu_sample_t sample;
    mob_nvml_sample(s->nvml, index, &sample);
    Mobula__Rpc__GpuTelemetry *gpu = MOB_NEW(Mobula__Rpc__GpuTelemetry);
    mobula__rpc__gpu_telemetry__init(gpu);
    gpu->index = (uint32_t)index;
    gpu->uuid = mob_strdup(info->uuid);
    gpu->name = mob_strdup(info->name);
    gpu->lost = sample.lost;
    gpu->n_values = MOB_GPU_FIELDS;
    gpu->values = MOB_NEW_ARRAY(int64_t, MOB_GPU_FIELDS);
    memcpy(gpu->values, sample.value, sizeof sample.value);
    out->gpus[out->n_gpus++] = gpu;
  }
}

static void put_interfaces(mob_telemetry_reply_t *out) {
  mob_interfaces_t list = {0};
  mob_traffic_interfaces("/proc/net/dev", &list);
  out->interfaces = MOB_NEW_ARRAY(Mobula__Rpc__InterfaceTelemetry *, list.len + 1);
  for (size_t i = 0; i < list.len; i++) {
    Mobula__Rpc__InterfaceTelemetry *one = MOB_NEW(Mobula__Rpc__InterfaceTelemetry);
    mobula__rpc__interface_telemetry__init(one);
    one->name = mob_strdup(list.at[i].name);
    one->received_bytes = list.at[i].received;
    one->sent_bytes = list.at[i].sent;
    one->errors = list.at[i].errors;
    one->dropped = list.at[i].dropped;
    out->interfaces[out->n_interfaces++] = one;
  }
  mob_vec_free(&list);
}

static void put_rdma(mob_telemetry_reply_t *out) {
  mob_rdma_ports_t list = {0};
  mob_traffic_rdma("/sys/class/infiniband", &list);
  out->rdma = MOB_NEW_ARRAY(Mobula__Rpc__RdmaTelemetry *, list.len + 1);
  for (size_t i = 0; i < list.len; i++) {
    Mobula__Rpc__RdmaTelemetry *one = MOB_NEW(Mobula__Rpc__RdmaTelemetry);
    mobula__rpc__rdma_telemetry__init(one);
    one->device = mob_strdup(list.at[i].device);
    one->port = (uint32_t)list.at[i].port;
    one->active = list.at[i].active;
    one->received_bytes = list.at[i].received;
    one->sent_bytes = list.at[i].sent;
    out->rdma[out->n_rdma++] = one;
  }
  mob_vec_free(&list);
}

static mob_telemetry_reply_t *take_sample(sampler_t *s) {
  mob_telemetry_reply_t *out = MOB_NEW(mob_telemetry_reply_t);
  mobula__rpc__get_telemetry_reply__init(out);
  put_gpus(s, out);
  put_interfaces(out);
  put_rdma(out);
  out->cpu_us = (uint64_t)mob_detect_cpu_time_us();
  out->cpus = (uint32_t)mob_detect_cpus();
  out->memory_total = (uint64_t)mob_detect_memory();
  out->memory_free = (uint64_t)mob_detect_free_memory();
  out->taken_ms = mob_now_ms();
  return out;
}

static void leave(shared_t *shared) { // holding the lock
  int left = --shared->users;
  pthread_mutex_unlock(&shared->lock);
  if (left) return;
  mob_pb_free(shared->sample);
  pthread_cond_destroy(&shared->wake);
  pthread_mutex_destroy(&shared->lock);
  free(shared);
}

static void *sample_main(void *arg) {
  shared_t *shared = arg;
  sampler_t sampler = {0};
  open_gpus(&sampler, shared->gpus);
  pthread_mutex_lock(&shared->lock);
  while (!shared->closing) {
    if (!shared->wanted) {
      pthread_cond_wait(&shared->wake, &shared->lock);
      continue;
    }
    pthread_mutex_unlock(&shared->lock);
    mob_telemetry_reply_t *sample = take_sample(&sampler);
    pthread_mutex_lock(&shared->lock);
    shared->wanted = false;
    mob_pb_free(shared->sample);
    shared->sample = sample;
    if (shared->ready) uv_async_send(shared->ready);
  }
  mob_visible_gpus_free(&sampler.visible);
  mob_nvml_close(sampler.nvml);
  leave(shared);
  return NULL;
}

// -------------------------------------------------------------------------------------- on the
// loop

static void answer(mob_telemetry_t *t) {
  uv_timer_stop(&t->patience);
  if (t->last) t->last->age_ms = mob_now_ms() - t->last->taken_ms;
  // Who is told may ask again.
  waiter_t *list = t->waiters.at;
  size_t count = t->waiters.len;
  memset(&t->waiters, 0, sizeof t->waiters);
  for (size_t i = 0; i < count; i++) list[i].done(list[i].arg, t->last);
  free(list);
}

static void on_ready(uv_async_t *async) {
  mob_telemetry_t *t = async->data;
  pthread_mutex_lock(&t->shared->lock);
  mob_telemetry_reply_t *sample = t->shared->sample;
  t->shared->sample = NULL;
  pthread_mutex_unlock(&t->shared->lock);
  if (!sample) return;
  mob_pb_free(t->last);
  t->last = sample;
  t->asked = false;
  answer(t);
}

static void on_patience(uv_timer_t *timer) {
  answer(timer->data);
}

mob_telemetry_t *mob_telemetry_new(uv_loop_t *loop, bool gpus) {
  mob_telemetry_t *t = MOB_NEW(mob_telemetry_t);
  t->shared = MOB_NEW(shared_t);
  pthread_mutex_init(&t->shared->lock, NULL);
  pthread_cond_init(&t->shared->wake, NULL);
  t->shared->users = 1;
  t->shared->gpus = gpus;
  t->shared->ready = &t->ready;
  uv_async_init(loop, &t->ready, on_ready);
  uv_timer_init(loop, &t->patience);
  t->ready.data = t->patience.data = t;
  uv_unref((uv_handle_t *)&t->ready);
  return t;
}

static void start_thread(mob_telemetry_t *t) {
  pthread_attr_t attributes;
  pthread_t thread;
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  t->shared->users++;
  t->started = pthread_create(&thread, &attributes, sample_main, t->shared) == 0;
  if (!t->started) t->shared->users--;
  pthread_attr_destroy(&attributes);
}

void mob_telemetry_get(mob_telemetry_t *t, mob_telemetry_fn done, void *arg) {
  if (t->last && mob_now_ms() - t->last->taken_ms < MOB_TELEMETRY_FRESH_MS) {
    t->last->age_ms = mob_now_ms() - t->last->taken_ms;
    done(arg, t->last);
    return;
  }
  if (!t->started) start_thread(t);
  *mob_vec_push(&t->waiters) = (waiter_t){done, arg};
  if (t->waiters.len == 1) uv_timer_start(&t->patience, on_patience, MOB_TELEMETRY_PATIENCE_MS, 0);
  if (t->asked || !t->started) return; // the thread is at it, or hangs
  t->asked = true;
  pthread_mutex_lock(&t->shared->lock);
  t->shared->wanted = true;
  pthread_cond_signal(&t->shared->wake);
  pthread_mutex_unlock(&t->shared->lock);
}

static void on_handle_closed(uv_handle_t *handle) {
  mob_telemetry_t *t = handle->data;
  if (--t->handles) return;
  void (*closed)(void *) = t->closed;
  void *arg = t->closed_arg;
  mob_pb_free(t->last);
  mob_vec_free(&t->waiters);
  free(t);
  if (closed) closed(arg);
}

void mob_telemetry_close(mob_telemetry_t *t, void (*closed)(void *arg), void *arg) {
  t->closed = closed;
  t->closed_arg = arg;
  t->handles = 2;
  answer(t);
  pthread_mutex_lock(&t->shared->lock);
  t->shared->closing = true;
  t->shared->ready = NULL;
  pthread_cond_signal(&t->shared->wake);
  leave(t->shared);
  uv_close((uv_handle_t *)&t->ready, on_handle_closed);
  uv_close((uv_handle_t *)&t->patience, on_handle_closed);
}
