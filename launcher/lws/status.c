// The state of a runner as JSON.
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "launcher/lws/runner.h"
#include "runtime/base/clock.h"

static json_t *container_json(const mob_lws_instance_t *c) {
  static const char *const states[] = {"waiting", "running", "terminated"};
  json_t *json = json_pack("{s:s, s:s, s:b, s:b, s:i, s:i}", "name", c->spec->name, "state",
                           states[c->state], "ready", (int)c->ready, "init", (int)c->init,
                           "restarts", (int)c->restarts, "pid", (int)c->pid);
  if (c->reason) json_object_set_new(json, "reason", json_string(c->reason));
  if (c->last_status >= 0) {
    int code =
        WIFSIGNALED(c->last_status) ? 128 + WTERMSIG(c->last_status) : WEXITSTATUS(c->last_status);
    json_object_set_new(json, "last_exit_code", json_integer(code));
  }
  return json;
}

static json_t *pairs_json(const mob_lws_pairs_t *pairs) {
  json_t *json = json_object();
  for (size_t i = 0; i < pairs->len; i++) {
    json_object_set_new(json, pairs->at[i].key, json_string(pairs->at[i].value));
  }
  return json;
}

static json_t *pod_json(const mob_lws_pod_t *pod) {
  json_t *containers = json_array();
  size_t ready = 0;
  for (size_t i = 0; i < pod->instance_count; i++) {
    json_array_append_new(containers, container_json(&pod->instances[i]));
    ready += pod->instances[i].ready;
  }
  json_t *json = json_pack(
      "{s:s, s:s, s:s, s:s, s:s, s:I, s:b, s:I, s:I, s:i, s:I, s:i, s:b, s:o, s:o, s:o}", "name",
      pod->id.name, "namespace", pod->id.set->namespace_, "uid", pod->uid, "ip", pod->address,
      "status", mob__pod_status(pod), "worker", (json_int_t)pod->id.worker, "ready",
      (int)mob__pod_ready(pod), "ready_containers", (json_int_t)ready, "containers_total",
      (json_int_t)(pod->instance_count - pod->init_count), "restarts", (int)mob__pod_restarts(pod),
      "created_ms", (json_int_t)pod->created_ms, "sandbox_pid", (int)pod->sandbox, "link_down",
      (int)pod->link_down, "containers", containers, "labels", pairs_json(&pod->labels),
      "annotations", pairs_json(&pod->annotations));
  return json;
}

static json_t *group_json(const mob_lws_runner_t *r, const mob_lws_controlled_set_t *s,
                          const mob_lws_group_t *g) {
  json_t *pods = json_array();
  for (int64_t i = 0; i < s->set->size; i++) {
    const mob_lws_slot_t *slot = i == 0 ? &g->leader : &g->workers[i - 1];
    if (slot->pod) json_array_append_new(pods, pod_json(slot->pod));
  }
  return json_pack("{s:I, s:b, s:o}", "index", (json_int_t)g->index, "ready",
                   (int)mob__group_ready(&r->controller, s, g), "pods", pods);
}

json_t *mob__runner_status(mob_lws_runner_t *r, size_t events) {
  json_t *sets = json_array();
  for (size_t i = 0; i < r->controller.sets.len; i++) {
    const mob_lws_controlled_set_t *s = r->controller.sets.at[i];
    json_t *groups = json_array();
    for (size_t k = 0; k < s->groups.len; k++)
      json_array_append_new(groups, group_json(r, s, s->groups.at[k]));
    json_array_append_new(sets, json_pack("{s:s, s:I, s:I, s:I, s:o}", "name", s->set->name,
                                          "ready", (json_int_t)mob__ready_groups(&r->controller, s),
                                          "desired", (json_int_t)s->replicas, "size",
                                          (json_int_t)s->set->size, "groups", groups));
  }
  return json_pack("{s:s, s:s, s:i, s:s, s:s, s:b, s:I, s:o, s:o, s:o}", "name", r->name,
                   "state_dir", r->state_dir, "pid", (int)getpid(), "network",
                   mob__lws_network_name(r->network.mode), "network_reason", r->network.why,
                   "ready", (int)mob__runner_all_ready(r), "now_ms", (json_int_t)mob_wall_ms(),
                   "sets", sets, "services", mob__services_json(&r->services), "events",
                   mob__events_json(&r->events, events));
}
